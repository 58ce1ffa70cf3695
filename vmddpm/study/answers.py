"""The answers of one reader: a line of JSON for each, on the disk before anybody is told that it is stored.

A line is never changed. Going back to an image adds a line with the next revision, and the last revision counts. A page
says which revision it means to write and gives every answer an identifier of its own: an answer that is sent again,
because the acknowledgement was lost, is recognised, and one from a page that has fallen behind another is refused.
"""

import json
import math
import os
import re
import threading
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vmddpm.errors import InputError, VmddpmError
from vmddpm.study.folder import CLASSES, Study, StudyError

CONFIDENCES = ("low", "medium", "high")
LONGEST_SECONDS = 7 * 24 * 3600


class StaleAnswer(VmddpmError, ValueError):
    """The page that sent the answer does not know what another one has stored since."""


@dataclass(frozen=True)
class Sent:
    """What a page sends.

    Attributes:
        position: place of the image in the reader's order, from 0.
        revision: number of answers to the image that are stored already.
        answer: "real" or "synthetic".
        confidence: "low", "medium" or "high".
        seconds: from the image being shown to the answer being confirmed.
        page: version of the page.
        submission: the answer's own identifier.
    """

    position: int
    revision: int
    answer: str
    confidence: str
    seconds: float
    page: str
    submission: str

    @classmethod
    def parse(cls, content: Any) -> "Sent":
        """Raises InputError naming the field that is missing, unknown or unusable."""
        checks = {
            "position": _is_count, "revision": _is_count,
            "answer": CLASSES.__contains__, "confidence": CONFIDENCES.__contains__,
            "seconds": lambda x: type(x) in (int, float) and math.isfinite(x) and 0 <= x <= LONGEST_SECONDS,
            "page": _is_word, "submission": _is_word,
        }  # fmt: skip
        if not isinstance(content, dict) or set(content) != set(checks):
            raise InputError(f"an answer has exactly the fields {', '.join(checks)}")
        for name, usable in checks.items():
            if not usable(content[name]):
                raise InputError(f"{name} cannot be {content[name]!r:.60}")
        return cls(**content)


def _is_count(x: Any) -> bool:
    return type(x) is int and x >= 0


def _is_word(x: Any) -> bool:
    return isinstance(x, str) and re.fullmatch(r"[0-9a-f]{8,64}", x) is not None


class AnswerLog:
    """The log of one reader, open for more answers; safe to use from several threads.

    Raises:
        StudyError: if the log is damaged, or belongs to another study.
    """

    def __init__(self, study: Study, reader: str) -> None:
        self._path, self._reader, self._order = study.log(reader), reader, study.order(reader)
        self._lock = threading.Lock()
        rows, whole = read_log(self._path)
        if self._path.exists() and whole < self._path.stat().st_size:
            # The end of a line that was being written when the power went; nobody was told that it was stored.
            os.truncate(self._path, whole)
        self._submissions: set[str] = set()
        self._answers: list[list[dict[str, Any]]] = []  # by position, then revision
        for row in rows:
            if self._order[row["position"]] != row["image"]:
                raise StudyError(f"{self._path} belongs to another study: its images come in another order")
            self._take(row)

    def state(self) -> dict[str, Any]:
        """What a page needs to go on: how many images are done, and the last answer, which may be changed."""
        with self._lock:
            following, previous = len(self._answers), None
            if following:
                last = self._answers[-1]
                previous = {"revision": len(last), "answer": last[-1]["answer"], "confidence": last[-1]["confidence"]}
            return {"reader": self._reader, "total": len(self._order), "next": following, "previous": previous}

    def image(self, position: int) -> str | None:
        """The image at that place; None past the one after the next, which a page may load ahead."""
        reachable = min(len(self._answers) + 2, len(self._order))
        return self._order[position] if position < reachable else None

    def add(self, sent: Sent) -> None:
        """Stores an answer; it is on the disk when this returns.

        Raises:
            StaleAnswer: if the image is neither the next one nor the one before, or has other answers since.
            OSError: if it could not be stored; the log is as it was.
        """
        with self._lock:
            if sent.submission in self._submissions:
                return
            following = len(self._answers)
            stored = len(self._answers[sent.position]) if sent.position < following else 0
            if not (max(following - 1, 0) <= sent.position <= following and sent.position < len(self._order)):
                raise StaleAnswer(f"image {sent.position + 1} is not the one to be answered now")
            if sent.revision != stored:
                raise StaleAnswer(f"image {sent.position + 1} was answered in another window")
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            row = {"reader": self._reader, "image": self._order[sent.position], **vars(sent), "time": now}
            _append(self._path, (json.dumps(row) + "\n").encode())
            self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        if row["position"] == len(self._answers):
            self._answers.append([])
        self._answers[row["position"]].append(row)
        self._submissions.add(row["submission"])


def _append(path: Path, line: bytes) -> None:
    new = not path.exists()
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            rest = line
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise
    if new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a log, and the number of bytes that they take; what follows is a line that was cut short.

    Raises:
        StudyError: naming the line, if a whole line is not an answer, or answers are missing before it.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    rows: list[dict[str, Any]] = []
    revisions: list[int] = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            position = row["position"]
            Sent.parse({name: row[name] for name in Sent.__dataclass_fields__})
            if position == len(revisions):
                revisions.append(0)
            if row["revision"] != revisions[position]:
                raise InputError("a line before it is missing, or it is there twice")
            revisions[position] += 1
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise StudyError(f"{path}, line {number}, is damaged ({error}); restore the file from a copy") from error
        rows.append(row)
    return rows, whole


def final_answers(path: Path) -> list[dict[str, Any]]:
    """The row that counts for each image, in the order they were shown; `revision` says how often it was changed."""
    last = {row["position"]: row for row in read_log(path)[0]}
    return [last[position] for position in sorted(last)]
