"""The server as seen from the network: access, answers, and persistence."""

import json
import os
import random
import stat
import subprocess
import sys
import threading
import time
from http.client import HTTPException

import numpy as np
import pytest
from study_helpers import Client, Server, an_answer, make_study, rows_of

from vmddpm.files import lock
from vmddpm.study import Study, StudyError
from vmddpm.study.readers import load_readers, register
from vmddpm.study.server import is_local, serve


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study without its key, which the server does not need."""
    study = make_study(tmp_path_factory.mktemp("served"), n=10)
    (study.path / "key.json").rename(study.path.parent / "moved-key.json")
    return study


@pytest.fixture(scope="module")
def server(study):
    with Server(study.path) as server:
        yield server


def test_a_reader_goes_through_and_back_and_on(study, server):
    client = Client(server)
    assert client.json("GET", "/state")[0] == 401
    state = client.sign_in(" Anna ")
    assert (state["reader"], state["total"], state["next"], state["previous"]) == ("anna", 20, 0, None)
    assert "20 medical images" in state["instructions"]
    assert client.json("GET", "/image/2")[0] == 404
    for position in range(20):
        assert client.request("GET", f"/image/{position}")[2] == study.image(study.order("anna")[position]).read_bytes()
        assert client.json("POST", "/answer", an_answer(position))[1]["next"] == position + 1
    assert client.json("POST", "/answer", an_answer(19, 1, "synthetic", "low"))[1]["previous"]["revision"] == 2
    assert client.json("POST", "/answer", an_answer(20))[0] == 409
    assert len(rows_of(study, "anna")) == 21
    assert client.json("POST", "/sign-out", {})[0] == 200
    assert client.json("GET", "/state")[0] == 401
    assert client.sign_in("anna")["next"] == 20


def test_nonsense_is_refused_in_words(server):
    client = Client(server)
    for code in ("", "../anna", "a b", "-", "x" * 33, "a/b", "Ä", None, 7):
        assert client.json("POST", "/sign-in", {"code": code})[0] == 400
    assert client.json("POST", "/sign-in", [])[0] == 400
    client.sign_in("nonsense")
    for content, status in ((b"no JSON", 400), (b"{}", 400), (b"[" * 4000, 400), (b"x" * 5000, 413), (b"\xff", 400)):
        given = client.json("POST", "/answer", content)
        assert given[0] == status
        assert isinstance(given[1]["error"], str)
    assert client.json("POST", "/answer", {**an_answer(0), "confidence": "sure"})[1]["error"].startswith("confidence")
    assert client.json("GET", "/state")[1]["next"] == 0


def test_a_forged_cookie_and_a_foreign_host_are_refused(server):
    client = Client(server)
    client.sign_in("forged")
    client.cookie = client.cookie[:-4] + "AAAA"
    assert client.json("GET", "/state")[0] == 401
    # A web site whose name resolves to this machine's address (DNS rebinding) would send that name.
    for host, status in (("evil.example", 400), ("localhost:8000", 200), ("[::1]:8000", 200), ("127.0.0.1", 200)):
        assert client.request("GET", "/", headers={"Host": host})[0] == status


def test_every_response_forbids_other_sources_and_caches(server):
    client = Client(server)
    client.sign_in("headers")
    for path in ("/", "/state", "/image/0", "/nowhere"):
        headers = dict(client.request("GET", path)[1])
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
        body = client.request("GET", path)[2]
        assert b"http:" not in body
        assert b"https:" not in body


TRAVERSAL = """
/key.json /study.json /readers.json /session.key /server.lock /answers/anna.jsonl /images/0.png /images /answers/
/report /../key.json /../../key.json /./key.json //key.json /%2e%2e/key.json /..%2fkey.json /%2e%2e%2fkey.json
/..%5ckey.json /..\\key.json /image/../key.json /image/../../key.json /image/..%2f..%2fkey.json
/image/%2e%2e/%2e%2e/key.json /image/0/../../key.json /image/0%2f..%2f..%2fkey.json /image/0%00.png /image/%00
/image/-1 /image/1.0 /image/1e0 /image/+1 /image/99999999999999999999999999 /image/0x0 /image/0/ /image/ /image
/image/key.json /image/..%c0%afkey.json /image/%252e%252e%252fkey.json /study.js/../key.json /study.js/..%2fkey.json
/study.css%2f..%2fkey.json /page/index.html /index.html /vmddpm/study/server.py /state/../key.json /answer/../key.json
/sign-in/key.json /file=key.json /file/key.json /static/../key.json /.git/config /etc/passwd
/../../../../../../etc/passwd /%2fetc%2fpasswd ///etc/passwd /docs /openapi.json /;/key.json /key.json%20 /key.json.
/KEY.JSON /key%2ejson http://127.0.0.1/key.json file:///etc/passwd
""".split()  # noqa: SIM905


@pytest.mark.parametrize("signed_in", [False, True])
def test_the_key_and_every_other_file_are_refused_on_every_path(tmp_path, signed_in):
    study = make_study(tmp_path, n=2)
    secrets = [str(json.loads((study.path / "key.json").read_text())["seed"]), study.shuffle, *study.images]
    with Server(study.path) as server:
        client = Client(server)
        if signed_in:
            client.sign_in("anna")
        for template in TRAVERSAL:
            for target in (template, template.replace("key.json", str(study.path / "key.json").lstrip("/"))):
                for method in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"):
                    status, headers, body = client.request(method, target, None if method in ("GET", "HEAD") else b"{}")
                    seen = (body + repr(headers).encode()).decode("latin1")
                    assert status in (400, 401, 404, 405), (method, target, status)
                    assert not any(secret in seen for secret in secrets[1:])
                    assert "root:" not in seen
        assert sorted(path.name for path in study.path.iterdir()) == [
            "answers", "images", "key.json", "server.lock", "session.key", "study.json"
        ]  # fmt: skip


def test_with_passwords_only_their_owners_enter(tmp_path):
    study = make_study(tmp_path, n=2)
    passwords = register(study, ["anna", "Ben"])
    assert set(passwords) == {"anna", "ben"}
    assert all(word not in (study.path / "readers.json").read_text() for word in passwords.values())
    assert stat.S_IMODE((study.path / "readers.json").stat().st_mode) == 0o600
    with Server(study.path) as server:
        client = Client(server)
        for code, password in (("anna", ""), ("anna", passwords["ben"]), ("carla", passwords["anna"]), ("carla", "")):
            assert client.json("POST", "/sign-in", {"code": code, "password": password})[0] == 403
        client.sign_in("anna", f" {passwords['anna'].upper()}")
        assert client.json("POST", "/answer", an_answer(0))[0] == 200
        assert stat.S_IMODE((study.path / "session.key").stat().st_mode) == 0o600
        register(study, ["anna"])  # a new password ends old sessions
        assert client.json("GET", "/state")[0] == 401
        assert set(load_readers(study)) == {"anna", "ben"}


def test_readers_registered_at_once_are_all_there(tmp_path):
    study = make_study(tmp_path, n=2)
    code = (
        "import sys, time; from vmddpm.study import Study, readers\n"
        "load = readers.load_readers\n"
        "readers.load_readers = lambda study: (load(study), time.sleep(0.2))[0]\n"  # time for another process to write
        "for n in range(3): print(readers.register(Study.open(sys.argv[1]), [f'{sys.argv[2]}{n}']))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, study.path]
    processes = [subprocess.Popen([*command, name], env=environment, stdout=subprocess.PIPE) for name in ("a", "b")]
    for process in processes:
        assert process.communicate(timeout=60)[0].count(b"{") == 3
    assert sorted(load_readers(study)) == ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_registering_during_one_that_does_not_end_is_an_error(tmp_path, monkeypatch):
    study = make_study(tmp_path, n=2)
    monkeypatch.setattr("vmddpm.study.readers.LOCK_TIMEOUT", 0.1)
    with lock(study.path / "readers.lock"), pytest.raises(StudyError, match=r"registered by process \d+ on .*; try"):
        register(study, ["anna"])
    assert set(register(study, ["anna"])) == {"anna"}


def test_other_machines_are_let_in_with_passwords_only(tmp_path):
    study = make_study(tmp_path, n=2)
    with pytest.raises(StudyError, match="vmddpm study readers"):
        serve(study.path, "0.0.0.0", 1)
    register(study, ["anna"])
    with pytest.raises(StudyError, match="not a file"):
        serve(study.path, "0.0.0.0", 1, certificate="nowhere.pem", private_key="nowhere.pem")
    with pytest.raises(StudyError, match="belong together"):
        serve(study.path, "0.0.0.0", 1, certificate="cert.pem")
    with pytest.raises(StudyError, match="port is 70000; it must be from 0 to 65535"):
        serve(study.path, "127.0.0.1", 70000)
    pem = tmp_path / "cert.pem"
    pem.write_text("no certificate")
    with pytest.raises(StudyError, match=r"cert\.pem must be a certificate and its key, PEM files"):
        serve(study.path, "127.0.0.1", 1, certificate=str(pem), private_key=str(pem))
    (study.path / "readers.json").write_text("{")
    with pytest.raises(StudyError, match=r"readers\.json cannot be read"):
        serve(study.path, "0.0.0.0", 1)
    assert [is_local(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_local(host) for host in ("0.0.0.0", "::", "10.0.0.1", "hospital.example")] == [False] * 4


def test_a_study_is_served_once_and_not_with_a_damaged_log(server, study, tmp_path):
    with pytest.raises(StudyError, match="served already"):
        serve(study.path, "127.0.0.1", 1)
    damaged = make_study(tmp_path, n=2)
    damaged.log("anna").write_text("{}\n")
    with pytest.raises(StudyError, match=r"anna\.jsonl, line 1"):
        serve(damaged.path, "127.0.0.1", 1)


def answer_all(server, reader, acknowledged, latencies=None):
    """Answer every image and resend unacknowledged answers, as the page does."""
    client, state, pending = Client(server), None, None
    draw = random.Random(reader)
    while state is None or state["next"] < state["total"]:
        try:
            if state is None:
                state = client.sign_in(reader)
                continue
            if pending is None:
                answer, confidence = draw.choice(["real", "synthetic"]), draw.choice(["low", "medium", "high"])
                pending = an_answer(state["next"], 0, answer, confidence, f"{draw.getrandbits(64):016x}")
            assert client.request("GET", f"/image/{pending['position']}")[0] == 200
            start = time.perf_counter()
            status, latest = client.json("POST", "/answer", pending)
            assert status == 200, latest
            if latencies is not None:
                latencies.append(time.perf_counter() - start)
            acknowledged.append(pending)
            state, pending = latest, None
        except (OSError, HTTPException):  # the server was killed before or in the middle of its response
            time.sleep(0.02)


def essence(answers):
    return [tuple(a[name] for name in ("position", "revision", "answer", "confidence", "submission")) for a in answers]


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_a_server_that_is_killed_at_any_moment_loses_and_doubles_nothing(tmp_path, kills):
    study = make_study(tmp_path, n=25 * kills)
    acknowledged = {reader: [] for reader in ("anna", "ben")}
    moments = np.random.default_rng(0)
    server = Server(study.path).start()
    readers = [threading.Thread(target=answer_all, args=(server, *item)) for item in acknowledged.items()]
    try:
        for reader in readers:
            reader.start()
        for kill in range(1, kills + 1):
            while len(acknowledged["anna"]) < kill * 10:
                assert all(reader.is_alive() for reader in readers)
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))
            server.kill()
            server.start()
        for reader in readers:
            reader.join(120)
    finally:
        server.kill()
    for reader, answers in acknowledged.items():
        assert len(answers) == 50 * kills
        assert essence(rows_of(study, reader)) == essence(answers)


def test_twenty_readers_at_once(tmp_path):
    """100 images each over HTTP, one connection per reader; `pytest -s` prints the latency."""
    study = make_study(tmp_path, n=50, size=128)
    acknowledged = {f"reader{number}": [] for number in range(20)}
    latencies = []
    with Server(study.path) as server:
        threads = [
            threading.Thread(target=answer_all, args=(server, *item, latencies)) for item in acknowledged.items()
        ]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        duration = time.perf_counter() - start
    for reader, answers in acknowledged.items():
        assert len(answers) == 100
        assert essence(rows_of(study, reader)) == essence(answers)
    middle, most, worst = 1000 * np.quantile(latencies, [0.5, 0.95, 1])
    print(f"2000 answers of 20 readers in {duration:.1f} s; an answer is on the disk after {middle:.1f} ms (median), "
          f"{most:.1f} ms (95 %), {worst:.1f} ms (worst)")  # fmt: skip


def test_an_answer_that_cannot_be_stored_is_not_acknowledged_and_leaves_no_trace(tmp_path):
    """Files are limited to 1000 bytes, so a write ends in the middle of a line, as on a full disk."""
    study = make_study(tmp_path, n=5)
    server = Server(study.path).start("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))")
    client = Client(server)
    client.sign_in("anna")
    statuses = [client.json("POST", "/answer", an_answer(position)) for position in range(5)]
    stored = sum(status == 200 for status, _ in statuses)
    assert 0 < stored < 5
    assert statuses[stored][0] == 503
    assert "could not be stored" in statuses[stored][1]["error"]
    assert len(rows_of(study, "anna")) == stored
    server.kill()
    with server:
        client.connection = None
        assert client.json("GET", "/state")[1]["next"] == stored
        assert client.json("POST", "/answer", an_answer(stored))[1]["next"] == stored + 1


def test_two_windows_of_one_reader(study, server):
    windows = [Client(server) for _ in range(2)]
    for window in windows:
        window.sign_in("windows")
    assert windows[0].json("POST", "/answer", an_answer(0, submission="a" * 16))[0] == 200
    status, response = windows[1].json("POST", "/answer", an_answer(0, submission="b" * 16))
    assert status == 409
    assert "another window" in response["error"]
    assert response["next"] == 1
    assert len(rows_of(study, "windows")) == 1


def test_the_state_survives_without_the_session(study, server):
    Client(server).sign_in("traveller")
    client = Client(server)
    assert client.sign_in("traveller")["next"] == 0
    client.json("POST", "/answer", an_answer(0))
    assert Client(server).sign_in("traveller")["next"] == 1
    assert Study.open(study.path).readers_with_answers().count("traveller") == 1
    assert os.path.getsize(study.log("traveller")) > 0
