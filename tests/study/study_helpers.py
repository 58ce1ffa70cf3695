"""Studies of synthetic images, and servers for them in their own processes."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.ndimage import gaussian_filter

from vmddpm.data import DataConfig
from vmddpm.study import Study
from vmddpm.study.create import CreateOptions, create_study


def write_images(folder, count, seed, size=48, smooth=2.0, **save):
    """Write random grey images; smoother images compress to smaller files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        field = gaussian_filter(rng.normal(size=(size, size)), smooth)
        pixels = np.clip(128 + 50 * field / field.std(), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{folder.name}-{number:03}.png", **save)


def png_text(text):
    info = PngInfo()
    info.add_text("Comment", text)
    return info


def make_study(folder, n=10, size=32, seed=7, **options) -> Study:
    """A study of smooth "real" images with a comment in the file and noisy "synthetic" images of another size."""
    write_images(folder / "hospital", n + 3, 1, pnginfo=png_text("real"))
    write_images(folder / "generated", n + 3, 2, size=40, smooth=0.5)
    data = {"size": size, "min_foreground": 0.0, "cache_dir": str(folder / "cache")}
    create_study(
        DataConfig(root=str(folder / "hospital"), **data), DataConfig(root=str(folder / "generated"), **data),
        folder / "study", CreateOptions(images=n, seed=seed, patient=r"(\d+)\.png", **options),
    )  # fmt: skip
    return Study.open(folder / "study")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`serve` in a process, as a context manager; it can be killed and restarted on the same port."""

    def __init__(self, path, port=None, host="127.0.0.1"):
        self.path, self.port, self.host = Path(path), port or free_port(), host
        self.url = f"http://{host}:{self.port}/"

    def start(self, before="pass"):
        """before: Python code that the process runs first."""
        code = f"{before}\nfrom vmddpm.study.server import serve; serve({str(self.path)!r}, {self.host!r}, {self.port})"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
                return self
            except OSError:
                assert self.process.poll() is None, "the server has stopped"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.05)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self.start()

    def __exit__(self, *failure):
        self.kill()


class Client:
    """The HTTP side of a reader's browser: one connection, cookies, and the last state from the server."""

    def __init__(self, server, source=None):
        """source: the client's address, one of this machine's."""
        self.server, self.source, self.cookie, self.connection = server, source, None, None

    def request(self, method, path, content=None, headers=None):
        """Returns (status, headers, body). The path is sent unchanged; content is bytes, or is sent as JSON."""
        if self.connection is None:
            source = self.source and (self.source, 0)
            self.connection = http.client.HTTPConnection(
                self.server.host, self.server.port, timeout=30, source_address=source
            )
        body = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
        try:
            sent = {**({"Cookie": self.cookie} if self.cookie else {}), "Content-Type": "application/json",
                    **(headers or {})}  # fmt: skip
            self.connection.request(method, path, body=body, headers=sent)
            response = self.connection.getresponse()
            given = response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = None
            raise
        for name, value in response.getheaders():
            if name == "set-cookie":
                self.cookie = value.split(";")[0]
        return response.status, response.getheaders(), given

    def json(self, method, path, content=None):
        status, _, body = self.request(method, path, content)
        return status, json.loads(body)

    def sign_in(self, code, password=""):
        status, state = self.json("POST", "/sign-in", {"code": code, "password": password})
        assert status == 200, state
        return state


def an_answer(position, revision=0, answer="real", confidence="high", submission=None):
    return {"position": position, "revision": revision, "answer": answer, "confidence": confidence, "seconds": 1.5,
            "page": "0123456789ab", "submission": submission or f"{position:08x}{revision:08x}"}  # fmt: skip


def rows_of(study, reader):
    path = study.log(reader)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
