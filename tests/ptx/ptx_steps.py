"""Causal convolutions and single scan steps for Triton kernels that run from their PTX, with their computation and
reference."""

import itertools
import random
from dataclasses import dataclass

import test_causal_conv1d as conv
import test_state_update as update
import torch
from ptx_cases import far_off

# Of each: taps, silu, with a bias and initial states; states, heads in groups or 0, with softplus, D, z and a bias.
CONVOLUTIONS = ((2, False, False), (3, True, True), (4, True, True), (4, False, True), (4, True, False))
UPDATES = ((1, 0, False), (3, 2, True), (16, 0, True), (16, 4, False), (20, 2, True), (64, 1, False))
SIZES = ((1, 1, 1), (2, 5, 7), (1, 65, 33), (2, 64, 8), (1, 130, 3), (3, 17, 50))  # B, D, L; a tile is 64 by 8
ORDERS = ("steps", "channels", "neither")


@dataclass(frozen=True)
class ConvCase:
    sizes: tuple[int, int, int]
    dtype: torch.dtype
    taps: int
    silu: bool
    optional: bool
    memory: str
    order: str
    seed: int

    @classmethod
    def all(cls, dtype: torch.dtype) -> "list[ConvCase]":
        r = random.Random(f"convolutions {dtype}")
        found = []
        for seed, (which, sizes) in enumerate(itertools.product(CONVOLUTIONS, SIZES)):
            order = r.choice(("forward", "reverse", f"random:{seed}"))
            found.append(cls(sizes, dtype, *which, r.choice(ORDERS), order, seed))
        return found

    def tensors(self) -> list[torch.Tensor | None]:
        torch.manual_seed(self.seed)
        return conv.problem(*self.sizes, self.taps, self.dtype, self.memory, self.optional, self.optional)

    def compute(self, backend: str) -> list[torch.Tensor]:
        """The outputs, and the gradients of all inputs."""
        return conv.results(self.tensors(), self.silu, conv.ours(backend))

    def exact(self) -> list[torch.Tensor]:
        """The same by the float64 loop."""
        return conv.results(self.tensors(), self.silu, conv.exact)

    def names(self) -> list[str]:
        return ["y", "final", "dx", "dweight", *(["dbias", "dinitial"] if self.optional else [])]

    def wrong(self, ours: list[torch.Tensor], reference: list[torch.Tensor], exact: list[torch.Tensor]) -> str:
        return far_off(self, self.names(), ours, reference, exact)


@dataclass(frozen=True)
class UpdateCase:
    dtype: torch.dtype
    states: int
    groups: int
    optional: bool
    strided: bool
    order: str
    seed: int

    @classmethod
    def all(cls, dtype: torch.dtype) -> "list[UpdateCase]":
        orders = itertools.cycle(("forward", "reverse", "random:1"))
        cases = itertools.product(UPDATES, (False, True), range(3))
        return [cls(dtype, *which, strided, next(orders), seed) for which, strided, seed in cases]

    def tensors(self) -> list[torch.Tensor | None]:
        torch.manual_seed(self.seed)
        return update.problem(self.states, self.dtype, self.groups, self.optional, self.strided)

    def compute(self, backend: str) -> list[torch.Tensor]:
        return update.results(self.tensors(), update.update_with(backend, self.optional, self.groups > 0))

    def exact(self) -> list[torch.Tensor]:
        return update.results(self.tensors(), lambda leaves: update.exact(leaves, self.optional))

    def names(self) -> list[str]:
        gradients = ["dstate", "du", "ddelta", "dA", "dB", "dC"] + ["dD", "dz", "ddelta_bias"] * self.optional
        return ["y", "state", *gradients]

    def wrong(self, ours: list[torch.Tensor], reference: list[torch.Tensor], exact: list[torch.Tensor]) -> str:
        return far_off(self, self.names(), ours, reference, exact)
