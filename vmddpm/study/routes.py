"""The HTTP routes of a study. No route takes a name or a path from the client.

Images are requested by position in the order of the signed-in reader. All image responses have the same number of bytes
and the same headers.
"""

import asyncio
import json
import logging
import math
import re
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from anyio import CapacityLimiter, fail_after, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vmddpm.errors import InputError
from vmddpm.study.answers import AnswerLog, StaleAnswer, Submission
from vmddpm.study.folder import Study, StudyError
from vmddpm.study.limits import BODY_SECONDS, BusyError, PasswordHashing, SignInGuesses
from vmddpm.study.readers import is_password, load_readers, reader_code
from vmddpm.study.sessions import EndedSessions

MAX_BODY_BYTES = 4096

logger = logging.getLogger(__name__)
READS, WRITES = 16, 64  # threads

T = TypeVar("T")


class StudyServer:
    """The routes of one study. Disk access and password hashing run in threads, so that one reader does not wait for
    another's.

    Args:
        study: the study to serve.
        page: the HTML page.
        anyone: whether any code may sign in, without a password, while no reader is registered.

    Raises:
        StudyError: if a log, or the list of readers or of ended sessions, is damaged.
    """

    def __init__(self, study: Study, page: bytes, anyone: bool) -> None:
        self._study, self._anyone = study, anyone
        load_readers(study)
        self._logs = {reader: AnswerLog(study, reader) for reader in study.readers_with_answers()}
        self._opening = threading.Lock()
        self._ended = EndedSessions(study)
        self._guesses, self._hashing = SignInGuesses(), PasswordHashing()
        self._reads, self._writes = CapacityLimiter(READS), CapacityLimiter(WRITES)
        self._reader_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # a reader's answers, one by one
        self._page = page
        self._study_texts = {"title": study.title, "instructions": study.instructions}

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/sign-in", self.sign_in, methods=["POST"]),
            Route("/sign-out", self.sign_out, methods=["POST"]),
            Route("/state", self.state),
            Route("/image/{position}", self.image),
            Route("/answer", self.answer, methods=["POST"]),
        ]

    async def page(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html")

    async def sign_in(self, request: Request) -> Response:
        content = await _json(request)
        try:
            code, password = reader_code(content["code"]), str(content.get("password", ""))
            password.encode()
        except (KeyError, AttributeError, TypeError, UnicodeEncodeError, StudyError):
            raise HTTPException(400, "A reader code has letters, digits, - and _ only.") from None
        readers = await self._readers()
        if not (self._anyone and not readers):
            await self._authenticate(request.client.host if request.client else "", code, password)
        log = await to_thread.run_sync(self._log, code, limiter=self._reads)
        request.session.update(reader=code, salt=_salt(readers, code), id=secrets.token_hex(16))
        return JSONResponse({**self._study_texts, **log.state()})

    async def _authenticate(self, address: str, code: str, password: str) -> None:
        try:
            self._guesses.check(address)
            right = await self._hashing.run(is_password, self._study, code, password)
        except BusyError as error:
            seconds = math.ceil(error.seconds)
            raise HTTPException(429, f"Too many sign-ins. Please try again in {seconds} s.",
                                {"Retry-After": str(seconds)}) from None  # fmt: skip
        if not right:
            self._guesses.record_failure(address)
            raise HTTPException(403, "This code and password do not belong together.")

    async def sign_out(self, request: Request) -> Response:
        await _json(request)
        session = request.session.get("id")
        if session is not None:
            await self._store(self._ended.end, session)
        request.session.clear()
        return JSONResponse({})

    async def state(self, request: Request) -> Response:
        return JSONResponse({**self._study_texts, **(await self._log_of(request)).state()})

    async def image(self, request: Request) -> Response:
        log, position = await self._log_of(request), request.path_params["position"]
        name = log.image(int(position)) if re.fullmatch("[0-9]{1,9}", position) else None
        if name is None:
            raise HTTPException(404, "This image cannot be answered yet.")
        content = await to_thread.run_sync(self._study.image(name).read_bytes, limiter=self._reads)
        return Response(content, media_type="image/png")

    async def answer(self, request: Request) -> Response:
        log = await self._log_of(request)
        try:
            sent = Submission.parse(await _json(request))
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        try:
            async with self._reader_locks[request.session["reader"]]:
                await self._store(log.add, sent)
        except StaleAnswer as error:
            return JSONResponse({"error": str(error), **log.state()}, 409)
        return JSONResponse(log.state())

    async def _store(self, store: Callable[[T], None], what: T) -> None:
        try:
            await to_thread.run_sync(store, what, limiter=self._writes)
        except OSError as error:
            logger.error("an answer or a sign-out could not be stored: %s", error)
            raise HTTPException(503, f"This could not be stored ({error.strerror}).") from error

    async def _readers(self) -> dict[str, dict[str, str]]:
        return await to_thread.run_sync(load_readers, self._study, limiter=self._reads)

    async def _log_of(self, request: Request) -> AnswerLog:
        reader, salt, session = (request.session.get(name) for name in ("reader", "salt", "id"))
        if reader is None or session is None or session in self._ended:
            raise HTTPException(401, "Please sign in.")
        readers = await self._readers()
        if salt != _salt(readers, reader) or not (salt or (self._anyone and not readers)):
            raise HTTPException(401, "Please sign in.")
        if reader not in self._logs:
            await to_thread.run_sync(self._log, reader, limiter=self._reads)
        return self._logs[reader]

    def _log(self, reader: str) -> AnswerLog:
        with self._opening:
            if reader not in self._logs:
                self._logs[reader] = AnswerLog(self._study, reader)
            return self._logs[reader]


def _salt(readers: dict[str, dict[str, str]], reader: str) -> str:
    """The salt of a reader's password. It is new for each password, so a new password ends earlier sessions."""
    return readers.get(reader, {"salt": ""})["salt"]


async def _json(request: Request) -> Any:
    """The body of a request from a page of this server."""
    if _is_foreign(request):
        raise HTTPException(403, "This was sent by a page of another site.")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "The Content-Type is not JSON.")
    body = b""
    try:
        with fail_after(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, "The request is too long.")
    except TimeoutError:
        raise HTTPException(408, "The request did not arrive in time.", {"Connection": "close"}) from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "The request is not JSON.") from None


def _is_foreign(request: Request) -> bool:
    """Whether a page of another site sent the request, by headers that browsers send and other programs may omit."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site != "same-origin"
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
    except ValueError:
        return True
