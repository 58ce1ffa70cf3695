"""The answers of a reader: one line of JSON each, flushed to the disk before success is reported.

A line is never changed. Going back to an image adds a line with the next revision, and the last revision counts. With
each answer, a page sends the revision that it expects to write and a unique identifier: a repeated answer, after a lost
acknowledgement, is recognised, and an answer from an outdated page is refused.
"""

import json
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vmddpm.errors import InputError, VmddpmError
from vmddpm.files import flush
from vmddpm.study.folder import CLASSES, Study, StudyError

CONFIDENCES = ("low", "medium", "high")
MAX_SECONDS = 7 * 24 * 3600
MAX_COUNT = 10**6  # images in a study, and answers to one image


class StaleAnswer(VmddpmError, ValueError):
    """The answer comes from a page that is out of date: another page has stored a newer answer."""


@dataclass(frozen=True)
class Submission:
    """An answer as a page sends it.

    Attributes:
        position: place of the image in the reader's order, from 0.
        revision: number of answers to the image stored before this one.
        answer: "real" or "synthetic".
        confidence: "low", "medium" or "high".
        seconds: from the image being shown to the answer being confirmed.
        page: version of the page.
        submission: unique identifier of the answer.
    """

    position: int
    revision: int
    answer: str
    confidence: str
    seconds: float
    page: str
    submission: str

    @classmethod
    def parse(cls, content: Any) -> "Submission":
        """Raises InputError naming the field that is missing, unknown or unusable."""
        checks = {
            "position": _is_count, "revision": _is_count,
            "answer": CLASSES.__contains__, "confidence": CONFIDENCES.__contains__,
            "seconds": lambda x: type(x) in (int, float) and 0 <= x <= MAX_SECONDS,  # False for NaN
            "page": _is_word, "submission": _is_word,
        }  # fmt: skip
        if not isinstance(content, dict) or set(content) != set(checks):
            raise InputError(f"an answer must have exactly the fields {', '.join(checks)}")
        for name, usable in checks.items():
            if not usable(content[name]):
                raise InputError(f"{name} cannot be {content[name]!r:.60}")
        return cls(**content)


def _is_count(x: Any) -> bool:
    return type(x) is int and 0 <= x < MAX_COUNT


def _is_word(x: Any) -> bool:
    return isinstance(x, str) and re.fullmatch(r"[0-9a-f]{8,64}", x) is not None


class AnswerLog:
    """The open log of a reader; thread-safe.

    Raises:
        StudyError: if the log is damaged, or belongs to another study.
    """

    def __init__(self, study: Study, reader: str) -> None:
        self._path, self._reader, self._order = study.log(reader), reader, study.order(reader)
        self._lock = threading.Lock()
        # A partial last line is left by a power cut; its answer was never reported as stored.
        rows, self._end = read_log(self._path)
        check_rows(self._path, rows, reader, self._order)
        if self._path.exists() and self._end < self._path.stat().st_size:
            os.truncate(self._path, self._end)
        self._flushed = False  # whether the file's name is known to be on the disk
        self._submissions: set[str] = set()
        self._answers: list[list[dict[str, Any]]] = []  # by position, then revision
        self._state: dict[str, Any] = {"reader": reader, "total": len(self._order), "next": 0, "previous": None}
        for row in rows:
            self._take(row)

    def state(self) -> dict[str, Any]:
        """The state for a page: the number of answered images, and the last answer, which may be changed. Never blocks,
        even while an answer is being stored."""
        return self._state

    def image(self, position: int) -> str | None:
        """The image at this position; None beyond the one after the next image, which a page may prefetch."""
        reachable = min(self._state["next"] + 2, len(self._order))
        return self._order[position] if position < reachable else None

    def add(self, sent: Submission) -> None:
        """Store an answer and flush it to the disk.

        Raises:
            StaleAnswer: if the image is neither the next nor the previous one, or has newer answers.
            OSError: if it could not be stored; the log is unchanged.
        """
        with self._lock:
            if sent.submission in self._submissions:
                return
            following = len(self._answers)
            stored = len(self._answers[sent.position]) if sent.position < following else 0
            if not (max(following - 1, 0) <= sent.position <= following and sent.position < len(self._order)):
                raise StaleAnswer(f"image {sent.position + 1} is not the current image")
            if sent.revision != stored:
                raise StaleAnswer(f"image {sent.position + 1} was answered in another window")
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            row = {"reader": self._reader, "image": self._order[sent.position], **vars(sent), "time": now}
            line = (json.dumps(row) + "\n").encode()
            self._end = append_line(self._path, line, self._end, flush_folder=not self._flushed)
            self._flushed = True
            self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        if row["position"] == len(self._answers):
            self._answers.append([])
        self._answers[row["position"]].append(row)
        self._submissions.add(row["submission"])
        last = self._answers[-1]
        previous = {"revision": len(last), "answer": last[-1]["answer"], "confidence": last[-1]["confidence"]}
        self._state = {**self._state, "next": len(self._answers), "previous": previous}


def append_line(path: Path, line: bytes, end: int, *, flush_folder: bool) -> int:
    """Append a line to a log and flush it to the disk.

    Args:
        line: the line, including its line end.
        end: length of the valid log in bytes; anything beyond is left by a failed attempt, and is removed.
        flush_folder: also flush the folder, because the file's name may not be on the disk yet.

    Returns:
        The new length of the valid log.

    Raises:
        OSError: if it could not be stored.
        StudyError: if the log has become shorter.
    """
    with open(path, "ab", buffering=0) as file:
        if file.tell() < end:
            raise StudyError(f"{path} was truncated by another program; restore it from a copy, and start again")
        if file.tell() > end:
            file.truncate(end)
        try:
            rest = line
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
            if flush_folder:
                flush(path.parent)
        except OSError:
            with suppress(OSError):  # the disk may have become read-only; the next attempt truncates
                file.truncate(end)
            raise
    return end + len(line)


def whole_lines(content: bytes) -> list[bytes]:
    """The complete lines of a log, without their line ends."""
    return content.split(b"\n")[:-1]


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a log and their length in bytes; a truncated last line is left out.

    Raises:
        StudyError: naming the line, if a whole line is not an answer, or answers are missing before it.
    """
    content = path.read_bytes() if path.exists() else b""
    rows: list[dict[str, Any]] = []
    revisions: list[int] = []
    for number, line in enumerate(whole_lines(content), 1):
        try:
            row = json.loads(line)
            position = row["position"]
            Submission.parse({name: row[name] for name in Submission.__dataclass_fields__})
            if position == len(revisions):
                revisions.append(0)
            if row["revision"] != revisions[position]:
                raise InputError("a line before it is missing, or it is repeated")
            revisions[position] += 1
            if not all(isinstance(row[name], str) for name in ("reader", "image", "time")):
                raise InputError("reader, image and time must be strings")
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise StudyError(f"{path}, line {number}, is damaged ({error}); restore the file from a copy") from error
        rows.append(row)
    return rows, content.rfind(b"\n") + 1


def check_rows(path: Path, rows: list[dict[str, Any]], reader: str, order: list[str]) -> None:
    """Raise StudyError if the rows belong to another reader or do not follow this order of images."""
    for row in rows:
        if row["reader"] != reader:
            raise StudyError(f"{path} has answers of {row['reader']!r:.40}: it is a copy of another reader's log; move "
                             "it away")  # fmt: skip
        if row["position"] >= len(order) or order[row["position"]] != row["image"]:
            raise StudyError(f"{path} belongs to another study: its images come in another order; move it away")


def final_answers(study: Study, reader: str) -> list[dict[str, Any]]:
    """The last row for each image, in the order they were shown; `revision` is the number of changes.

    Raises:
        StudyError: if the log is damaged, or belongs to another reader or study.
    """
    rows, _ = read_log(study.log(reader))
    check_rows(study.log(reader), rows, reader, study.order(reader))
    last = {row["position"]: row for row in rows}
    return [last[position] for position in sorted(last)]
