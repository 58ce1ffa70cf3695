"""The server of a study."""

import base64
import hashlib
import ipaddress
import logging
import re
import ssl
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from vmddpm.files import LockedError, lock
from vmddpm.study.folder import Study, StudyError, digest
from vmddpm.study.limits import CONNECTIONS, HEADER_BYTES, LimitedProtocol, return_large_blocks
from vmddpm.study.readers import load_readers
from vmddpm.study.routes import StudyServer
from vmddpm.study.sessions import SESSION_SECONDS, cookie_name, session_secret

SHUTDOWN_SECONDS = 5

logger = logging.getLogger(__name__)


def page_and_headers() -> tuple[bytes, dict[str, str]]:
    """The page, and the response headers, which allow only its own style and script.

    Style and script are inline: if the script were a separate file and the server died between the two requests, the
    page would stay blank and never retry.
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
    """The hash of a style or script for the Content Security Policy (level 2)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def application(study: Study, *, local: bool, encrypted: bool = False) -> Any:
    """The ASGI application.

    Args:
        local: only this machine can reach it: no password is needed while no reader is registered, and requests with
            the host name of another site (DNS rebinding) are refused.
        encrypted: it is served over HTTPS, and the cookie is sent only over HTTPS.

    Raises:
        StudyError: as `StudyServer`, or if the session's key is damaged.
    """
    session = Middleware(
        SessionMiddleware, secret_key=session_secret(study), session_cookie=cookie_name(study),
        max_age=SESSION_SECONDS, same_site="strict", https_only=encrypted,
    )  # fmt: skip

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    def unusable(request: Request, error: Exception) -> Response:
        logger.error("a request cannot be answered: %s", error)
        return JSONResponse({"error": "The study's files cannot be read; tell whoever serves it."}, 503)

    page, headers = page_and_headers()
    server = StudyServer(study, page, anyone=local)
    handlers: Any = {HTTPException: refused, StudyError: unusable, OSError: unusable, ClientDisconnect: _client_gone}
    inner = Starlette(routes=server.routes(), middleware=[session], exception_handlers=handlers)
    inner.router.redirect_slashes = False  # only the exact paths of the routes exist
    fixed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    elsewhere = PlainTextResponse("The request's Host is not a name of this machine.", 400)

    async def with_headers(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *fixed]
            await send(message)

        known = not local or is_local(host_of(Headers(scope=scope).get("host", "")))
        await (inner if known else elsewhere)(scope, receive, send_with_headers)

    return with_headers


def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the client has disconnected


def host_of(header: str) -> str:
    """The host in a Host header, without port and brackets; "" if the header is invalid."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]*)?", header)
    return (match[1] or match[2]) if match else ""


def is_local(host: str) -> bool:
    """Whether a host name or address is local to this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def serve(
    path: str | Path, host: str, port: int, certificate: str | None = None, private_key: str | None = None
) -> None:
    """Serve a study until interrupted.

    Raises:
        StudyError: if the study is already being served, if other machines could reach it and no reader has a password,
            or if the port or the certificate is unusable.
    """
    import uvicorn

    return_large_blocks()
    study, local = Study.open(path), is_local(host)
    if not local and not load_readers(study):
        raise StudyError(f"other machines can reach {host}, but no reader has a password; make some with "
                         f"`vmddpm study readers {path} CODE ...`")  # fmt: skip
    if (certificate is None) != (private_key is None):
        raise StudyError("certificate and private_key belong together; give both or neither")
    for name in (certificate, private_key):
        if name is not None and not Path(name).is_file():
            raise StudyError(f"{name} is not a file; certificate and private_key must be PEM files")
    if not 0 <= port < 2**16:
        raise StudyError(f"port is {port}; it must be from 0 to {2**16 - 1}")
    encrypted = certificate is not None
    if study.path.stat().st_mode & 0o077:
        logger.warning(
            "other users of this machine can open %s, which has the readers' answers; `chmod 700 %s` keeps them out",
            path, path,
        )  # fmt: skip
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(study.path / "server.lock"))
        except LockedError as error:
            raise StudyError(
                f"{path} is being served already by {error.holder}; stop the other server first{error.advice}"
            ) from None
        app = application(study, local=local, encrypted=encrypted)
        if not (local or encrypted):
            logger.warning("passwords and answers are sent unencrypted; give --certificate and --private-key, or put "
                           "an HTTPS proxy in front of this server")  # fmt: skip
        address = f"http{'s' if encrypted else ''}://{f'[{host}]' if ':' in host else host}:{port}"
        logger.info("%s: %s (Ctrl-C stops; answers are in %s)", study.title, address, study.path / "answers")
        try:
            uvicorn.run(app, host=host, port=port, log_level="error", server_header=False, access_log=False,
                        http=LimitedProtocol, ws="none", lifespan="off", loop="asyncio",
                        limit_concurrency=CONNECTIONS, h11_max_incomplete_event_size=HEADER_BYTES,
                        timeout_graceful_shutdown=SHUTDOWN_SECONDS, ssl_certfile=certificate,
                        ssl_keyfile=private_key)  # fmt: skip
        except ssl.SSLError as error:
            raise StudyError(f"{certificate} and {private_key} must be a certificate and its key, PEM files "
                             f"({error})") from error  # fmt: skip
