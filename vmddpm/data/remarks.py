"""What is said about files that are left out or were read in a way worth knowing."""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from vmddpm.data.config import DataError
from vmddpm.files import write_text

LISTED = 2  # lines
# In this order kinds of remarks are told.
HEADINGS = {"error": "skipped", "name": "left out", "class": "left out", "foreground": "left out", "note": "note"}


class Excluded(DataError):
    """A file that is whole but not wanted: no picture by its class, or not what a filter asks for. It is left out and
    reported, whatever `on_error` says."""


@dataclass(frozen=True)
class Remark:
    """Something about a file, or about several of one kind.

    Attributes:
        source: the file, the first one of several.
        kind: "error", "name" (no image by its name or kind of file), "class" (no picture, or filtered out),
            "foreground" (`min_foreground`), or "note" for an image that was kept.
        reason: the same text for the same reason.
        slices: how many slices it is about; None if the files were left out unread.
        files: how many files.
    """

    source: str
    kind: str
    reason: str
    slices: int | None = None
    files: int = 1


def summary(remarks: Iterable[Remark]) -> list[str]:
    """A line for each reason, with its counts and its first file."""
    groups: dict[tuple[str, str], list[Remark]] = defaultdict(list)
    for remark in remarks:
        groups[remark.kind, _in_short(remark.reason) if remark.kind == "error" else remark.reason].append(remark)
    lines = []
    for kind in HEADINGS:
        for (group_kind, reason), members in groups.items():
            if group_kind != kind:
                continue
            first, files = members[0], sum(member.files for member in members)
            if kind == "error":
                many = f"{files:,} files, {reason}; the first is " if files > 1 else ""
                lines.append(f"{HEADINGS[kind]}: {many}{first.source}: {first.reason}")
                continue
            slices = [member.slices for member in members if member.slices is not None]
            count = f"{counted(sum(slices), 'slice')} of {counted(files, 'file')}" if slices else counted(files, "file")
            lines.append(f"{HEADINGS[kind]}: {count}, {reason} ({first.source}{' ...' if files > 1 else ''})")
    return lines


def skipped_in_short(remarks: Iterable[Remark]) -> str:
    """How many files could not be read, by reason, in a line; empty if all could."""
    errors = [remark for remark in remarks if remark.kind == "error"]
    if len(errors) < 2:
        text = "".join(f"1 file could not be read and was skipped: {one.source}: {one.reason}" for one in errors)
        return text.encode(errors="backslashreplace").decode()
    reasons = Counter(_in_short(remark.reason) for remark in errors)
    by_reason = "; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    return f"{len(errors):,} files could not be read and were skipped: {by_reason}"


def _in_short(reason: str) -> str:
    """A reason without what is of one file alone."""
    return re.split(r"[:;]| \((?=\D)", reason, maxsplit=1)[0].strip()


def counted(number: int, noun: str) -> str:
    """"1 file", "2,000 files"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def write_remarks(remarks: Iterable[Remark], path: Path) -> None:
    """All remarks as a table, a CSV file with the fields of `Remark` for columns."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Remark)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(remark) for remark in remarks)
    write_text(path, text.getvalue().encode(errors="backslashreplace").decode())


def listed(heading: str, lines: list[str]) -> str:
    """The heading with the first lines below it, three lines at most. Bytes of a file's name that are no text are shown
    as escapes, as in every message that may be written to a file."""
    more = [f"... and {len(lines) - LISTED + 1:,} more reasons"] if len(lines) > LISTED else []
    return "\n  ".join([heading, *lines[: LISTED - len(more)], *more]).encode(errors="backslashreplace").decode()
