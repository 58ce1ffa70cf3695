"""Random requests and files: a client's fault gets a 4xx answer, and a damaged file one of our errors."""

import asyncio
import hashlib
import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from study_helpers import an_answer, make_study

from vmddpm.data.image_file import ImageWriter
from vmddpm.data.store import StoredSlice, read_store, write_records
from vmddpm.errors import VmddpmError
from vmddpm.samples import Samples, check_drawn, read_samples
from vmddpm.study import Study
from vmddpm.study.answers import AnswerLog, Submission
from vmddpm.study.folder import load_key
from vmddpm.study.readers import load_readers, register
from vmddpm.study.server import application
from vmddpm.study.sessions import EndedSessions, session_secret
from vmddpm.training import RunFolder

VALUES = [None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, 10**30, 10**3000, -(10**3000), 0.0, -0.0, 0.5, 1e308,
          math.nan, math.inf, -math.inf, "", "a", "0", "real", "high", "\0", "\ud800", "\udfff\ud800", "ä", "😀",
          "\u202e", "../../key", "/etc/hostname", "..", ".", "a/b", "C:\\", "%00", "x" * 300, "9" * 5000, [], {}, [[]],
          [None], {"": None}, [1, "a", {}], {"a": {"b": {"c": []}}}]  # fmt: skip


def mutated(rng, value, depth=0):
    """The value, replaced or changed somewhere inside."""
    if depth and (not isinstance(value, (dict, list)) or not value or rng.random() < 0.2):
        return rng.choice(VALUES)
    if isinstance(value, dict) and value:
        name = rng.choice(list(value))
        kept = {k: v for k, v in value.items() if k != name}
        return rng.choice([
            lambda: {**value, name: mutated(rng, value[name], depth + 1)}, lambda: kept,
            lambda: {**kept, rng.choice([v for v in VALUES if isinstance(v, str)]): value[name]},
            lambda: {**value, "more": rng.choice(VALUES)},
        ])()  # fmt: skip
    if isinstance(value, list) and value:
        place = rng.randrange(len(value))
        return [*value[:place], mutated(rng, value[place], depth + 1), *value[place + 1 :]]
    return rng.choice(VALUES)


def corrupted(rng, content):
    """The bytes with some deleted, inserted or changed."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice([0, 0, 1, 2, 10, len(content)]))
        filling = rng.choice([b"", b"\0", b"\xff", b'"', b"[", b"{", b"\n", b"9" * 4000, b"[" * 3000, b"\\ud800",
                               b"1e999", rng.randbytes(8)])  # fmt: skip
        content = content[:start] + filling + content[end:]
    return content


def as_bytes(rng, plain):
    """JSON of the mutated value, often invalid JSON."""
    if rng.random() < 0.8:
        plain = mutated(rng, plain)
    content = json.dumps(plain).encode()
    return corrupted(rng, content) if rng.random() < 0.4 else content


async def ask(app, path, body, headers, pieces=1):
    """(status, body) of a POST."""
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
             "query_string": b"", "root_path": "", "scheme": "http", "client": ("127.0.0.1", 1),
             "server": ("127.0.0.1", 8000), "headers": [(b"host", b"127.0.0.1:8000"), *headers]}  # fmt: skip
    size = max(1, -(-len(body) // pieces))
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    waiting = [{"type": "http.request", "body": p, "more_body": i + 1 < len(parts)} for i, p in enumerate(parts)]
    sent = []

    async def receive():
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    cookies = [value for name, value in sent[0]["headers"] if name == b"set-cookie"]
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]), cookies


JSON = (b"content-type", b"application/json")
SIGN_IN, SIGN_OUT = {"code": "anna", "password": "abcd-efgh-jkmn"}, {}


@pytest.mark.parametrize("registered", [False, True], ids=["open", "passwords"])
def test_posts(tmp_path, registered, monkeypatch):
    """3,000 posts per kind of study, to all three routes, get 200 or 4xx with a message."""
    study = make_study(tmp_path, n=3)
    if registered:
        monkeypatch.setattr("vmddpm.study.readers._hash", lambda password, salt: password.encode().hex())  # faster
        password = register(study, ["anna"])["anna"]
    else:
        password = ""
    app = application(study, local=True)
    rng, seen = random.Random(registered), {}

    async def fuzz():
        code = {"code": "anna", "password": password}
        status, _, (cookie,) = await ask(app, "/sign-in", json.dumps(code).encode(), [JSON])
        assert status == 200
        cookie = cookie.split(b";")[0]
        for _ in range(3000):
            path, plain = rng.choice([("/sign-in", SIGN_IN), ("/sign-out", SIGN_OUT), ("/answer", an_answer(0))])
            headers = [JSON if rng.random() < 0.9 else (b"content-type", rng.randbytes(5))]
            if path == "/answer" or rng.random() < 0.3:
                signed = cookie if rng.random() < 0.8 else corrupted(rng, cookie)
                headers.append((b"cookie", signed if path == "/answer" else signed[:-5]))
            if rng.random() < 0.1:
                headers.append((rng.choice([b"origin", b"sec-fetch-site"]), rng.randbytes(6)))
            body = as_bytes(rng, plain)
            status, response, _ = await ask(app, path, body, headers, pieces=rng.randint(1, 3))
            assert status == 200 or 400 <= status < 500, (status, path, body[:300], headers)
            assert status == 200 or isinstance(json.loads(response)["error"], str)
            seen.setdefault(path, set()).add(status)

    asyncio.run(fuzz())
    assert seen["/answer"] >= {400, 401, 403, 415}
    assert seen["/sign-in"] >= {400, 403, 413, 415} | (set() if registered else {200})
    AnswerLog(study, "anna")  # the stored answers can be read


def a_store(folder):
    with ImageWriter(folder / "images.npy", (1, 4, 4)) as writer:
        for value in (1, 2):
            writer.append(np.full((1, 4, 4), value, np.uint16))
        writer.commit()
    slices = [StoredSlice(f"{i}.png", str(i), "train", "z", 0, 0, 0.0, 1.0, 0, "0" * 64) for i in range(2)]
    write_records(folder, slices, {"skipped": [], "seen": 2}, folder / "store.json")


def files(folder):
    """(file, contents, reader) of every file that names or describes other files."""
    study = make_study(folder, n=2)
    register(study, ["anna"])
    session_secret(study)
    EndedSessions(study).end("a" * 32)
    log = AnswerLog(study, "anna")
    for position in range(2):
        log.add(Submission.parse(an_answer(position)))
    samples = Samples(folder / "samples", 4, 2, "npy")
    samples.create_or_resume({"weights": "ema", "seed": 0})
    for block in samples.blocks:
        samples.write(block, np.zeros((2, 4, 4, 1), np.uint8))
    samples.finish()
    a_store(folder / "store")

    def store():
        """Store the damaged manifest with a matching checksum, so that the parser is tested."""
        record = json.loads((folder / "store" / "store.json").read_text())
        record["manifest_sha256"] = hashlib.sha256((folder / "store" / "manifest.jsonl").read_bytes()).hexdigest()
        (folder / "store" / "store.json").write_text(json.dumps(record))
        read_store(folder / "store")

    return [
        (study.path / "study.json", lambda: Study.open(study.path)),
        (study.path / "key.json", lambda: load_key(study)),
        (study.path / "readers.json", lambda: load_readers(study)),
        (study.path / "session.key", lambda: session_secret(study)),
        (study.path / "signed-out.jsonl", lambda: EndedSessions(study)),
        (study.log("anna"), lambda: AnswerLog(study, "anna")),
        (folder / "samples" / "manifest.json", lambda: list(read_samples(folder / "samples"))),
        (folder / "samples" / "manifest.json", lambda: check_drawn(folder / "samples", RunFolder(folder / "run"))),
        (folder / "samples" / "sampling.yaml", lambda: check_drawn(folder / "samples", RunFolder(folder / "run"))),
        (folder / "store" / "store.json", lambda: read_store(folder / "store")),
        (folder / "store" / "manifest.jsonl", store),
    ]  # fmt: skip


opened: list[Path] | None = None  # a list records opened files


def _record_open(event, arguments):
    if opened is not None and event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.append(Path(arguments[0].decode(errors="replace") if isinstance(arguments[0], bytes) else arguments[0]))


def test_files(tmp_path):
    """5,000 damaged files are read, or refused with one of our errors; no file of another folder is opened."""
    global opened
    sys.addaudithook(_record_open)
    rng, refused, messages, readers = random.Random(1), {}, [], files(tmp_path)
    for path, read in readers:
        whole = path.read_bytes()
        lines = path.suffix == ".jsonl"
        for _ in range(5000 // len(readers) + 1):
            if path.suffix == ".json":
                content = as_bytes(rng, json.loads(whole))
            elif lines:
                rows = whole.splitlines()
                place = rng.randrange(len(rows))
                rows[place] = as_bytes(rng, json.loads(rows[place]))
                content = b"\n".join(rows) + b"\n"
            else:
                content = corrupted(rng, whole)
            path.write_bytes(content)
            opened = []
            try:
                read()
            except VmddpmError as error:
                refused[path.name] = refused.get(path.name, 0) + 1
                messages.append(str(error))
            except Exception as error:
                raise AssertionError(f"{path.name}: {content[:500]!r}") from error
            finally:
                asked, opened = opened, None
            outside = {place for place in map(Path.resolve, asked) if not place.is_relative_to(tmp_path)}
            assert all(place.suffix in (".py", ".pyc") for place in outside)
        path.write_bytes(whole)
        read()
    assert all("\n" not in words for words in messages)
    assert len(refused) == len({path for path, _ in readers})
    assert all(count > 200 for count in refused.values()), refused
