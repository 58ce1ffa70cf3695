"""`python -m benchmarks.compare A.json B.json`: what became slower from A to B by more than the noise; if anything did,
the exit status is 1.

Both runs must be of one machine and one torch. Compared are multiples of two yardsticks, which were measured in turn
with every case and were disturbed by whatever disturbed the case: one computes, one copies, and a time has moved only
as far as it did against both. What is not this repository's code (attention, copies, others' scans) costs the same in
both runs: how far its times moved all the same is the drift. How far they scatter about it, every time within its two
runs, and what a load on one case alone leaves uncertain, is the noise. A time of ours counts as slower when its median
and its p20 both moved by more than the drift and so many standard deviations of the noise that a comparison of equal
runs finds anything in fewer than FALSE_ALARMS of all cases, and by at least LEAST. Where the noise would hide a time
FOUND times as long in more than MISSED of all cases, nothing is said but that."""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median

from benchmarks.results import Record, load

FALSE_ALARMS, MISSED = 0.01, 0.05
LEAST, FOUND = math.log(1.1), math.log(1.5)
NORMAL_20_80 = 1.683  # standard deviations between the 20th and the 80th percentile
NORMAL_MAD = 1.4826  # standard deviations for a median absolute deviation
MAD_ERROR = 2 * 1.17  # two standard errors of it, times the root of how many there are
NORMAL_MEDIAN = 1.2533  # standard errors of a mean for one of a median
UNEVEN = 0.15  # standard deviations of what a time and its yardstick suffer from one load, as a share of it
ALIKE = 3  # neighbouring rounds, which share what disturbs them and tell as much as one
FEW_CONTROLS = 5
ONE_MACHINE = ("device", "torch", "threads")


@dataclass(frozen=True)
class Change:
    """Logarithms of B over A, the drift taken out, and their standard deviation between equal runs."""

    key: tuple[str, ...]
    median: float
    p20: float
    noise: float
    sure: float  # standard deviations

    @property
    def tolerance(self) -> float:
        return max(LEAST, self.sure * self.noise)

    @property
    def too_noisy(self) -> bool:
        return self.tolerance + NormalDist().inv_cdf(1 - MISSED) * self.noise > FOUND

    @property
    def slower(self) -> bool:
        return not self.too_noisy and min(self.median, self.p20) > self.tolerance

    @property
    def faster(self) -> bool:
        return not self.too_noisy and max(self.median, self.p20) < -self.tolerance

    def __str__(self) -> str:
        words = {"too noisy to judge": self.too_noisy, "SLOWER": self.slower, "faster": self.faster, "same": True}
        word = next(word for word, holds in words.items() if holds)
        change, tolerance = (math.exp(v) - 1 for v in (self.median, self.tolerance))
        return f"{word} {' '.join(self.key)}: {change:+.1%}, told from noise beyond {tolerance:.1%}"


def times(data: Record) -> dict[tuple[str, ...], Record]:
    return {(t["suite"], t["case"], t["direction"], t["implementation"]): t for t in data["times"]}


def spread(rounds: Record) -> float:
    """The standard deviation of the logarithm of the rounds of a run."""
    return math.log(rounds["p80"] / rounds["p20"]) / NORMAL_20_80


def own_noise(record: Record, usual: float) -> float:
    """The standard deviation of the logarithm of a run's median over that of a yardstick. Rounds that are closer
    together than `usual` are so by chance."""

    def error_of_median(rounds: Record) -> float:
        return NORMAL_MEDIAN * max(usual, spread(rounds)) / math.sqrt(max(1.0, rounds["rounds"] / ALIKE))

    return math.hypot(error_of_median(record), max(map(error_of_median, record["yardsticks"].values())))


def lesser(moves: Sequence[float]) -> float:
    """The least move, or none if they are not in one direction."""
    least = min(moves, key=abs)
    return least if all(least * move > 0 for move in moves) else 0.0


def changes(a: Record, b: Record) -> list[Change]:
    """The changes of our times. Raises ValueError if the runs are from different machines or have no times in
    common."""
    for name in ONE_MACHINE:
        one, other = (data["machine"][name] for data in (a, b))
        if one != other:
            raise ValueError(f"{name} is {one!r} in A and {other!r} in B; it must be the same")
    before, after = times(a), times(b)
    common = [key for key in before if key in after]
    if not common:
        raise ValueError("A and B have no time in common")
    if any("yardsticks" not in run[key] for run in (before, after) for key in common):
        raise ValueError("A or B was measured without the yardsticks, by an older version; measure it again")

    ours = [key for key in common if before[key]["ours"]]
    controls = [key for key in common if not before[key]["ours"]]
    steady = controls if len(controls) >= FEW_CONTROLS else common
    yardsticks = before[common[0]]["yardsticks"].keys()

    def load(key: tuple[str, ...], name: str, quantity: str = "median") -> float:
        return math.log(after[key]["yardsticks"][name][quantity] / before[key]["yardsticks"][name][quantity])

    def moves(key: tuple[str, ...], quantity: str = "median") -> list[float]:
        """Against each of the yardsticks."""
        move = math.log(after[key][quantity] / before[key][quantity])
        return [move - load(key, name, quantity) for name in yardsticks]

    medians, p20s = ({key: lesser(moves(key, quantity)) for key in common} for quantity in ("median", "p20"))
    drifts = [median(moved[key] for key in steady) for moved in (medians, p20s)]
    sure = NormalDist().inv_cdf(1 - FALSE_ALARMS / max(1, len(ours)))
    usual = median(spread(run[key]) for run in (before, after) for key in common)
    own = {key: math.hypot(own_noise(before[key], usual), own_noise(after[key], usual)) for key in common}
    # The variance between runs, beyond the variance inside each run.
    within = median(own[key] for key in steady)
    scatter = min(map(spread_of, zip(*map(moves, steady))))
    between = math.sqrt(max(0.0, scatter**2 - within**2))
    loads = {name: {key: load(key, name) for key in common} for name in yardsticks}
    usual_loads = {name: median(of.values()) for name, of in loads.items()}  # which are drift

    def noise(key: tuple[str, ...]) -> float:
        uneven = max(abs(loads[name][key] - usual_loads[name]) for name in yardsticks)
        return math.hypot(between, own[key], UNEVEN * uneven)

    return [Change(key, medians[key] - drifts[0], p20s[key] - drifts[1], noise(key), sure) for key in ours]


def spread_of(moved: Sequence[float]) -> float:
    """Their standard deviation, but for those that moved for a reason, and two standard errors of it more."""
    middle = median(moved)
    return NORMAL_MAD * median(abs(m - middle) for m in moved) * (1 + MAD_ERROR / math.sqrt(len(moved)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    options = parser.parse_args()
    try:
        found = changes(load(options.a), load(options.b))
    except ValueError as error:
        parser.error(str(error))
    for change in sorted(found, key=lambda c: -c.median):
        if change.slower or change.faster or change.too_noisy:
            print(change)
    slower, noisy = (sum(getattr(change, name) for change in found) for name in ("slower", "too_noisy"))
    print(f"{len(found)} times compared, {slower} slower, {noisy} too noisy to judge")
    sys.exit(slower > 0)


if __name__ == "__main__":
    main()
