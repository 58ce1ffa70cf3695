"""Remarks on files that were left out, or read in a way worth reporting."""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from vmddpm.data.config import DataError
from vmddpm.files import write_text

MAX_LISTED = 2  # lines below a heading
# Kinds of remarks, in the order of the summary, with their headings.
HEADINGS = {"error": "skipped", "name": "left out", "class": "left out", "foreground": "left out", "note": "note"}


class Excluded(DataError):
    """An intact file that is not wanted: its SOP class is not a picture, or a filter excludes it. It is left out and
    reported, whatever `on_error` says."""


@dataclass(frozen=True)
class Remark:
    """A remark on a file, or on several files of one kind.

    Attributes:
        source: the file, or the first of several.
        kind: "error", "name" (not an image by its name or kind of file), "class" (not a picture, or filtered out),
            "foreground" (`min_foreground`), or "note" for an image that was kept.
        reason: the reason, in the same words for all files it applies to.
        slices: number of slices; None if the files were left out unread.
        files: number of files.
    """

    source: str
    kind: str
    reason: str
    slices: int | None = None
    files: int = 1


def summary(remarks: Iterable[Remark]) -> list[str]:
    """One line for each reason, with its counts and its first file."""
    groups: dict[tuple[str, str], list[Remark]] = defaultdict(list)
    for remark in remarks:
        groups[remark.kind, _shorten(remark.reason) if remark.kind == "error" else remark.reason].append(remark)
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


def summarize_skipped(remarks: Iterable[Remark]) -> str:
    """One line with the number of files that could not be read, by reason; empty if all could."""
    errors = [remark for remark in remarks if remark.kind == "error"]
    if len(errors) < 2:
        text = "".join(f"1 file could not be read and was skipped: {one.source}: {one.reason}" for one in errors)
        return text.encode(errors="backslashreplace").decode()
    reasons = Counter(_shorten(remark.reason) for remark in errors)
    by_reason = "; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    return f"{len(errors):,} files could not be read and were skipped: {by_reason}"


def _shorten(reason: str) -> str:
    """A reason without the details of one file."""
    return re.split(r"[:;]| \((?=\D)", reason, maxsplit=1)[0].strip()


def counted(number: int, noun: str) -> str:
    """"1 file", "2,000 files"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def write_remarks(remarks: Iterable[Remark], path: Path) -> None:
    """Write all remarks to a CSV file with the fields of `Remark` as columns."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Remark)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(remark) for remark in remarks)
    write_text(path, text.getvalue().encode(errors="backslashreplace").decode())


def listed(heading: str, lines: list[str]) -> str:
    """The heading with the first lines below it, three lines at most. Undecodable bytes in file names are escaped, as
    in every message that may be written to a file."""
    more = [f"... and {len(lines) - MAX_LISTED + 1:,} more reasons"] if len(lines) > MAX_LISTED else []
    return "\n  ".join([heading, *lines[: MAX_LISTED - len(more)], *more]).encode(errors="backslashreplace").decode()
