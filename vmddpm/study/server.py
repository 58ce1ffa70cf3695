"""The page and its few routes. None takes a name or a path from the client, so there is none to be made up.

An image is asked for by its place in the order of the reader who is signed in. Every image is answered by the same
number of bytes under the same headers.
"""

import base64
import fcntl
import hashlib
import ipaddress
import json
import secrets
import ssl
import sys
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vmddpm.errors import InputError
from vmddpm.study.answers import AnswerLog, Sent, StaleAnswer
from vmddpm.study.folder import Study, StudyError, digest, write_secret
from vmddpm.study.readers import is_password, load_readers, reader_code

LONGEST_BODY = 4096
SESSION_SECONDS = 30 * 24 * 3600
LOCAL_NAMES = ["127.0.0.1", "localhost", "[::1]"]


def the_page() -> tuple[bytes, dict[str, str]]:
    """The page, and the headers of every answer, which let it run its own style and script and nothing else.

    It is one document: were its script a file of its own, a server killed between the two would leave a page that
    shows nothing and never asks again.
    """
    page, *parts = (
        files("vmddpm.study").joinpath("page", name).read_text(encoding="utf-8")
        for name in ("index.html", "study.css", "viewer.js", "study.js")
    )
    version = digest(page, *parts)[:12]
    style, script = parts[0], parts[1] + parts[2]
    page = page.replace("{page version}", version).replace("{style}", style).replace("{script}", script)
    return page.encode(), {
        "Cache-Control": "no-store",
        "Content-Security-Policy": f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
                                   "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                                   "frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }  # fmt: skip


def _source(text: str) -> str:
    """Names a style or a script by its content (Content Security Policy level 2)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class StudyServer:
    """The routes of one study.

    Args:
        study: what is served.
        page: what a browser is given first.
        anyone: whether any code may sign in, without a password, while no reader is registered.
    """

    def __init__(self, study: Study, page: bytes, anyone: bool) -> None:
        self._study, self._anyone = study, anyone
        self._logs: dict[str, AnswerLog] = {}
        self._lock = threading.Lock()
        self._page = page
        self._about = {"title": study.title, "instructions": study.instructions}
        for reader in study.readers_with_answers():
            self._log(reader)

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/sign-in", self.sign_in, methods=["POST"]),
            Route("/sign-out", self.sign_out, methods=["POST"]),
            Route("/state", self.state),
            Route("/image/{position:int}", self.image),
            Route("/answer", self.answer, methods=["POST"]),
        ]

    async def page(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html")

    async def sign_in(self, request: Request) -> Response:
        content = await _json(request)
        try:
            code, password = reader_code(content["code"]), str(content.get("password", ""))
        except (KeyError, AttributeError, TypeError, StudyError):
            raise HTTPException(400, "A reader code has letters, digits, - and _ only.") from None
        if not self._open() and not await run_in_threadpool(is_password, self._study, code, password):
            raise HTTPException(403, "This code and password do not belong together.")
        request.session.update(reader=code, salt=self._salt(code))
        return JSONResponse({**self._about, **self._log(code).state()})

    async def sign_out(self, request: Request) -> Response:
        request.session.clear()
        return JSONResponse({})

    async def state(self, request: Request) -> Response:
        return JSONResponse({**self._about, **self._log_of(request).state()})

    async def image(self, request: Request) -> Response:
        name = self._log_of(request).image(request.path_params["position"])
        if name is None:
            raise HTTPException(404, "This image is not to be answered yet.")
        return Response(await run_in_threadpool(self._study.image(name).read_bytes), media_type="image/png")

    async def answer(self, request: Request) -> Response:
        log = self._log_of(request)
        try:
            sent = Sent.parse(await _json(request))
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        try:
            await run_in_threadpool(log.add, sent)
        except StaleAnswer as error:
            return JSONResponse({"error": str(error), **log.state()}, 409)
        except OSError as error:
            print(f"an answer could not be stored: {error}", file=sys.stderr)
            raise HTTPException(503, f"The answer could not be stored ({error.strerror}).") from error
        return JSONResponse(log.state())

    def _open(self) -> bool:
        return self._anyone and not load_readers(self._study)

    def _salt(self, reader: str) -> str:
        """Changes with the password, which ends the sessions that the old one began."""
        return load_readers(self._study).get(reader, {"salt": ""})["salt"]

    def _log_of(self, request: Request) -> AnswerLog:
        reader, salt = request.session.get("reader"), request.session.get("salt")
        if reader is None or salt != self._salt(reader) or not (salt or self._open()):
            raise HTTPException(401, "Please sign in.")
        return self._log(reader)

    def _log(self, reader: str) -> AnswerLog:
        with self._lock:
            if reader not in self._logs:
                self._logs[reader] = AnswerLog(self._study, reader)
            return self._logs[reader]


async def _json(request: Request) -> Any:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise HTTPException(413, "This is too long.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "This is not JSON.") from None


def application(study: Study, *, local: bool, encrypted: bool = False) -> Any:
    """The ASGI application.

    Args:
        local: only this machine reaches it: no password is needed while no reader is registered, and requests that
            other web sites make to this machine under their own name are refused.
        encrypted: it is served by HTTPS, and the cookie travels by nothing else.
    """
    session = Middleware(
        SessionMiddleware, secret_key=_session_secret(study), session_cookie="vmddpm_study", max_age=SESSION_SECONDS,
        same_site="strict", https_only=encrypted,
    )  # fmt: skip
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_NAMES if local else ["*"], www_redirect=False)

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    page, headers = the_page()
    server = StudyServer(study, page, anyone=local)
    inner = Starlette(routes=server.routes(), middleware=[hosts, session], exception_handlers={HTTPException: refused})
    inner.router.redirect_slashes = False  # a path is one of the few above, or nothing
    fixed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def with_headers(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *fixed]
            await send(message)

        await inner(scope, receive, send_with_headers)

    return with_headers


def _session_secret(study: Study) -> str:
    """Signs the cookies; kept, so that a restart signs nobody out."""
    path = study.path / "session.key"
    if not path.exists():
        write_secret(path, secrets.token_hex(32))
    return path.read_text(encoding="utf-8")


def is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    path: str | Path, host: str, port: int, certificate: str | None = None, private_key: str | None = None
) -> None:
    """Serves a study until it is interrupted.

    Raises:
        StudyError: if the study is being served already, other machines could reach it and no reader has a password, or
            the port or the certificate cannot be used.
    """
    import uvicorn

    study, local = Study.open(path), is_local(host)
    if not local and not load_readers(study):
        raise StudyError(f"other machines reach {host}, and no reader has a password; make some with "
                         f"`vmddpm study readers {path} CODE ...`")  # fmt: skip
    if (certificate is None) != (private_key is None):
        raise StudyError("certificate and private_key belong together; give both or neither")
    for name in (certificate, private_key):
        if name is not None and not Path(name).is_file():
            raise StudyError(f"{name} is no file; certificate and private_key name PEM files")
    if not 0 <= port < 2**16:
        raise StudyError(f"port is {port}; it must be from 0 to {2**16 - 1}")
    encrypted = certificate is not None
    with open(study.path / "server.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(f"{path} is being served already; stop the other server first") from None
        app = application(study, local=local, encrypted=encrypted)
        if not (local or encrypted):
            print("warning: passwords and answers travel unencrypted; give --certificate and --private-key, or put a "
                  "server that speaks HTTPS before this one", file=sys.stderr)  # fmt: skip
        address = f"http{'s' if encrypted else ''}://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"{study.title}: {address} (Ctrl-C stops; answers are in {study.path / 'answers'})", flush=True)
        try:
            uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False, access_log=False,
                        ws="none", lifespan="off", ssl_certfile=certificate, ssl_keyfile=private_key)  # fmt: skip
        except ssl.SSLError as error:
            raise StudyError(f"{certificate} and {private_key} must be a certificate and its key, PEM files "
                             f"({error})") from error  # fmt: skip
