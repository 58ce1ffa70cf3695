"""What is said about files that are left out or were read in a way worth knowing."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from vmddpm.data.config import DataError

LISTED = 20
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
    """A line for each reason, with its counts and its first file; every file that could not be read has its own."""
    groups: dict[tuple[str, str], list[Remark]] = defaultdict(list)
    for remark in remarks:
        groups[remark.kind, remark.source if remark.kind == "error" else remark.reason].append(remark)
    lines = []
    for kind in HEADINGS:
        for (group_kind, _), members in groups.items():
            if group_kind != kind:
                continue
            first, files = members[0], sum(member.files for member in members)
            if kind == "error":
                lines.append(f"{HEADINGS[kind]}: {first.source}: {first.reason}")
                continue
            slices = [member.slices for member in members if member.slices is not None]
            count = f"{sum(slices):,} slices of {files:,} files" if slices else f"{files:,} files"
            lines.append(f"{HEADINGS[kind]}: {count}, {first.reason} ({first.source}{' ...' if files > 1 else ''})")
    return lines


def listed(heading: str, lines: list[str]) -> str:
    """The heading with the first lines below it. Bytes of a file's name that are no text are shown as escapes, as in
    every message that may be written to a file."""
    more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "\n  ".join([heading, *lines[:LISTED], *more]).encode(errors="backslashreplace").decode()
