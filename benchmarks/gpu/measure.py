"""Measures the cases of a group (cases.py) one after another and appends a line of JSON for each. It is a separate
program because after an error on the GPU all later calls of a process fail. When started again, it continues after the
cases that have a line. Differences between the results of others and ours are recorded before anything is timed."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import Baselines, load
from benchmarks.gpu.cases import CASES, cases_of, makers_of
from benchmarks.gpu.ceilings import measure_ceilings
from benchmarks.harness import Harness
from benchmarks.problem import BOTH, FORWARD, Case, Implementation, difference
from benchmarks.timing import measure

GPU_ERROR = 3
COMPARED = ("VMamba", "mamba_ssm", "ours in Triton")
REPETITIONS = 15


def differences(all_of_them: dict[str, Implementation]) -> dict[str, dict[str, float]]:
    return {name: difference(all_of_them[name], all_of_them["ours"]) for name in COMPARED if name in all_of_them}


def measure_case(harness: Harness, least: int) -> dict[str, Any]:
    sets = harness.input_sets()
    record: dict[str, Any] = {}
    for direction in (FORWARD, BOTH):
        results = {
            name: measure(lambda one, d=direction: one.call(d), each, harness.device, least)
            for name, each in sets.items()
        }
        ours = results["ours"]
        record[direction] = {
            "results": results,
            "time_over_ours": {name: r["ms"] / ours["ms"] for name, r in results.items() if name != "ours"},
        }
        if ours["peak_bytes"]:
            memory = {name: r["peak_bytes"] / ours["peak_bytes"] for name, r in results.items() if name != "ours"}
            record[direction]["memory_over_ours"] = memory
    return record


def interpreter_fails() -> str | None:
    """Why Triton's interpreter does not work, as that of Triton 3.6 with NumPy 2.4; None if it does."""
    import numpy as np
    import triton

    from benchmarks.gpu.exp2_kernel import exp2_kernel

    try:
        exp2_kernel[(1,)](torch.empty(8), 2, 8)
    except Exception as error:
        return f"Triton {triton.__version__} interprets no kernels with NumPy {np.__version__}: {error}"
    return None


def describe(case: Case) -> dict[str, Any]:
    sizes = {key: getattr(case, key) for key in ("batch", "height", "width", "routes", "length", "channels", "states")}
    counts = {"exponentials": case.exponentials, "least_bytes": case.least_bytes}
    return {"case": case.name, **sizes, "dtype": str(case.dtype).removeprefix("torch."), **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", choices=CASES)
    parser.add_argument("lines", type=Path, help="where the lines of JSON go")
    parser.add_argument("--seconds", type=float, default=180, help="no case is begun after this")
    parser.add_argument("--dry-run", action="store_true", help="tiny cases on the CPU")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    device = "cpu" if options.dry_run else "cuda"
    least = 2 if options.dry_run else REPETITIONS

    lines_before = options.lines.read_text().splitlines() if options.lines.exists() else []
    seen = [json.loads(line)["case"] for line in lines_before]

    def note(record: dict[str, Any]) -> None:
        with options.lines.open("a") as lines:
            lines.write(json.dumps(record) + "\n")

    baselines = load(device, ("VMamba", "mamba")) if options.group == "baselines" else Baselines()
    if "ceilings" not in seen and options.group == "ours":
        note({"case": "ceilings", **measure_ceilings(device)})
    if "baselines" not in seen and options.group == "baselines":
        note({"case": "baselines", "missing": baselines.missing, "revisions": baselines.revisions})
    if options.dry_run and options.group == "triton" and (why := interpreter_fails()):
        baselines.missing["ours in Triton"] = why
        note({"case": "baselines", "missing": baselines.missing})
    left = [case for case in cases_of(options.group, tiny=options.dry_run) if case.name not in seen]
    for i, case in enumerate(left):
        if time.monotonic() > deadline:
            note({"case": "out of time", "not_measured": [one.name for one in left[i:]]})
            break
        begun = time.perf_counter()
        record: dict[str, Any] = {**describe(case), "begun": True}
        note(record)
        try:
            makers = makers_of(options.group, case, baselines, device)
            harness = Harness(makers, list(makers), case, BOTH, device, baselines)
            record["differences"] = differences(harness.implementations)
            note(record)
            record |= measure_case(harness, least)
        except Exception as error:  # the other cases can still be measured
            record["error"] = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - begun
        note({**record, "begun": False, "seconds": seconds})
        print(f"{case.name}: {record.get('error', 'measured')}, {seconds:.1f} s", flush=True)
        if device == "cuda":
            harness = None
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError:
                sys.exit(GPU_ERROR)


if __name__ == "__main__":
    main()
