"""One step of the selective scan (S6), for decoding token by token."""

from typing import NoReturn

import torch
from torch import Tensor

from vmddpm_kernels.checks import check_flag, has_places_of_its_own, misnamed
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
    """The next step of `selective_scan` (Mamba, arXiv 2312.00752, Algorithm 2), whose state moves on in place.

        h = exp(delta A) h + delta B u,   y = C h + D u, or (C h + D u) * silu(z)

    Channels D, or heads H of P channels, of which H / G neighbouring ones share B and C, as in Mamba-2.

    Args:
        state: (B, D, N) or (B, H, P, N), changed in place; any floating dtype, computed in float32 or wider.
        u, delta, z: (B, D) or (B, H, P).
        A: (D, N) or (H, P, N); may be expanded.
        B, C: (B, N) or (B, G, N) with H divisible by G.
        D, delta_bias: (D,) or (H, P).
        delta_softplus: apply softplus to delta + delta_bias (identity above 20).
        backend: "cuda", "triton", "cpu" or "reference"; the best available one for the state's device by default.

    Returns:
        y in u's shape and dtype. Gradients reach everything, the state before the step included.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.

    Example:
        >>> state, A = torch.zeros(2, 6, 16), -torch.rand(6, 16)
        >>> u, delta, B, C = torch.randn(2, 6), torch.rand(2, 6), torch.randn(2, 16), torch.randn(2, 16)
        >>> y = selective_state_update(state, u, delta, A, B, C)                # (2, 6)
    """
    if positions or names:
        raise misnamed("selective_state_update", positions, names)
    softplus = check_flag("delta_softplus", delta_softplus)
    inputs = StateInputs(state, u, delta, A, B, C, D, z, delta_bias)
    inputs.check()
    if not has_places_of_its_own(state):
        raise ValueError("state is changed in place and must not be expanded: some of its elements share memory")
    if state.requires_grad and state.is_leaf and torch.is_grad_enabled():
        raise ValueError("state is a leaf that requires gradient, which cannot be changed in place; clone it")
    return step(inputs, softplus, backend)
