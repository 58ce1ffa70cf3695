"""Measures the cases one after another and appends a line of JSON for each; a program of its own, as an error on the
GPU ends every later call of the process it happens in. Started again, it goes on after the cases it has a line for."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cases import all_cases, contenders
from ceilings import measure_ceilings

from benchmarks.problem import BOTH, FORWARD, Case, Contender, difference
from benchmarks.rivals import Peers, load
from benchmarks.timing import LEAST_REPETITIONS, measure, sets_needed

GPU_ERROR = 3
RIVALS = ("VMamba", "mamba_ssm", "ours in Triton")


def differences(all_of_them: dict[str, Contender]) -> dict[str, dict[str, float]]:
    return {name: difference(all_of_them[name], all_of_them["ours"]) for name in RIVALS if name in all_of_them}


def bytes_of(contender: Contender) -> int:
    return sum(t.numel() * t.element_size() for t in contender.leaves)


def measure_case(case: Case, rivals: Peers, device: str, backend: str, least: int) -> dict[str, Any]:
    first = contenders(case, rivals, device, backend, seed=0)
    sets = sets_needed(min(map(bytes_of, first.values())), device)
    input_sets = [first, *(contenders(case, rivals, device, backend, s) for s in range(1, sets))]
    record: dict[str, Any] = {"differences": differences(first)}
    for direction in (FORWARD, BOTH):
        results = {
            name: measure(lambda one, d=direction: one.call(d), [s[name] for s in input_sets], device, least)
            for name in first
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


def describe(case: Case) -> dict[str, Any]:
    sizes = {key: getattr(case, key) for key in ("batch", "height", "width", "routes", "length", "channels", "states")}
    counts = {"exponentials": case.exponentials, "least_bytes": case.least_bytes}
    return {"case": case.name, **sizes, "dtype": str(case.dtype).removeprefix("torch."), **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=Path, help="where the lines of JSON go")
    parser.add_argument("--seconds", type=float, default=180, help="no case is begun after this")
    parser.add_argument("--dry-run", action="store_true", help="tiny cases on the CPU")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    device = backend = "cpu" if options.dry_run else "cuda"
    least = 2 if options.dry_run else LEAST_REPETITIONS

    lines_before = options.lines.read_text().splitlines() if options.lines.exists() else []
    seen = [json.loads(line)["case"] for line in lines_before]

    def note(record: dict[str, Any]) -> None:
        with options.lines.open("a") as lines:
            lines.write(json.dumps(record) + "\n")

    rivals = load(device)
    if "ceilings" not in seen:
        note({"case": "ceilings", **measure_ceilings(device)})
        note({"case": "peers", "missing": rivals.missing, "revisions": rivals.revisions})
    for case in all_cases(tiny=options.dry_run):
        if case.name in seen:
            continue
        if time.monotonic() > deadline:
            note({"case": "out of time", "first_not_measured": case.name})
            break
        begun = time.perf_counter()
        note({**describe(case), "begun": True})
        try:
            record = measure_case(case, rivals, device, backend, least)
        except Exception as error:  # the other cases are still worth having
            record = {"error": f"{type(error).__name__}: {error}"}
        seconds = time.perf_counter() - begun
        note({**describe(case), **record, "seconds": seconds})
        print(f"{case.name}: {record.get('error', 'measured')}, {seconds:.1f} s", flush=True)
        if "error" in record and device == "cuda":
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError:
                sys.exit(GPU_ERROR)


if __name__ == "__main__":
    main()
