"""Runs all measurements and tests on a GPU machine in eight minutes, the most informative first: correctness, counted
against executed instructions, speed, speed of the baselines, tests, speed of the model.

    python3 benchmarks/gpu/run.py              # writes benchmarks/results/<gpu>-<date>.json, and to $OUT if it is set
    python3 benchmarks/gpu/run.py --dry-run    # rehearses on a CPU and discards the results
    python3 benchmarks/gpu/run.py --only build,smoke,counters --budget 200
    python3 benchmarks/gpu/run.py --only build,triton-tests  # the GPU tests with the Triton kernels
    python3 benchmarks/gpu/run.py --only build,compiled  # steps of the paper's model through torch.compile
    python3 benchmarks/gpu/run.py --only build,training  # runs on a real brain, with and without regeneration

The baselines are measured if their sources are in benchmarks/third_party/ (see baselines.py). Results are written after
each phase, so an interrupted run keeps those of earlier phases. A phase that exceeds its share of the time is stopped
and keeps its partial results; the last lines name such phases. `python -m benchmarks.gpu.calibrate FILE` compares the
results with predictions. The exit status is 1 if anything failed, 2 if the machine has no GPU.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu import phases
from benchmarks.gpu.commands import CUT, ROOT, Running, end_all
from benchmarks.gpu.machine import describe, slug
from benchmarks.gpu.report import save, save_logs, table, unused

BUDGET, REHEARSAL = 465.0, 165.0  # seconds
STOPPED = "stopped before its end"
Function = Callable[[Path, float, bool], dict[str, Any]]


@dataclass(frozen=True)
class Phase:
    """A phase, and its share of the remaining time; later phases get what it does not use."""

    function: Function
    share: float


# In the order in which they run.
PHASES = {
    "build": Phase(phases.build, 60),
    "smoke": Phase(partial(phases.listed, "smoke"), 25),
    "counters": Phase(phases.look, 35),
    "ours": Phase(partial(phases.measured, "ours"), 45),
    "baselines": Phase(phases.baselines, 65),
    "triton": Phase(phases.triton, 25),
    "tests": Phase(phases.tests, 80),
    "model": Phase(partial(phases.listed, "model_steps"), 45),
}
ON_REQUEST = {
    "triton-tests": Phase(phases.triton_tests, 200),
    "compiled": Phase(partial(phases.listed, "model_steps", arguments=["--compiled"]), 200),
    "training": Phase(phases.training, 400),
}
# After these outcomes the other phases are pointless.
ENDS_THE_RUN = {"build": ("failed", CUT), "smoke": ("failed",)}


class Session:
    """The clock, and the results so far."""

    def __init__(self, chosen: dict[str, Phase], dry_run: bool, budget: float, results: Path):
        self.phases, self.dry_run = chosen, dry_run
        self.end = time.monotonic() + budget
        self.logs = Path(tempfile.mkdtemp(prefix="vmddpm-gpu-"))
        machine = describe("cpu" if dry_run else "cuda")
        self.path = unused(self.logs if dry_run else results, f"{slug(machine['gpu']['name'])}-{machine['date']}")
        self.results: dict[str, Any] = {
            "kind": "gpu run",
            "machine": machine,
            "dry_run": dry_run,
            "outcome": STOPPED,  # until it has ended
            "cut": [],
            "phases": {},
        }
        save(self.results, self.path)  # fails now, not in eight minutes, if it cannot be written

    def seconds(self, name: str) -> float:
        """The seconds for this phase: its share of the remaining time."""
        names = list(self.phases)
        left = sum(self.phases[other].share for other in names[names.index(name) :])
        return max(1.0, (self.end - time.monotonic()) * self.phases[name].share / left)

    def note(self, name: str, result: dict[str, Any]) -> None:
        self.results["phases"][name] = result
        self.results["cut"] = [n for n, phase in self.results["phases"].items() if phase["outcome"] == CUT]
        save(self.results, self.path)
        save_logs(self.logs)
        print(f"{name}: {result['outcome']}, {result.get('seconds', 0)} s", flush=True)

    def finish(self) -> None:
        outcomes = [phase["outcome"] for phase in self.results["phases"].values()]
        self.results["outcome"] = next((worst for worst in ("failed", CUT) if worst in outcomes), "ok")
        save(self.results, self.path)


def run(session: Session) -> None:
    compiling: list[Running] = []
    if "baselines" in session.phases and not session.dry_run:
        compiling = phases.start_baselines(session.logs, session.end - time.monotonic())
    broken = None
    for name, phase in session.phases.items():
        if broken:
            session.note(name, {"outcome": f"skipped: {broken}"})
            continue
        options = {"compiling": compiling} if name == "baselines" else {}
        try:
            result = phase.function(session.logs, session.seconds(name), session.dry_run, **options)
        except Exception as error:  # the other phases can still run
            result = {"outcome": "failed", "error": f"{type(error).__name__}: {error}"}
        if any(running.going() for running in compiling):
            result["concurrent"] = "the baselines were being compiled, at the least priority"
        session.note(name, result)
        if result["outcome"] in ENDS_THE_RUN.get(name, ()):
            broken = f"{name} {'was cut' if result['outcome'] == CUT else result['outcome']}"
            end_all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU")
    parser.add_argument("--budget", type=float, help=f"seconds for the whole run, by default {BUDGET:g}")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PHASES), help="phases, by commas")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the file")
    options = parser.parse_args()
    every = {**PHASES, **ON_REQUEST}
    if unknown := set(options.only) - set(every):
        parser.error(f"unknown phases {', '.join(sorted(unknown))}; the phases are {', '.join(every)}")
    if not options.dry_run and not gpu_is_there():
        print("run.py needs a CUDA device that torch finds; --dry-run rehearses without one", file=sys.stderr)
        sys.exit(2)
    chosen = {name: phase for name, phase in every.items() if name in options.only}
    budget = options.budget or (REHEARSAL if options.dry_run else BUDGET)
    if options.dry_run:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads slow tiny problems down
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    session = Session(chosen, options.dry_run, budget, options.results)
    try:
        run(session)
    finally:
        end_all()
    session.finish()
    print(f"\n{table(session.results)}\n\n{session.path}")
    sys.exit(session.results["outcome"] == "failed")


def gpu_is_there() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
