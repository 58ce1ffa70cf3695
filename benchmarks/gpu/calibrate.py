"""Derives the constants of predictions from a run on a GPU, and prints predicted and measured times.

    python -m benchmarks.gpu.calibrate benchmarks/results/nvidia-h200-2026-12-01.json [--out FILE.json]

FILE is a result of benchmarks/gpu/run.py, which may be incomplete. The constants are written to
benchmarks/gpu/measured.json, and `benchmarks.gpu.predict` then uses them instead of those of assumptions.py:

    the GPU's clock, bandwidth and multiprocessors      from a kernel that waits, a copy, and the driver
    exp2_cycles                                         from a kernel of exponentials
    launch_microseconds                                 from launches of an almost empty kernel
    issue_efficiency by resident warps                  from the counters of each kernel that ncu profiled

To predict times, the launches of each measured scan are counted (count.py), which needs nvcc and about a minute for
each; `--no-times` skips this. Counts are cached in build/gpu_counts/ until the sources change."""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.assumptions import ASSUMED, MEASURED, SCHEDULERS, Assumptions, Gpu, load
from benchmarks.gpu.commands import ROOT
from benchmarks.gpu.counters import INSTRUCTIONS, ISSUE, WARPS
from benchmarks.gpu.report import counter_lines, write
from benchmarks.gpu.report import load as read

COUNTS = ROOT / "build" / "gpu_counts"
LANES = 32


def constants(results: dict[str, Any]) -> dict[str, Any]:
    """The measured constants, by the names of assumptions.py, and their origin. Raises ValueError if nothing was
    measured or assumptions.py does not have the run's GPU."""
    machine, ceilings = results["machine"], results["phases"].get("ours", {}).get("ceilings", {})
    before, points = gpu_of(results), issue_points(results)
    if not ceilings and not points:
        raise ValueError("nothing was measured: neither of the phases `ours` and `counters` came so far")
    device = machine["gpu"]
    # Limits follow from the architecture; all other values are from the driver or measured. The bandwidth times the
    # assumed memory efficiency is the measured rate of a copy.
    gpu = {"name": device["name"], "multiprocessors": device["multiprocessors"]}
    if "clock_hertz" in ceilings:
        gpu["clock_ghz"] = ceilings["clock_hertz"] / 1e9
    if "copy_bytes_per_second" in ceilings:
        gpu["bytes_per_second"] = ceilings["copy_bytes_per_second"] / ASSUMED.memory_efficiency
    origin = {"gpu": device["name"], "date": machine["date"], "commit": machine["commit"]}
    found: dict[str, Any] = {"from": origin, "gpus": {str(before.architecture): gpu}}
    if "exp2_per_second" in ceilings and "clock_ghz" in gpu:
        rate = ceilings["exp2_per_second"] / LANES / (gpu["multiprocessors"] * SCHEDULERS)  # of a scheduler
        found["exp2_cycles"] = 1e9 * gpu["clock_ghz"] / rate
    if "launch_seconds" in ceilings:
        found["launch_microseconds"] = 1e6 * ceilings["launch_seconds"]
    if points:
        found["issue_efficiency"] = efficiency_through(points)
    return found


def gpu_of(results: dict[str, Any]) -> Gpu:
    """The assumptions about the GPU of the run."""
    device = results["machine"]["gpu"]
    if not device.get("name"):
        raise ValueError("the run was a rehearsal on a CPU: there is nothing to calibrate with")
    architecture = int(device["capability"].replace(".", ""))
    if architecture not in ASSUMED.gpus:
        known = ", ".join(map(str, ASSUMED.gpus))
        raise ValueError(f"{device['name']} has architecture {architecture}; assumptions.py has {known}: add it there")
    return ASSUMED.gpus[architecture]


def issue_points(results: dict[str, Any]) -> list[tuple[float, float]]:
    """(resident warps of a scheduler, share of its issue slots) of each kernel with a tenth of its call's
    instructions."""
    points = []
    for call in results["phases"].get("counters", {}).get("calls", []):
        most = sum(kernel.get(INSTRUCTIONS) or 0.0 for kernel in call["kernels"])
        for kernel in call["kernels"]:
            warps, issue = kernel.get(WARPS), kernel.get(ISSUE)
            if isinstance(warps, float) and isinstance(issue, float) and kernel.get(INSTRUCTIONS, 0.0) >= 0.1 * most:
                points.append((warps / SCHEDULERS, issue / 100))
    return sorted(points)


def efficiency_through(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The assumed curve times the ratio of measured to assumed efficiency, which is interpolated linearly between the
    points and constant beyond them. The result never falls and is at most 1."""
    measured: dict[float, list[float]] = {}
    for warps, issue in points:
        measured.setdefault(round(warps, 1), []).append(issue / ASSUMED.efficiency(warps))
    where = sorted(measured)
    ratios = [float(np.mean(measured[warps])) for warps in where]
    grid = sorted({warps for warps, _ in ASSUMED.issue_efficiency} | set(where))
    curve = [min(1.0, ASSUMED.efficiency(warps) * float(np.interp(warps, where, ratios))) for warps in grid]
    return [(warps, round(float(e), 4)) for warps, e in zip(grid, np.maximum.accumulate(curve))]


def constant_lines(given: dict[str, Any], found: Assumptions, architecture: int) -> Iterator[str]:
    """A line for each constant, with the assumed and the measured value."""
    before, after = ASSUMED.gpus[architecture], found.gpus[architecture]
    gpu = given["gpus"][str(architecture)]
    copied = [a.memory_efficiency * g.bytes_per_second / 1e12 for a, g in ((ASSUMED, before), (found, after))]
    rows = [
        ("multiprocessors", before.multiprocessors, after.multiprocessors, True),
        ("clock, GHz", before.clock_ghz, after.clock_ghz, "clock_ghz" in gpu),
        ("copied, TB a second", *copied, "bytes_per_second" in gpu),
        ("cycles of an EX2", ASSUMED.exp2_cycles, found.exp2_cycles, "exp2_cycles" in given),
        ("microseconds of a launch", ASSUMED.launch_microseconds, found.launch_microseconds,
         "launch_microseconds" in given),
    ]  # fmt: skip
    seen = "issue_efficiency" in given
    for warps, share in found.issue_efficiency:
        rows.append((f"issue slots, {warps:g} warps", ASSUMED.efficiency(warps), share, seen))
    yield f"{'constants':28}{'assumed':>12}{'measured':>12}"
    for name, assumed, measured, was_measured in rows:
        yield f"{name:28}{assumed:12.3g}" + (f"{measured:12.3g}" if was_measured else f"{'-':>12}")


def scans(results: dict[str, Any]) -> Iterator[tuple[tuple[int, ...], str, dict[str, Any]]]:
    """Shape (B, K, D, L, N), dtype and record of each scan that the phase `ours` measured."""
    for record in results["phases"].get("ours", {}).get("cases", []):
        if "forward_backward" in record:
            sizes = ("batch", "routes", "channels", "length", "states")
            yield tuple(record[size] for size in sizes), record["dtype"], record


def time_lines(results: dict[str, Any], found: Assumptions, architecture: int) -> Iterator[str]:
    """Milliseconds forward (predicted with checkpoints) and of both directions: predicted with the assumed constants,
    predicted with the measured ones, and measured; and measured over the second prediction."""
    from benchmarks.gpu.predict import predict

    yield f"{'milliseconds':34}{'assumed':>9}{'calibrated':>12}{'measured':>10}{'over calibrated':>17}  bound"
    for shape, dtype, record in scans(results):
        launches = counted_once(shape, dtype, found.gpus[architecture])
        for directions, key in ((("forward",), "forward"), (("forward", "backward"), "forward_backward")):
            some = [launch for launch in launches if launch.direction in directions]
            before = predict(some, ASSUMED.gpus[architecture], ASSUMED)
            after = predict(some, found.gpus[architecture], found)
            measured = record[key]["results"]["ours"]["ms"]
            name = f"{','.join(map(str, shape))} {dtype} {'f' if key == 'forward' else 'f+b'}"
            yield (
                f"{name:34}{before.milliseconds:9.3f}{after.milliseconds:12.3f}{measured:10.3f}"
                f"{measured / after.milliseconds:17.2f}  {after.bound}"
            )


def counted_once(shape: tuple[int, ...], dtype: str, gpu: Gpu) -> list[Any]:
    """The launches of a scan with their counts, from the cache if they were counted before."""
    from benchmarks.gpu.kernel_counts import Launch, Shape, counted

    name = "-".join([sources_digest(), *map(str, shape), dtype, str(gpu.architecture), str(gpu.multiprocessors)])
    path = COUNTS / f"{name}.json"
    if not path.exists():
        launches = counted(Shape(*shape), dtype, gpu=gpu, most_blocks=4)
        write(path, json.dumps([vars(launch) for launch in launches]))
    return [
        Launch(**{**launch, "opcodes": Counter(launch["opcodes"] or {})}) for launch in json.loads(path.read_text())
    ]


def sources_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".cu", ".h"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="the results of a run on a GPU")
    parser.add_argument("--out", type=Path, default=MEASURED, metavar="FILE.json", help="where the constants go")
    parser.add_argument("--no-times", action="store_true", help="do not count and predict the scans")
    options = parser.parse_args()
    try:
        results = read(options.file)
        given, architecture = constants(results), gpu_of(results).architecture
        write(options.out, json.dumps(given, indent=1) + "\n")
        found = load(options.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    machine = results["machine"]
    print(f"{machine['gpu']['name']}, {machine['date']}, commit {machine['commit']}, constants in {options.out}\n")
    print("\n".join([*constant_lines(given, found, architecture), ""]))
    print("\n".join([*counter_lines(results["phases"].get("counters", {}).get("calls", [])), ""]))
    if not options.no_times:
        for line in time_lines(results, found, architecture):
            print(line, flush=True)


if __name__ == "__main__":
    main()
