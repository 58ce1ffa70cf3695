"""Predicts the milliseconds of a scan on a GPU, and what bounds it, without a GPU.

    python -m benchmarks.gpu.predict 16,4,192,1024,16 [SHAPE ...] [--dtype bfloat16] [--sm 90] [--assumptions FILE.json]

A shape is B,K,D,L,N. Instructions, EX2 and bytes of each launch are counted (count.py), its resident warps follow from
registers and shared memory (occupancy.py), and assumptions.py has the speed of the GPU. A launch takes as long as the
slowest of

    issue       its instructions, at the share of the issue slots that its resident warps can use; blocks run in
                rounds, the last of which may be short
    EX2         its MUFU instructions at the rate of their unit
    memory      its bytes

plus a fixed time for each launch. The bound that takes most of the time is printed, as `occupancy` instead of `issue`
if more resident warps would save a fifth of the time. Instruction counts of the baselines are read from
baseline_counts.json; the same model gives their times at the issue efficiency in that file, without their barriers. A
ratio above 1 means that ours is faster. This is a model: trust a ratio to about a third."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.assumptions import SCHEDULERS, Assumptions, Gpu, load
from benchmarks.gpu.kernel_counts import DIRECTIONS, Launch, Shape, arguments, counted
from benchmarks.gpu.occupancy import residency

BASELINES = Path(__file__).with_name("baseline_counts.json")


@dataclass(frozen=True)
class Time:
    milliseconds: float
    bound: str


def launch_time(launch: Launch, gpu: Gpu, assumed: Assumptions) -> tuple[float, str]:
    """Seconds without the fixed time of a launch, and what bounds them."""
    cycle = 1e-9 / gpu.clock_ghz
    warps = launch.blocks * -(-launch.threads // 32)
    per_warp = launch.instructions / warps
    mufu = sum(n for opcode, n in (launch.opcodes or {}).items() if opcode.startswith("MUFU"))
    resident = residency(gpu, launch.threads, launch.registers, launch.shared_bytes).blocks
    issue, full_speed, left = 0.0, 0.0, -(-launch.blocks // gpu.multiprocessors)  # blocks of the busiest multiprocessor
    while left > 0:
        blocks = min(left, resident)
        on_scheduler = blocks * -(-launch.threads // 32) / SCHEDULERS
        slots = max(1.0, on_scheduler) * per_warp
        issue += slots * cycle / assumed.efficiency(max(1.0, on_scheduler))
        full_speed += slots * cycle / assumed.issue_efficiency[-1][1]
        left -= blocks
    busiest = -(-launch.blocks // gpu.multiprocessors) / launch.blocks
    exp2 = mufu * busiest / SCHEDULERS * assumed.exp2_cycles * cycle
    moved = (launch.bytes_read or 0) + (launch.bytes_written or 0)
    memory = moved / (gpu.bytes_per_second * assumed.memory_efficiency)
    seconds, bound = max((issue, "issue"), (exp2, "EX2"), (memory, "memory"))
    if bound == "issue" and max(full_speed, exp2, memory) < 0.8 * issue:
        bound = "occupancy"
    return seconds, bound


def predict(launches: Iterable[Launch], gpu: Gpu, assumed: Assumptions) -> Time:
    """The total of consecutive launches."""
    by_bound: Counter[str] = Counter()
    for launch in launches:
        seconds, bound = launch_time(launch, gpu, assumed)
        by_bound[bound] += 1e3 * seconds
        by_bound["launches"] += 1e-3 * assumed.launch_microseconds
    return Time(sum(by_bound.values()), max(by_bound, key=lambda bound: by_bound[bound]))


def baseline_times(shape: Shape, gpu: Gpu) -> dict[str, dict[str, float]]:
    """Milliseconds, forward and both directions, of each baseline with counts for this length and number of states."""
    found: dict[str, dict[str, float]] = {}
    length = str(shape.length)
    for baseline in json.loads(BASELINES.read_text())["baselines"]:
        if baseline["states"] != shape.states or length not in baseline["issue_efficiency"]:
            continue
        slots_a_second = gpu.multiprocessors * SCHEDULERS * gpu.clock_ghz * 1e9 * baseline["issue_efficiency"][length]
        milliseconds = 1e3 * shape.warp_pairs / slots_a_second
        found[f"{baseline['name']} {baseline['version']}"] = {
            direction: baseline[direction][length] * milliseconds
            for direction in ("forward", "both")
            if length in baseline[direction]
        }
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sm", type=int, default=90, help="architecture of the GPU, one of assumptions.py")
    parser.add_argument("--assumptions", type=Path, help="a JSON file that replaces some of assumptions.py")
    options = parser.parse_args()
    try:
        assumed = load(options.assumptions)
        gpu = assumed.gpus[options.sm]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyError:
        parser.error(f"--sm {options.sm}: choose {', '.join(map(str, assumed.gpus))}")
    print(f"{gpu.name}, {options.dtype}, milliseconds; f is forward with checkpoints, f+b with the backward")
    print(f"{'shape':22}{'f':>8}{'f+b':>8}  bound by (f, b)            against (ratio f, f+b)")
    for shape in options.shapes:
        launches = counted(shape, options.dtype, gpu=gpu)
        times = {d: predict((one for one in launches if one.direction == d), gpu, assumed) for d in DIRECTIONS}
        forward, both = times["forward"].milliseconds, sum(time.milliseconds for time in times.values())
        bounds = f"{times['forward'].bound}, {times['backward'].bound}"
        against = "; ".join(
            f"{name}: {', '.join(_ratio(baseline, key, ours) for key, ours in (('forward', forward), ('both', both)))}"
            for name, baseline in baseline_times(shape, gpu).items()
        )
        print(f"{shape!s:22}{forward:8.2f}{both:8.2f}  {bounds:26} {against}", flush=True)


def _ratio(baseline: dict[str, float], key: str, ours: float) -> str:
    return f"{baseline[key] / ours:.2f}" if key in baseline else "-"


if __name__ == "__main__":
    main()
