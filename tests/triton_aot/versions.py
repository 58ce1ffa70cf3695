"""Other versions of Triton than the installed one, each in a folder that is put first on PYTHONPATH."""

import os
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parents[2] / "build" / "triton"
# pyproject.toml's minimum, torch 2.11's version, the version in constraints.txt, and the newest.
VERSIONS = ("3.4.0", "3.6.0", "3.7.1", "3.9.0")


@cache
def folder(wanted: str) -> Path | None:
    """Install that version and return its folder; None if Python imports that version anyway."""
    if wanted == version("triton"):
        return None
    path = BUILD / wanted
    if not (path / "triton").exists():
        partial = BUILD / f"{wanted}.{os.getpid()}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial)]
        done = subprocess.run([*command, f"triton=={wanted}"], capture_output=True, text=True, check=False)
        if done.returncode:
            # An allowed version that cannot be tested is a failure, not a skipped test.
            pytest.fail(
                f"Triton {wanted} could not be installed into {partial}, so that it is NOT TESTED: "
                f"{done.stderr.strip()[-600:]}",
                pytrace=False,
            )
        try:
            partial.rename(path)
        except OSError:  # another process was faster
            if not (path / "triton").exists():
                raise
    return path


def python_path(wanted: str) -> list[str]:
    """The first PYTHONPATH entries for a process that imports this version."""
    path = folder(wanted)
    return [] if path is None else [str(path)]
