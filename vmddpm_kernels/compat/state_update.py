"""The functions of `mamba_ssm.ops.triton.selective_state_update`, with the same signatures, on any device."""

from torch import Tensor

from vmddpm_kernels.checks import INTEGERS, check_tensor, check_truth
from vmddpm_kernels.selective_state_update import selective_state_update as update

__all__ = ["selective_state_update", "selective_state_update_ref"]


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool | None = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """`vmddpm_kernels.selective_state_update` with mamba_ssm's arguments.

    Args:
        state: (batch, dim, d_state) or (batch, heads, headdim, d_state), updated in place.
        state_batch_indices: (batch,), the rows of `state` for the sequences of x, all different.
    """
    return _update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, backend=None)


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool | None = False,
) -> Tensor:
    """`selective_state_update` in plain PyTorch."""
    return _update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, None, backend="reference")


def _update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool | None, rows: Tensor | None, backend: str | None,
) -> Tensor:  # fmt: skip
    if rows is not None:
        check_tensor("state_batch_indices", rows, state, INTEGERS)
    if rows is not None and bool((rows < 0).any()):
        raise ValueError("state_batch_indices must not be negative")
    used = state if rows is None else state[rows.long()]
    y = update(
        used, x, dt, A, B, C, D, z, dt_bias, delta_softplus=check_truth("dt_softplus", dt_softplus), backend=backend
    )
    if rows is not None:
        state.index_copy_(0, rows.long(), used)
    return y
