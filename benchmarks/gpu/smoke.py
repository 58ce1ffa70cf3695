"""Compares twelve scans, forward and backward, on the GPU with the CPU kernels in float64, before anything is measured.
Appends a line of JSON for each; the exit status is 1 if one is wrong."""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import Baselines
from benchmarks.implementations import IMAGES, SEQUENCES
from benchmarks.problem import BOTH, Case, Problem, relative_difference

# One long image, which is divided into segments; many small ones, which are not; sequences, channel first.
SIZES = [(1, 30, 50, 70), (700, 10, 10, 50), (2, 0, 1500, 70)]
TINY = [(1, 3, 5, 7), (4, 2, 2, 5), (2, 0, 15, 7)]
CASES = [Case(*sizes, states, dtype) for sizes in SIZES for states in (16, 1)
         for dtype in (torch.float32, torch.bfloat16)]  # fmt: skip
RESULTS = ("y", "dx", "ddelta", "dA", "dB", "dC", "dD", "dbias")
# The tolerated mean error of a result, or twice the error of the CPU kernels in the same type if that is more.
FLOOR = {torch.float32: 2**-20, torch.bfloat16: 2**-8}


def results(case: Case, device: str, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """The results of ours; the drawn values are the same for all devices and dtypes."""
    drawn = Problem.draw(case, "cpu", seed=0)
    wide = {name: getattr(drawn, name) for name in ("x", "delta", "A", "B", "C", "D", "bias", "dy")}
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    moved = {name: t.to(device, parameters if name in ("A", "D", "bias") else dtype) for name, t in wide.items()}
    problem = replace(drawn, case=replace(case, dtype=dtype), **moved)
    makers = IMAGES if case.height else SEQUENCES
    return [t.detach().cpu() for t in makers["ours"](problem, backend, Baselines()).call(BOTH)]


def check(case: Case, device: str, backend: str) -> dict[str, Any]:
    """The error of each result against float64, and that of the CPU kernels in the same dtype."""
    exact = results(case, "cpu", "cpu", torch.float64)
    theirs = results(case, "cpu", "cpu", case.dtype)
    ours = results(case, device, backend, case.dtype)
    errors, wrong = {}, []
    for name, a, b, e in zip(RESULTS, ours, theirs, exact, strict=True):
        errors[name] = found, yardstick = relative_difference(a, e), relative_difference(b, e)
        if not found <= max(2 * yardstick, FLOOR[case.dtype]):  # NaN is wrong
            wrong.append(f"{name} is {found:.2g} off, on the CPU {yardstick:.2g}")
    return {"errors": errors, **({"error": "; ".join(wrong)} if wrong else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=Path, help="where the lines of JSON go")
    parser.add_argument("--dry-run", action="store_true", help="the CPU kernels against themselves, tiny")
    options = parser.parse_args()
    device = backend = "cpu" if options.dry_run else "cuda"
    wrong = False
    for case in CASES:
        if options.dry_run:
            sizes = TINY[SIZES.index((case.batch, case.height, case.width, case.channels))]
            case = Case(*sizes, case.states, case.dtype)
        begun = time.monotonic()
        try:
            record = check(case, device, backend)
        except Exception as error:
            record = {"error": f"{type(error).__name__}: {error}"}
        wrong |= "error" in record
        with options.lines.open("a") as lines:
            lines.write(json.dumps({"case": case.name, **record}) + "\n")
        print(f"{case.name}: {record.get('error', 'right')}, {time.monotonic() - begun:.1f} s", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
