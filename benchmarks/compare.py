"""`python -m benchmarks.compare A.json B.json`: what became slower from A to B by more than the noise; if anything did,
the exit status is 1.

Both runs must be of one machine and one torch. What is not this repository's code (attention, copies, others' scans)
costs the same in both: how far its times moved is the drift of the machine, and how far they scatter about that its
noise from run to run. A time of ours counts as slower when its median and its p20 both moved by more than the drift and
SURE standard deviations of that scatter and of its own within the two runs, and by at least LEAST."""

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import Record, load

SURE, LEAST = 3.0, 0.10
NORMAL_20_80 = 1.683  # standard deviations between the 20th and the 80th percentile
FEW_CONTROLS, UNKNOWN_SCATTER = 5, 0.05
ONE_MACHINE = ("device", "torch", "threads")


@dataclass(frozen=True)
class Change:
    """Logarithms of B over A, the drift taken out."""

    key: tuple[str, ...]
    median: float
    p20: float
    tolerance: float

    @property
    def slower(self) -> bool:
        return min(self.median, self.p20) > self.tolerance

    @property
    def faster(self) -> bool:
        return max(self.median, self.p20) < -self.tolerance

    def __str__(self) -> str:
        return f"{' '.join(self.key)}: {math.exp(self.median) - 1:+.1%}, noise {math.exp(self.tolerance) - 1:.1%}"


def times(data: Record) -> dict[tuple[str, ...], Record]:
    return {(t["suite"], t["case"], t["direction"], t["contender"]): t for t in data["times"]}


def own_scatter(record: Record) -> float:
    return math.log(record["p80"] / record["p20"]) / NORMAL_20_80


def drift_and_scatter(moved: list[float]) -> tuple[float, float]:
    if len(moved) < FEW_CONTROLS:
        return 0.0, UNKNOWN_SCATTER
    drift = statistics.median(moved)
    return drift, 1.4826 * statistics.median(abs(m - drift) for m in moved)


def changes(a: Record, b: Record) -> Iterator[Change]:
    """Raises ValueError if the two are not of one machine or have no time in common."""
    for name in ONE_MACHINE:
        one, other = (data["machine"][name] for data in (a, b))
        if one != other:
            raise ValueError(f"{name} is {one!r} in A and {other!r} in B; it must be the same")
    before, after = times(a), times(b)
    common = [key for key in before if key in after]
    if not common:
        raise ValueError("A and B have no time in common")
    ratios = {key: math.log(after[key]["median"] / before[key]["median"]) for key in common}
    drift, scatter = drift_and_scatter([ratios[key] for key in common if not before[key]["ours"]])
    for key in common:
        if before[key]["ours"]:
            own = (own_scatter(before[key]), own_scatter(after[key]))
            p20 = math.log(after[key]["p20"] / before[key]["p20"])
            yield Change(key, ratios[key] - drift, p20 - drift, max(LEAST, SURE * math.hypot(scatter, *own)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    options = parser.parse_args()
    try:
        found = list(changes(load(options.a), load(options.b)))
    except ValueError as error:
        parser.error(str(error))
    for change in sorted(found, key=lambda c: -c.median):
        if change.slower or change.faster:
            print("SLOWER" if change.slower else "faster", change)
    slower = sum(change.slower for change in found)
    print(f"{len(found)} times compared, {slower} slower")
    sys.exit(slower > 0)


if __name__ == "__main__":
    main()
