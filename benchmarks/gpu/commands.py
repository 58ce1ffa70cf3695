"""Runs programs with a time limit, with their output in a log."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.baselines import ROOT

LEAST_PRIORITY = ["nice", "-n", "19"]
CUT = "cut"  # the time ran out; partial results are kept
_running: "set[Running]" = set()


@dataclass(eq=False)
class Running:
    """A started program, its log and its deadline."""

    process: subprocess.Popen[bytes]
    log: Path
    begun: float
    deadline: float

    def going(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        """Kill the program and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        _running.discard(self)

    def wait(self) -> dict[str, Any]:
        """Wait for the program, at most until its deadline, and kill what is left. The outcome is "ok", "failed" with
        its exit code, or CUT."""
        try:
            code = self.process.wait(max(0.0, self.deadline - time.monotonic()))
            outcome: dict[str, Any] = {"outcome": "ok"} if code == 0 else {"outcome": "failed", "code": code}
        except subprocess.TimeoutExpired:
            outcome = {"outcome": CUT}
        self.end()
        return {**outcome, "seconds": round(time.monotonic() - self.begun, 1)}


def start(
    command: list[str], log: Path, seconds: float, environment: dict[str, str] | None = None, polite: bool = False
) -> Running:
    """Start a program in the repository's root, in its own process group, with the root on Python's path; `polite`
    gives it the lowest priority."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # cmake, ninja of a venv
    variables = {**os.environ, "PATH": tools, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})}
    begun = time.monotonic()
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            LEAST_PRIORITY * polite + command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    running = Running(process, log, begun, begun + seconds)
    _running.add(running)
    return running


def module_command(name: str, *arguments: str) -> list[str]:
    """The command of a module of this folder."""
    return [sys.executable, "-m", f"benchmarks.gpu.{name}", *arguments]


def end_all() -> None:
    """Kill all programs that are still running."""
    for running in list(_running):
        running.end()


def run(command: list[str], log: Path, seconds: float, environment: dict[str, str] | None = None) -> dict[str, Any]:
    return start(command, log, seconds, environment).wait()


def last_lines(log: Path, count: int = 15) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-count:] if log.exists() else []
