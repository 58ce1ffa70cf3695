"""The implementations of one case, checked against each other and measured in turn."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import Baselines, Missing
from benchmarks.limits import Work, least_seconds
from benchmarks.problem import Problem, relative_difference
from benchmarks.results import Results, ours
from benchmarks.timing import measure_in_turn, quantile, sets_needed

YARDSTICKS = ("arithmetic", "memory")  # reference work; no change to this repository affects its speed
SAME_WITHIN = 0.02  # largest mean relative difference of two implementations

Makers = dict[str, Callable[[Any, str, Baselines], Any]]


class Harness:
    """Makes the implementations of one case and direction, compares their results, and times them in turn.

    Args:
        makers: for each implementation by name, a function of the problem, the device and the baselines that returns a
            `problem.Implementation`, or an object with the same attributes.
        names: the implementations to make; the first of `makers` is what the others are compared with.
        case: sizes and dtype of the problem.
        direction: `FORWARD` or `BOTH` of `benchmarks.problem`.
        device: "cpu" or "cuda".
        baselines: other people's packages that are installed.
        draw: returns random inputs of the case, given the device and a seed.
    """

    def __init__(
        self, makers: Makers, names: list[str], case: Any, direction: str, device: str, baselines: Baselines,
        draw: Callable[[Any, str, int], Any] = Problem.draw,
    ) -> None:  # fmt: skip
        self.makers, self.case, self.direction, self.device, self.baselines = makers, case, direction, device, baselines
        self.draw, self.problems = draw, {}
        self.missing: dict[str, str] = {}
        self.implementations: dict[str, Any] = {}
        for name in names:
            try:
                self.implementations[name] = self.make(name, seed=0)
            except Missing as why:
                self.missing[name] = str(why)

    def make(self, name: str, seed: int) -> Any:
        if seed not in self.problems:
            self.problems[seed] = self.draw(self.case, self.device, seed)
        return self.makers[name](self.problems[seed], self.device, self.baselines)

    def check(self, name: str) -> None:
        """Assert that each result is finite and close to that of the first implementation."""
        found = self.results(self.implementations[name])
        assert all(bool(torch.isfinite(t).all()) for t in found), f"{name} is not finite"
        first = next(iter(self.makers))
        if name != first and self.implementations[name].standard is not None:
            one, other = self.implementations[name], self.make(first, seed=0)
            expected = self.results(other)
            for i in range(min(2, len(found), len(expected))):  # y, and the gradient of x
                difference = relative_difference(one.standard(found[i]), other.standard(expected[i]))
                assert difference < SAME_WITHIN, f"{name} is {difference:.1%} from {first} in result {i}"

    def drop_failing(self) -> None:
        """Drop baselines that fail or give other results: compiled code may be right at one size and wrong at
        another."""
        for name in [n for n, c in self.implementations.items() if not ours(n) and c.standard is not None]:
            try:
                self.check(name)
            except Exception as error:  # the other implementations can still run
                del self.implementations[name]
                self.missing[name] = f"{type(error).__name__} in {self.case.name}: {str(error).splitlines()[0]}"

    def results(self, implementation: Any) -> list[Tensor]:
        found = implementation.call(self.direction)
        return [found] if isinstance(found, Tensor) else list(found)

    def measure(self, seconds: float, least: int) -> tuple[dict[str, list[float]], int]:
        """Seconds of each round of the implementations and YARDSTICKS, and the number of input sets."""
        sets, calls = self.input_sets(), yardsticks(self.device)
        for name, each in sets.items():
            calls[name] = lambda i, each=each: each[i % len(each)].call(self.direction)
        return measure_in_turn(calls, self.device, seconds, least), len(next(iter(sets.values())))

    def input_sets(self) -> dict[str, list[Any]]:
        """Each implementation with as many sets of inputs as it takes for a call to find none of its own in the
        cache."""
        smallest = min(sum(t.numel() * t.element_size() for t in c.leaves) for c in self.implementations.values())
        seeds = range(1, sets_needed(smallest, self.device))
        return {
            name: [one, *(replace(one, leaves=self.make(name, seed).leaves) for seed in seeds)]
            for name, one in self.implementations.items()
        }

    def record(self, suite: str, results: Results, measured: dict[str, list[float]], sets: int,
               work: Callable[[str], Work | None]) -> None:  # fmt: skip
        for name, why in self.missing.items():
            results.miss(name, why)
        for name in self.implementations:
            needed = work(name)
            least = least_seconds(needed, results["limits"]) if needed else None
            results.add(
                "times", suite, self.case.name, self.direction, name, **spread(measured[name]), input_sets=sets,
                limit=least, work=asdict(needed) if needed else None, length=getattr(self.case, "length", None),
                yardsticks={name: spread(measured[name]) for name in YARDSTICKS},
            )  # fmt: skip


@lru_cache
def _yardstick_tensors(device: str) -> tuple[Tensor, Tensor]:
    return torch.randn(384, 384, device=device), torch.randn(2, 8 << 20, device=device)


def yardsticks(device: str) -> dict[str, Callable[[int], Tensor]]:
    """About a millisecond of matrix products in the cache, and one of copies in main memory. Other programs on the
    machine slow down one or the other."""
    square, rows = _yardstick_tensors(device)
    return {
        "arithmetic": lambda i: torch.softmax(square @ square, dim=-1),
        "memory": lambda i: rows[i % 2].copy_(rows[1 - i % 2]),
    }


def spread(seconds: list[float]) -> dict[str, Any]:
    quantiles = {f"p{q}": quantile(seconds, q / 100) for q in (20, 80)}
    return {"rounds": len(seconds), "median": median(seconds), **quantiles}
