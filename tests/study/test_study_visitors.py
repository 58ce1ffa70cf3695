"""Malicious, numerous and slow visitors: the server's answers, and no effect on readers."""

import json
import os
import socket
import stat
import threading
import time

import numpy as np
import pytest
from study_helpers import Client, Server, an_answer, make_study, rows_of

from vmddpm.study import Study, StudyError
from vmddpm.study.folder import load_key
from vmddpm.study.limits import FREE_GUESSES, BusyError, SignInGuesses, network_of
from vmddpm.study.readers import load_readers, register
from vmddpm.study.server import host_of, is_local, serve
from vmddpm.study.sessions import EndedSessions, session_secret


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("visited"), n=10)


@pytest.fixture(scope="module")
def server(study):
    with Server(study.path) as server:
        yield server


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://[::1"}, 403),
     ({"Origin": "http://127.0.0.1:1"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403),
     ({"Sec-Fetch-Site": "same-site"}, 403), ({"Sec-Fetch-Site": "none"}, 403),
     ({"Content-Type": "text/plain"}, 415), ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
     ({"Content-Type": ""}, 415), ({"Origin": "{own}"}, 200),
     ({"Origin": "https://seen.from.outside", "Sec-Fetch-Site": "same-origin"}, 200),  # behind a proxy
     ({"Content-Type": "application/json; charset=utf-8"}, 200)],
)  # fmt: skip
def test_what_another_sites_page_sends_is_refused(server, headers, status):
    headers = {name: value.format(own=server.url.rstrip("/")) for name, value in headers.items()}
    client = Client(server)
    client.sign_in("foreign")
    position = client.json("GET", "/state")[1]["next"]
    for path, content in (("/answer", an_answer(position)), ("/sign-in", {"code": "foreign"}), ("/sign-out", {})):
        got, _, body = client.request("POST", path, content, headers)
        assert got == status, path
        assert status == 200 or isinstance(json.loads(body)["error"], str)
    assert (Client(server).sign_in("foreign")["next"] > position) == (status == 200)


def test_two_studies_on_one_host_do_not_sign_each_other_out(study, server, tmp_path):
    """A browser sends a host's cookies to all its ports."""
    other = make_study(tmp_path, n=2, seed=8)
    with Server(other.path) as second:
        first_client, second_client = Client(server), Client(second)
        first_client.sign_in("anna")
        second_client.sign_in("anna")
        assert first_client.cookie.split("=")[0] != second_client.cookie.split("=")[0]
        first_client.cookie = second_client.cookie = f"{first_client.cookie}; {second_client.cookie}"
        assert [client.json("GET", "/state")[0] for client in (first_client, second_client)] == [200, 200]
        assert first_client.request("POST", "/sign-out", {})[0] == 200
        first_client.cookie = second_client.cookie
        assert [client.json("GET", "/state")[0] for client in (first_client, second_client)] == [401, 200]


def test_signing_out_ends_the_session_on_the_server(tmp_path):
    study = make_study(tmp_path, n=2)
    server = Server(study.path).start()
    client, other = Client(server), Client(server)
    client.sign_in("anna")
    other.sign_in("anna")
    kept = client.cookie
    assert client.json("POST", "/sign-out", {})[0] == 200
    for _ in range(2):
        client.cookie = kept
        assert client.json("GET", "/state")[0] == 401
        assert client.json("POST", "/answer", an_answer(0))[0] == 401
        assert other.json("GET", "/state")[0] == 200
        server.kill()
        server.start()
        client.connection = other.connection = None
    server.kill()
    assert stat.S_IMODE(study.path.stat().st_mode) == 0o700
    assert len(EndedSessions(study)._ended) == 1


def test_sessions_are_forgotten_when_their_cookies_have_expired(study, tmp_path):
    made = make_study(tmp_path, n=2)
    path = made.path / "signed-out.jsonl"
    EndedSessions(made).end("a" * 32)
    path.write_text(json.dumps({"session": "b" * 32, "time": time.time() - 31 * 24 * 3600}) + "\n" + path.read_text())
    with path.open("a") as file:
        file.write('{"session": "cccc')  # a truncated line
    ended = EndedSessions(made)
    assert ("a" * 32 in ended, "b" * 32 in ended) == (True, False)
    assert len(path.read_text().splitlines()) == 1
    ended.end("d" * 32)
    assert "d" * 32 in EndedSessions(made)
    path.write_text("{}\n")
    with pytest.raises(StudyError, match=r"signed-out\.jsonl, line 1, is damaged"):
        EndedSessions(made)


@pytest.mark.parametrize("content", ["", "abc", "g" * 64, "0" * 63, "\ufffd" * 64])
def test_a_damaged_session_key_is_an_error(study, tmp_path, content):
    made = make_study(tmp_path, n=2)
    (made.path / "session.key").write_text(content)
    with pytest.raises(StudyError, match=r"session\.key is not a key of 64 digits; remove it"):
        serve(made.path, "127.0.0.1", 1)
    (made.path / "session.key").write_bytes(b"\xff")
    with pytest.raises(StudyError, match=r"session\.key cannot be read"):
        session_secret(made)


DAMAGED_READERS = ["", "[]", "3", "null", '{"anna": 3}', '{"anna": {}}', '{"anna": {"salt": "", "hash": ""}}',
                   '{"anna": {"salt": 1, "hash": "a"}}', '{"anna": {"salt": "\\ud800", "hash": "a"}}', "[" * 100_000,
                   '{"anna": {"salt": "a", "hash": "\u00e4"}}']  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED_READERS)
def test_a_damaged_list_of_readers_is_an_error(tmp_path, content):
    made = Study(tmp_path, "", "", [], "")
    (tmp_path / "readers.json").write_text(content)
    with pytest.raises(StudyError, match=r"readers\.json cannot be read \(.*; restore it"):
        load_readers(made)


def test_a_list_of_readers_damaged_while_serving_is_not_a_500(tmp_path):
    made = make_study(tmp_path, n=2)
    password = register(made, ["anna"])["anna"]
    whole = (made.path / "readers.json").read_text()
    with Server(made.path) as server:
        client = Client(server)
        client.sign_in("anna", password)
        (made.path / "readers.json").write_text("{")
        for method, path, content in (("GET", "/state", None), ("POST", "/answer", an_answer(0)),
                                      ("POST", "/sign-in", {"code": "anna", "password": password})):  # fmt: skip
            status, response = client.json(method, path, content)
            assert (status, response["error"]) == (503, "The study's files cannot be read; tell whoever serves it.")
        (made.path / "readers.json").write_text(whole)
        assert client.json("POST", "/answer", an_answer(0))[0] == 200


def test_numbers_and_letters_that_python_stumbles_over(server):
    client = Client(server)
    client.sign_in("strange")
    for field, value in (("seconds", 10**400), ("seconds", -(10**400)), ("seconds", 1e999), ("position", 10**3500 - 1),
                         ("revision", 10**3000), ("confidence", "\ud800"), ("page", "\udfff" * 12)):  # fmt: skip
        status, response = client.json("POST", "/answer", {**an_answer(0), field: value})
        assert (status, response["error"].split()[0]) == (400, field)
    assert client.json("POST", "/answer", b'{"position": ' + b"9" * 4050 + b"}")[0] == 400
    for content in ({"code": "\ud800"}, {"code": "strange", "password": "\ud800"}, {"code": "9" * 4000}):
        assert client.json("POST", "/sign-in", content)[0] == 400
    for position in ("9" * 5000, "9" * 15_000, "%D9%A3", "1_0"):
        assert client.json("GET", f"/image/{position}")[0] in (400, 404)
    assert client.json("GET", "/state")[1]["next"] == 0


def test_one_readers_slow_disk_does_not_stop_the_others(tmp_path):
    """An fsync of anna's log returns only when the others are done; she has three windows."""
    made = make_study(tmp_path, n=10)
    slow = (
        "import os, time; sync = os.fsync\n"
        "def fsync(d):\n"
        f"    while 'anna' in os.readlink(f'/proc/self/fd/{{d}}') and not os.path.exists({str(tmp_path / 'done')!r}):\n"
        "        time.sleep(0.01)\n"
        "    sync(d)\n"
        "os.fsync = fsync"
    )
    server = Server(made.path).start(slow)
    try:
        annas, ben = [Client(server) for _ in range(3)], Client(server)
        for client in annas:
            client.sign_in("anna")
        ben.sign_in("ben")
        storing = [threading.Thread(target=client.json, args=("POST", "/answer", an_answer(0))) for client in annas]
        for thread in storing:
            thread.start()
        time.sleep(0.3)
        window = Client(server)
        window.cookie = annas[0].cookie
        for position in range(10):
            assert window.json("GET", "/state")[1]["next"] == 0
            assert window.request("GET", "/image/0")[0] == 200
            assert ben.json("POST", "/answer", an_answer(position))[0] == 200
        assert all(thread.is_alive() for thread in storing)
        (tmp_path / "done").touch()
        for thread in storing:
            thread.join(30)
        assert len(rows_of(made, "anna")) == 1
    finally:
        server.kill()


# Password guessing


def test_an_address_that_guesses_waits_longer_and_longer():
    now = [0.0]
    guesses = SignInGuesses(lambda: now[0])
    waits = []
    for _ in range(12):
        try:
            guesses.check("10.0.0.1")
            waits.append(0)
        except BusyError as error:
            waits.append(error.seconds)
            now[0] += error.seconds
            guesses.check("10.0.0.1")
        guesses.record_failure("10.0.0.1")
    assert waits == [0] * (FREE_GUESSES + 1) + [2, 4, 8, 16, 30, 30]
    guesses.check("10.0.0.2")
    now[0] += 601
    guesses.record_failure("10.0.0.1")
    guesses.check("10.0.0.1")
    for number in range(20_000):
        guesses.record_failure(f"address {number}")
    assert len(guesses._wrong) == 10_000


def test_neighbours_are_one_visitor():
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1") != network_of("10.0.0.2")
    assert network_of("fe80::1%eth0") == network_of("fe80::2")
    assert network_of("") == ""


def test_guessing_is_delayed_for_the_address_that_guesses(tmp_path):
    made = make_study(tmp_path, n=2)
    password = register(made, ["anna"])["anna"]
    with Server(made.path) as server:
        guessing, reading = Client(server, "127.0.0.7"), Client(server, "127.0.0.8")
        wrong = {"code": "anna", "password": "aaaa-aaaa-aaaa"}
        statuses = [guessing.json("POST", "/sign-in", wrong)[0] for _ in range(12)]
        assert statuses == [403] * (FREE_GUESSES + 1) + [429] * 6
        status, headers, body = guessing.request("POST", "/sign-in", {"code": "anna", "password": password})
        assert status == 429
        assert int(dict(headers)["retry-after"]) <= 2
        assert json.loads(body)["error"].startswith("Too many sign-ins. Please try again in")
        reading.sign_in("anna", password)
        time.sleep(2.1)
        guessing.sign_in("anna", password)


def memory(process):
    with open(f"/proc/{process.pid}/status") as file:
        kept = dict(line.split(":", 1) for line in file)
    return int(kept["VmRSS"].split()[0]) / 1024, int(kept["VmHWM"].split()[0]) / 1024


@pytest.mark.parametrize(
    ("readers", "guesses", "pause"), [(8, 60, 0.02), pytest.param(40, 300, 0.3, marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_readers_are_served_while_many_guess(tmp_path, readers, guesses, pause):
    """Each guess comes from its own address, all at once, so that none is delayed. `pytest -s` prints the readers'
    waiting time and the server's memory: a hash takes 16 MiB, and 60 at once took a gigabyte."""
    made = make_study(tmp_path, n=20, size=64)
    passwords = register(made, [f"reader{number}" for number in range(readers)])
    waited, statuses, stop = [], [], threading.Event()
    with Server(made.path) as server:
        clients = [Client(server) for _ in passwords]
        for client, (code, password) in zip(clients, passwords.items()):
            client.sign_in(code, password)
        before, _ = memory(server.process)

        def read(client):
            for position in range(40):
                assert client.request("GET", f"/image/{position}")[0] == 200
                began = time.perf_counter()
                assert client.json("POST", "/answer", an_answer(position))[0] == 200
                waited.append(time.perf_counter() - began)
                time.sleep(pause)

        def guess(number):
            client = Client(server, f"127.0.{1 + number // 200}.{1 + number % 200}")
            while not stop.is_set():
                statuses.append(client.json("POST", "/sign-in", {"code": "reader0", "password": str(number)})[0])
                if statuses[-1] == 429:
                    return

        guessing = [threading.Thread(target=guess, args=(number,)) for number in range(guesses)]
        reading = [threading.Thread(target=read, args=(client,)) for client in clients]
        for thread in guessing + reading:
            thread.start()
        for thread in reading:
            thread.join(120)
        stop.set()
        for thread in guessing:
            thread.join(120)
        _, most = memory(server.process)
        deadline = time.monotonic() + 60
        while (after := memory(server.process)[0]) > before + 16 and time.monotonic() < deadline:
            time.sleep(1)
    assert set(statuses) == {403, 429}
    for code in passwords:
        assert len(rows_of(made, code)) == 40
    middle, worst = 1000 * np.quantile(waited, [0.5, 1])
    print(f"{readers} readers, {guesses} guessing ({len(statuses)} guesses): an answer takes "
          f"{middle:.1f} ms (median), {worst:.0f} ms (worst); {before:.0f} MiB before, {most:.0f} at most, "
          f"{after:.0f} after")  # fmt: skip
    assert most < before + 100
    assert after <= before + 16  # its records of visitors, but no hash


# Connections and slow requests


def limits(**seconds):
    return "; ".join(["import vmddpm.study.limits as limits, vmddpm.study.routes as routes",
                      *(f"limits.{k} = routes.{k} = {v}" for k, v in seconds.items())])  # fmt: skip


def closed_after(connection, keep_sending=b"", rest=0.2, most=60.0):
    """Seconds until the server hangs up."""
    began = time.monotonic()
    connection.settimeout(rest)
    while time.monotonic() - began < most:
        try:
            if keep_sending:
                connection.sendall(keep_sending)
            if connection.recv(65536) == b"":
                return time.monotonic() - began
        except TimeoutError:
            continue
        except OSError:
            return time.monotonic() - began
    raise AssertionError(f"the connection is open after {most} s")


def test_a_connection_without_a_request_is_closed(tmp_path):
    made = make_study(tmp_path, n=2)
    server = Server(made.path).start(limits(HEADER_SECONDS=1.0, BODY_SECONDS=0.5, LOOK_SECONDS=0.2))
    try:
        address = ("127.0.0.1", server.port)
        head = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n".encode()
        for begin, drip in ((b"", b""), (b"G", b""), (head, b"X-Drip: 1\r\n"), (head + b"\r\n" + head, b"a: b\r\n")):
            with socket.create_connection(address) as connection:
                connection.sendall(begin)
                assert closed_after(connection, drip) > 0.9
        with socket.create_connection(address) as connection:  # a body sent one byte at a time
            post = head.replace(b"GET /", b"POST /sign-in") + b"Content-Type: application/json\r\n"
            connection.sendall(post + b"Content-Length: 99\r\n\r\n{")
            connection.settimeout(60)
            assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
            closed_after(connection)
        with socket.create_connection(address) as connection:
            connection.sendall(head + b"X-Long: " + b"x" * 100_000)
            connection.settimeout(60)
            assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    finally:
        server.kill()


def test_a_client_that_takes_nothing_is_cut_off_and_a_slow_one_is_not(tmp_path):
    made = make_study(tmp_path, n=2, size=2048)
    server = Server(made.path).start(limits(STALL_SECONDS=3, HEADER_SECONDS=1.0, LOOK_SECONDS=0.2))
    try:
        client = Client(server)
        client.sign_in("anna")
        ask = f"GET /image/0 HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nCookie: {client.cookie}\r\n\r\n".encode()
        for slow in (False, True):
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
                connection.connect(("127.0.0.1", server.port))
                connection.sendall(ask)
                taken = 0
                for _ in range(9):
                    time.sleep(0.3 if slow else 0.5)
                    if slow:
                        taken += len(connection.recv(500_000))
                try:
                    while block := connection.recv(1 << 20):
                        taken += len(block)
                        if taken > made.image(made.images[0]).stat().st_size:
                            break
                except ConnectionError:
                    pass
            assert (taken > made.image(made.images[0]).stat().st_size) == slow
    finally:
        server.kill()


def test_one_address_cannot_take_all_connections(tmp_path):
    made = make_study(tmp_path, n=2)
    server = Server(made.path).start(limits(CONNECTIONS_OF_ADDRESS=20, HEADER_SECONDS=30))
    try:
        greedy = [socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.7", 0))
                  for _ in range(30)]  # fmt: skip
        time.sleep(0.5)
        states = []
        for connection in greedy:
            connection.settimeout(0.05)
            try:
                states.append(connection.recv(1) == b"")
            except TimeoutError:
                states.append(False)
            except ConnectionError:
                states.append(True)
        assert sum(states) == 10
        Client(server, "127.0.0.8").sign_in("anna")
        for connection in greedy:
            connection.close()
        time.sleep(0.5)
        Client(server, "127.0.0.7").sign_in("anna")
    finally:
        server.kill()


# Access


@pytest.mark.parametrize("host", ["127.0.0.5", "localhost", "::1", "::ffff:127.0.0.1"])
def test_every_address_that_counts_as_local_is_served(tmp_path, host):
    assert is_local(host)
    if ":" in host:
        try:
            socket.create_server((host, 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    made = make_study(tmp_path, n=2)
    with Server(made.path, host=host) as server:
        assert Client(server).sign_in("anna")["next"] == 0
        assert Client(server).request("GET", "/", headers={"Host": "hospital.example"})[0] == 400


def test_hosts():
    for header, host in (("127.0.0.1:80", "127.0.0.1"), ("[::1]:8000", "::1"), ("[::1]", "::1"), ("a:", "a"), ("", ""),
                         ("localhost", "localhost"), ("::1", ""), ("a:b", ""), ("[x]:1", "")):  # fmt: skip
        assert host_of(header) == host
    local = ("127.255.0.1", "::1", "::ffff:127.0.0.1", "LOCALHOST", "localhost.")
    others = ("0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "localhost.example", "", "127.0.0.1.example", "127.1")
    assert [is_local(host) for host in local] == [True] * 5
    assert [is_local(host) for host in others] == [False] * 8


def test_a_study_that_others_may_enter_is_warned_of(tmp_path, caplog, monkeypatch):
    made = make_study(tmp_path, n=2)
    made.path.chmod(0o755)
    monkeypatch.setattr("uvicorn.run", lambda *arguments, **options: None)
    serve(made.path, "127.0.0.1", 1)
    assert f"`chmod 700 {made.path}` keeps them out" in caplog.text


# Files that name other files


def test_a_study_names_images_of_its_own_only(tmp_path):
    made = make_study(tmp_path, n=2)
    record = json.loads((made.path / "study.json").read_text())
    (tmp_path / "outside.png").write_bytes(b"outside")
    for images in (["../../outside", *record["images"][1:]], [], None, [3], record["images"][::-1],
                   [record["images"][0]] * 4, ["0" * 15]):  # fmt: skip
        (made.path / "study.json").write_text(json.dumps({**record, "images": images}))
        with pytest.raises(StudyError, match=r"study\.json has changed since `vmddpm study create`"):
            Study.open(made.path)
    for field in ("title", "instructions", "shuffle", "images"):
        (made.path / "study.json").write_text(json.dumps({k: v for k, v in record.items() if k != field}))
        with pytest.raises(StudyError, match="restore it"):
            Study.open(made.path)


def test_a_key_that_says_too_little_is_a_sentence(tmp_path):
    made = make_study(tmp_path, n=2)
    record = json.loads((made.path / "key.json").read_text())
    images = record["images"]
    without = [{k: v for k, v in images[0].items() if k != "class"}, *images[1:]]
    for found, words in (({"schema": 1}, "another study"), ({**record, "images": 3}, "which image is which"),
                         ({**record, "images": without}, "'class' is missing"), ([], "not written by this version"),
                         ({**record, "images": [{**images[0], "class": "fake"}, *images[1:]]}, "classes other than"),
                         ({**record, "images": [None]}, "which image is which")):  # fmt: skip
        (made.path / "key.json").write_text(json.dumps(found))
        with pytest.raises(StudyError, match=words):
            load_key(made)
    os.unlink(made.path / "key.json")
    with pytest.raises(StudyError, match="give its path with --key"):
        load_key(made)
