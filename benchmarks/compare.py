"""`python -m benchmarks.compare A.json B.json` lists our times that changed from A to B by more than the noise; the
exit status is 1 if any became slower.

Both runs must be from the same machine and the same torch. Times are compared as multiples of two yardsticks, one that
computes and one that copies. They were measured in turn with every case, so a disturbance of a case also slows them;
the smaller of the two changes counts. The controls (attention, copies, scans of other projects) run the same code in
both runs, so the median change of their times is the drift. The noise has three parts: the scatter of the controls
about the drift, the scatter of the rounds within each run, and the uncertainty left by a load on a single case. A time
counts as slower if its median and its p20, corrected for drift, both rose by at least LEAST and by enough standard
deviations of the noise that comparisons of equal runs report anything in fewer than FALSE_ALARMS of all cases. If the
noise would hide a slow-down by FOUND in more than MISSED of all cases, the time is only reported as too noisy."""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median

from benchmarks.results import Record, load

FALSE_ALARMS, MISSED = 0.01, 0.05
LEAST, FOUND = math.log(1.1), math.log(1.5)  # logarithms of ratios
NORMAL_20_80 = 1.683  # standard deviations between the 20th and the 80th percentile
NORMAL_MAD = 1.4826  # standard deviations for a median absolute deviation
MAD_ERROR = 2 * 1.17  # two relative standard errors of a median absolute deviation, times the root of the sample size
NORMAL_MEDIAN = 1.2533  # standard error of a median over that of a mean
UNEVEN = 0.15  # standard deviation of the difference between a load's effects on a time and on its yardstick, relative
ALIKE = 3  # neighbouring rounds that share their disturbances, and so count as one
FEW_CONTROLS = 5
ONE_MACHINE = ("device", "torch", "threads")


@dataclass(frozen=True)
class Change:
    """Logarithms of B over A, corrected for drift, and their standard deviation between equal runs."""

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
    """The standard deviation of the logarithm of a run's rounds."""
    return math.log(rounds["p80"] / rounds["p20"]) / NORMAL_20_80


def own_noise(record: Record, usual: float) -> float:
    """The standard deviation of the logarithm of a run's median over that of a yardstick. A spread of the rounds below
    `usual` is taken for chance."""

    def error_of_median(rounds: Record) -> float:
        return NORMAL_MEDIAN * max(usual, spread(rounds)) / math.sqrt(max(1.0, rounds["rounds"] / ALIKE))

    return math.hypot(error_of_median(record), max(map(error_of_median, record["yardsticks"].values())))


def lesser(moves: Sequence[float]) -> float:
    """The smallest move, or 0 if the moves have different signs."""
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
        """The change relative to each yardstick."""
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
    usual_loads = {name: median(of.values()) for name, of in loads.items()}  # these are drift

    def noise(key: tuple[str, ...]) -> float:
        uneven = max(abs(loads[name][key] - usual_loads[name]) for name in yardsticks)
        return math.hypot(between, own[key], UNEVEN * uneven)

    return [Change(key, medians[key] - drifts[0], p20s[key] - drifts[1], noise(key), sure) for key in ours]


def spread_of(moved: Sequence[float]) -> float:
    """A robust estimate of the standard deviation, which ignores outliers, plus two standard errors of it."""
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
