"""Checkpoints: files written atomically, with a checksum in their name; the last few are kept.

    step-00002000-3f0c5e...9a.pt     the step, and the first half of the file's SHA-256

A file gets this name once all its bytes are on the disk. Loading executes no code from it.
"""

import re
import warnings
from pathlib import Path
from typing import Any, Protocol

import torch

from vmddpm.files import make_folder, put_in_place, sha256, temporary_name
from vmddpm.training.errors import RunError

SCHEMA = 3
_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{32})\.pt")


class Stateful(Protocol):
    """A part of a run whose state is saved in checkpoints: a network or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> object: ...


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: their folder; the first `save` makes it.
        keep: how many of them to keep.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Save the state after `step` steps, tensors and plain values; then remove all but the last `keep` checkpoints.

        Raises:
            RunError: if it cannot be written; earlier checkpoints are unchanged.
        """
        partial = temporary_name(self.folder / f"step-{step:08d}.pt")
        try:
            make_folder(self.folder)
            with open(partial, "wb") as file:  # with a path, torch would store its name in the file
                torch.save({"schema": SCHEMA, "step": step, **state}, file)
            path = self.folder / f"step-{step:08d}-{sha256(partial)[:32]}.pt"
            put_in_place(partial, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            before = self.paths()
            intact = f"the last one, {before[-1].name}, is intact" if before else "there is no earlier one"
            raise RunError(
                f"{self.folder}: the checkpoint of step {step} cannot be written ({_first_line(error)}); {intact}. "
                "Make room there, then run the same command again to go on"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        # Other files of this step or later must be damaged: the run would have resumed from them.
        earlier = [other for other in self.paths() if _step(other) < step]
        kept = {path, *earlier[max(0, len(earlier) - self.keep + 1) :]}
        for other in self.paths():
            if other not in kept:
                other.unlink(missing_ok=True)
        return path

    def newest(self) -> dict[str, Any] | None:
        """The latest state, on the CPU, with its "step"; None if there is none. Damaged files are skipped with a
        warning.

        Raises:
            RunError: if all files are damaged, or one was written by another version.
        """
        damaged = []
        for path in reversed(self.paths()):
            try:
                return load(path)
            except DamagedError as error:
                damaged.append(str(error))
                warnings.warn(f"{error}; it is skipped", stacklevel=2)
        if damaged:
            raise RunError(
                f"{self.folder}: no checkpoint can be read ({'; '.join(damaged)}); remove them to start the run again"
            )
        return None

    def paths(self) -> list[Path]:
        """The checkpoint files, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), key=_step)


class DamagedError(RunError):
    """A checkpoint is damaged."""


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint without executing code from it. Raises DamagedError, or RunError if another version wrote
    it."""
    match = _NAME.fullmatch(path.name)
    try:
        if match and not sha256(path).startswith(match[2]):
            raise DamagedError(f"{path.name} is damaged: {path.stat().st_size} bytes, which differ from those written")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except Exception as error:  # torch.load does not document its exceptions
        raise DamagedError(f"{path.name} is not a checkpoint: {_first_line(error)}") from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        found = state.get("schema") if isinstance(state, dict) else None
        raise RunError(
            f"{path} was written by another version of vmddpm (format {found}, this one reads {SCHEMA}); continue the "
            "run with that version, or choose another folder"
        )
    return state


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
