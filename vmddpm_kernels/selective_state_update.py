"""One step of the selective scan (S6), for decoding token by token."""

from typing import NoReturn

import torch
from torch import Tensor

from vmddpm_kernels.checks import check_flag, is_non_overlapping, misnamed
from vmddpm_kernels.ops.state_update import step
from vmddpm_kernels.step_inputs import StateInputs


def selective_state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *positions: NoReturn,
    delta_softplus: bool = False,
    backend: str | None = None,
    **names: NoReturn,
) -> Tensor:
    """One step of `selective_scan` (Mamba, arXiv 2312.00752, Algorithm 2), which updates the state in place.

        h = exp(delta A) h + delta B u,   y = C h + D u, or (C h + D u) * silu(z)

    Tensors have `dim` channels, or `heads` heads of `headdim` channels; as in Mamba-2, each group of heads / groups
    consecutive heads shares B and C.

    Args:
        state: (batch, dim, d_state) or (batch, heads, headdim, d_state), updated in place; any floating dtype, computed
            in float32 or wider.
        u, delta, z: (batch, dim) or (batch, heads, headdim).
        A: (dim, d_state) or (heads, headdim, d_state); may be expanded.
        B, C: (batch, d_state) or (batch, groups, d_state), with heads divisible by groups.
        D, delta_bias: (dim,) or (heads, headdim).
        delta_softplus: apply softplus to delta + delta_bias (identity above 20).
        backend: "cuda", "triton", "cpu" or "reference"; the best available one for the state's device by default.

    Returns:
        y in u's shape and dtype. All inputs get gradients, including the state before the step.

    Raises:
        TypeError, ValueError: if an argument is invalid; the message names it.

    Example:
        >>> state, A = torch.zeros(2, 6, 16), -torch.rand(6, 16)
        >>> u, delta, B, C = torch.randn(2, 6), torch.rand(2, 6), torch.randn(2, 16), torch.randn(2, 16)
        >>> y = selective_state_update(state, u, delta, A, B, C)                # (batch, dim)
    """
    if positions or names:
        raise misnamed("selective_state_update", positions, names)
    softplus = check_flag("delta_softplus", delta_softplus)
    inputs = StateInputs(state, u, delta, A, B, C, D, z, delta_bias)
    inputs.check()
    if not is_non_overlapping(state):
        raise ValueError("state is updated in place and must not be expanded: some of its elements share memory")
    if state.requires_grad and state.is_leaf and torch.is_grad_enabled():
        raise ValueError("state is a leaf that requires gradient, which cannot be updated in place; clone it")
    return step(inputs, softplus, backend)
