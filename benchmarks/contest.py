"""All who take part in one case, checked against each other and measured in turn."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.limits import Work, least_seconds
from benchmarks.problem import Problem, relative_difference
from benchmarks.results import Results, ours
from benchmarks.rivals import Missing, Peers
from benchmarks.timing import measure_in_turn, quantile, sets_needed

YARDSTICKS = ("arithmetic", "memory")  # work that no change of this repository makes faster or slower
SAME_WITHIN = 0.02  # a result that differs by more than this in the mean is not the same computation

Makers = dict[str, Callable[[Any, str, Peers], Any]]


class Contest:
    """The contenders `names` of one case and direction.

    `draw(case, device, seed)` makes the problem that the `makers` turn into contenders: objects with `leaves`, a method
    `call(direction)` that returns tensors, the first of them the result, and `standard` (see `problem.Contender`)."""

    def __init__(
        self, makers: Makers, names: list[str], case: Any, direction: str, device: str, peers: Peers,
        draw: Callable[[Any, str, int], Any] = Problem.draw,
    ) -> None:  # fmt: skip
        self.makers, self.case, self.direction, self.device, self.peers = makers, case, direction, device, peers
        self.draw, self.problems = draw, {}
        self.missing: dict[str, str] = {}
        self.contenders: dict[str, Any] = {}
        for name in names:
            try:
                self.contenders[name] = self.make(name, seed=0)
            except Missing as why:
                self.missing[name] = str(why)

    def make(self, name: str, seed: int) -> Any:
        if seed not in self.problems:
            self.problems[seed] = self.draw(self.case, self.device, seed)
        return self.makers[name](self.problems[seed], self.device, self.peers)

    def check(self, name: str) -> None:
        """Every result is finite, and close to that of the first contender."""
        found = self.results(self.contenders[name])
        assert all(bool(torch.isfinite(t).all()) for t in found), f"{name} is not finite"
        first = next(iter(self.makers))
        if name != first and self.contenders[name].standard is not None:
            one, other = self.contenders[name], self.make(first, seed=0)
            expected = self.results(other)
            for i in range(min(2, len(found), len(expected))):  # y, and the gradient of x
                apart = relative_difference(one.standard(found[i]), other.standard(expected[i]))
                assert apart < SAME_WITHIN, f"{name} is {apart:.1%} from {first} in result {i}"

    def drop_failing(self) -> None:
        """Others that fail here, or compute something else, take no part: compiled code may be right at one size and
        wrong at another."""
        for name in [n for n, c in self.contenders.items() if not ours(n) and c.standard is not None]:
            try:
                self.check(name)
            except Exception as error:  # a rival that cannot run is a line in the results, not the end of them
                del self.contenders[name]
                self.missing[name] = f"{type(error).__name__} in {self.case.name}: {str(error).splitlines()[0]}"

    def results(self, contender: Any) -> list[Tensor]:
        found = contender.call(self.direction)
        return [found] if isinstance(found, Tensor) else list(found)

    def measure(self, seconds: float, least: int) -> tuple[dict[str, list[float]], int]:
        """Seconds of each round of each contender and the YARDSTICKS, and how many sets of inputs they took in turn."""
        smallest = min(sum(t.numel() * t.element_size() for t in c.leaves) for c in self.contenders.values())
        sets = sets_needed(smallest, self.device)
        calls = yardsticks(self.device)
        for name, contender in self.contenders.items():
            others = [replace(contender, leaves=self.make(name, seed).leaves) for seed in range(1, sets)]
            calls[name] = lambda i, each=[contender, *others]: each[i % sets].call(self.direction)
        return measure_in_turn(calls, self.device, seconds, least), sets

    def record(self, suite: str, results: Results, measured: dict[str, list[float]], sets: int,
               work: Callable[[str], Work | None]) -> None:  # fmt: skip
        for name, why in self.missing.items():
            results.miss(name, why)
        for name in self.contenders:
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
    """About a millisecond of products inside the cache, and of copying beyond it: other programs, and other guests of
    the machine, disturb now one and now the other."""
    square, rows = _yardstick_tensors(device)
    return {
        "arithmetic": lambda i: torch.softmax(square @ square, dim=-1),
        "memory": lambda i: rows[i % 2].copy_(rows[1 - i % 2]),
    }


def spread(seconds: list[float]) -> dict[str, Any]:
    quantiles = {f"p{q}": quantile(seconds, q / 100) for q in (20, 80)}
    return {"rounds": len(seconds), "median": median(seconds), **quantiles}
