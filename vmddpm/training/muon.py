"""The Muon optimiser (Jordan et al., 2024): steps along orthogonalised momentum, whose singular values are near 1."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from vmddpm.errors import InputError

# Jordan et al. (2024): 5 rounds of X <- a X + b (X X^T) X + c (X X^T)^2 X bring singular values into [0.7, 1.2].
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
ROUNDS = 5
RMS = 0.2  # RMS of a step at learning rate 1, like Adam's (Liu et al., 2025, arXiv 2502.16982, section 2.2)


class Muon(torch.optim.Optimizer):
    """Steps weights along their orthogonalised Nesterov momentum, at Adam's learning rates.

    `torch.optim.Muon` takes the same steps, but only for 2-D weights, one at a time. This one also takes convolution
    kernels and stacks of matrices, and steps weights of equal shape together.

    Args:
        weights: each (out, in), a stack (n, out, in), or a kernel (out, in, *sides) of two or three sides.
        rate: the learning rate. The root mean square of a step is about a fifth of it.
        momentum: decay of the average of the gradients.
        dtype: dtype of the orthogonalisation; bfloat16 is exact enough, and faster on devices that support it.

    Raises:
        InputError: if the rate is negative, or a weight is no tensor or has fewer than 2 or more than 5 axes.

    Example:
        >>> layer = nn.Linear(8, 4, bias=False)
        >>> optimizer = Muon(layer.parameters(), 0.004)
        >>> layer(torch.ones(8)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], rate: float, momentum: float = 0.95, dtype: torch.dtype = torch.float32
    ) -> None:
        weights = list(weights)
        if not rate >= 0:
            raise InputError(f"the learning rate must be at least 0, got {rate}")
        for weight in weights:
            if not isinstance(weight, Tensor):
                raise InputError(f"Muon takes weights, not {type(weight).__name__}: make one optimiser for each group")
            if not 2 <= weight.dim() <= 5:
                raise InputError(f"a weight has shape {tuple(weight.shape)}; Muon takes matrices, stacks and kernels")
        super().__init__(weights, {"lr": rate, "momentum": momentum})
        self._dtype = dtype

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(_matrices(weight).shape[1:], []).append(weight)
            for weights in alike.values():
                self._step_same_shape(weights, group["lr"], group["momentum"])
        return loss

    def _step_same_shape(self, weights: list[nn.Parameter], rate: float, momentum: float) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        averages = [self._average(weight) for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, averages, momentum)
        matrices = torch.cat([_matrices(step) for step in ahead])
        steps = orthogonal(matrices.to(self._dtype)).to(matrices.dtype)
        steps.mul_(-rate * RMS * max(steps.shape[1:]) ** 0.5)
        parts = steps.split([len(_matrices(weight)) for weight in weights])
        changes: list[Tensor] = [_from_matrices(weight, part) for weight, part in zip(weights, parts)]
        torch._foreach_add_([*weights], changes)

    def _average(self, weight: nn.Parameter) -> Tensor:
        state: dict[str, Any] = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        average: Tensor = state["momentum_buffer"]
        return average


def orthogonal(matrices: Tensor) -> Tensor:
    """Approximate U V^T for each matrix U S V^T: (n, rows, columns) -> the same shape. Singular values become 0.7 to
    1.2, except tiny ones."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _matrices(weight: Tensor) -> Tensor:
    """The weight as (n, out, in). A kernel's axes are in channels_last order, so flattening such a kernel is a view."""
    if weight.dim() > 3:
        weight = weight.movedim(1, -1).flatten(1)
    return weight if weight.dim() == 3 else weight[None]


def _from_matrices(weight: Tensor, matrices: Tensor) -> Tensor:
    """The inverse of `_matrices`: matrices in the weight's shape."""
    if weight.dim() > 3:
        return matrices.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).movedim(-1, 1)
    return matrices.view(weight.shape)
