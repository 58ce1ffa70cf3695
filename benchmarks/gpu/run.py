"""Everything there is to do on a GPU machine, in one command of under nine minutes: build the extension for its GPU,
run the GPU tests, look at the kernels with compute-sanitizer, and measure them beside VMamba's and mamba_ssm's.

    python3 benchmarks/gpu/run.py              # writes benchmarks/results/<gpu>-<date>.json, and to $OUT if it is set
    python3 benchmarks/gpu/run.py --only build,benchmarks --budget 300
    python3 benchmarks/gpu/run.py --only build,triton    # the GPU tests once more, through the Triton kernels
    python3 benchmarks/gpu/run.py --only build,model     # steps of the paper's model: eager, compiled, replayed graphs
    python3 benchmarks/gpu/run.py --only build,training  # runs on a real brain, with and without regeneration
    python3 benchmarks/gpu/run.py --dry-run    # rehearses on a CPU; its results are thrown away

The rivals are measured where their sources lie in benchmarks/peers/ (see peers.py). The results are written after each
part, so that a run that is ended leaves what it had.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import phases
import torch
from commands import ROOT
from machine import describe, slug
from report import save, save_logs, table

PARTS = ("build", "tests", "sanitizer", "benchmarks")
ON_REQUEST = ("triton", "model", "training")
AT_MOST = {"build": 200.0, "peers": 330.0, "tests": 230.0, "sanitizer": 230.0, "triton": 500.0, "model": 300.0,
           "training": 1200.0}  # fmt: skip
KEPT_FOR_BENCHMARKS = 150.0


class Session:
    """The clock, and the results so far."""

    def __init__(self, options: argparse.Namespace):
        self.parts = options.only
        self.dry_run = options.dry_run
        self.end = time.monotonic() + options.budget
        self.machine = describe("cpu" if self.dry_run else "cuda")
        self.logs = Path(tempfile.mkdtemp(prefix="vmddpm-gpu-"))
        results = self.logs if self.dry_run else options.results
        self.path = results / f"{slug(self.machine['gpu']['name'])}-{self.machine['date']}.json"
        self.results: dict[str, Any] = {"machine": self.machine, "dry_run": self.dry_run, "phases": {}}

    def seconds(self, part: str) -> float:
        """For this part, with time left for the measurements after it."""
        left = self.end - time.monotonic()
        if part == "benchmarks":
            return left - 5
        kept = KEPT_FOR_BENCHMARKS if "benchmarks" in self.parts else 5
        return max(1.0, min(AT_MOST[part], left - kept))

    def note(self, part: str, result: dict[str, Any]) -> None:
        self.results["phases"][part] = result
        save(self.results, self.path)
        save_logs(self.logs)
        print(f"{part}: {result.get('outcome', 'done')}", flush=True)


def run(session: Session) -> None:
    peers = None
    if "benchmarks" in session.parts and not session.dry_run:
        peers = phases.start_peers(session.logs, session.seconds("peers"))  # compiles beside all that is not timed
    if "build" in session.parts:
        session.note("build", {"outcome": "skipped: dry run"} if session.dry_run else build(session))
    with ThreadPoolExecutor() as pool:
        checks = {
            part: pool.submit(getattr(phases, part), session.logs, session.seconds(part), session.dry_run)
            for part in ("tests", "sanitizer", "triton")
            if part in session.parts
        }
        for part, check in checks.items():
            session.note(part, check.result())
    if peers:
        session.note("peers", phases.finish_peers(peers, wanted="benchmarks" in session.parts))
    if "benchmarks" in session.parts:
        session.note("benchmarks", phases.benchmarks(session.logs, session.seconds("benchmarks"), session.dry_run))
    for part in ("model", "training"):  # one after another, as they are timed
        if part in session.parts:
            session.note(part, getattr(phases, part)(session.logs, session.seconds(part), session.dry_run))


def build(session: Session) -> dict[str, Any]:
    result = phases.build(session.logs, session.seconds("build"))
    if result["outcome"] != "ok":
        session.parts = []  # there is nothing to test or to measure
    return result


def passed(phases_done: dict[str, Any]) -> bool:
    entries = [e for p in phases_done.values() for e in ([p] if "outcome" in p else p.values())]
    return not any(entry["outcome"] in ("failed", "out of time") for entry in entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU")
    parser.add_argument("--budget", type=float, default=525, help="seconds for all of it")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help="parts, with commas")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if unknown := set(options.only) - {*PARTS, *ON_REQUEST}:
        parser.error(f"unknown parts {sorted(unknown)}; the parts are {', '.join(PARTS + ON_REQUEST)}")
    if not options.dry_run and not torch.cuda.is_available():
        sys.exit("run.py needs a CUDA device; --dry-run rehearses without one")
    session = Session(options)
    run(session)
    session.results["outcome"] = "ok" if passed(session.results["phases"]) else "failed"
    save(session.results, session.path)
    print(f"\n{table(session.results)}\n\n{session.path}")
    sys.exit(session.results["outcome"] != "ok")


if __name__ == "__main__":
    main()
