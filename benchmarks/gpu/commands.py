"""Running other programs within a time, with their output in a log."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Running:
    """A program that was started, and what it leaves behind."""

    process: subprocess.Popen[bytes]
    log: Path
    begun: float
    deadline: float

    def end(self) -> None:
        """Ends it and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> dict[str, Any]:
        """Its outcome: "ok", "failed" with its code, or "out of time", when it and its children are ended."""
        try:
            code = self.process.wait(max(1.0, self.deadline - time.monotonic()))
            outcome: dict[str, Any] = {"outcome": "ok"} if code == 0 else {"outcome": "failed", "code": code}
        except subprocess.TimeoutExpired:
            self.end()
            outcome = {"outcome": "out of time"}
        return {**outcome, "seconds": round(time.monotonic() - self.begun, 1)}


def start(command: list[str], log: Path, seconds: float, environment: dict[str, str] | None = None) -> Running:
    """Starts a program in the repository's root, in a process group of its own, with the root on Python's path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # cmake, ninja of a venv
    variables = {**os.environ, "PATH": tools, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})}
    begun = time.monotonic()
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Running(process, log, begun, begun + seconds)


def run(command: list[str], log: Path, seconds: float, environment: dict[str, str] | None = None) -> dict[str, Any]:
    return start(command, log, seconds, environment).wait()


def last_lines(log: Path, count: int = 15) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-count:] if log.exists() else []
