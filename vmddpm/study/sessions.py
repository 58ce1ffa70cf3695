"""Sessions: signed cookies, and the sessions that were signed out before they expired."""

import json
import re
import secrets
import threading
import time

from vmddpm.study.answers import append_line, whole_lines
from vmddpm.study.folder import Study, StudyError, digest, write_secret

SESSION_SECONDS = 30 * 24 * 3600


def cookie_name(study: Study) -> str:
    """A cookie name for this study: a browser sends the cookies of a host to all its ports."""
    return f"vmddpm_study_{digest('cookie', study.shuffle)[:12]}"


def session_secret(study: Study) -> str:
    """The secret that signs cookies, stored so that sessions survive a restart. Raises StudyError if it is damaged."""
    path = study.path / "session.key"
    if not path.exists():
        write_secret(path, secrets.token_hex(32))
    try:
        secret = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read ({error}); remove it, and the readers sign in again") from error
    if not re.fullmatch(r"[0-9a-f]{64}", secret):
        raise StudyError(f"{path} is not a key of 64 digits; remove it, and the readers sign in again")
    return secret


class EndedSessions:
    """Signed-out sessions, stored on the disk until their cookies expire.

    Raises:
        StudyError: if the file is damaged.
    """

    def __init__(self, study: Study) -> None:
        self._path, self._lock = study.path / "signed-out.jsonl", threading.Lock()
        self._ended: set[str] = set()
        content = self._path.read_bytes() if self._path.exists() else b""
        lines, now, kept = whole_lines(content), time.time(), []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                ended, session = float(row["time"]), str(row["session"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise StudyError(f"{self._path}, line {number}, is damaged ({error}); remove the file, and session.key "
                                 "with it, and the readers sign in again") from error  # fmt: skip
            if now - ended < SESSION_SECONDS:
                kept.append(line + b"\n")
                self._ended.add(session)
        self._stored = set(self._ended)
        self._end = len(b"".join(kept))
        if self._end != len(content):
            write_secret(self._path, b"".join(kept).decode())

    def __contains__(self, session: str) -> bool:
        return session in self._ended

    def end(self, session: str) -> None:
        """End the session and flush this to the disk. Raises OSError if it cannot be stored."""
        self._ended.add(session)
        with self._lock:
            if session not in self._stored:
                line = json.dumps({"session": session, "time": time.time()}) + "\n"
                self._end = append_line(self._path, line.encode(), self._end, flush_folder=not self._stored)
                self._stored.add(session)
