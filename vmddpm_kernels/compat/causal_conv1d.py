"""The functions of the `causal_conv1d` package, with the same signatures, on any device.

x has any strides and y has the same, as in that package. Differences: final states are supported in all memory orders,
all inputs get gradients, and PyTorch computes widths above 4. Packed sequences (`seq_idx`) are not supported."""

from typing import Any

from torch import Tensor

from vmddpm_kernels.causal_conv1d import causal_conv1d
from vmddpm_kernels.causal_conv1d import causal_conv1d_update as update
from vmddpm_kernels.checks import check_truth

__all__ = [
    "CausalConv1dFn",
    "causal_conv1d_fn",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "causal_conv1d_update_ref",
]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool | None = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """`vmddpm_kernels.causal_conv1d` with causal_conv1d's arguments.

    Args:
        x: (batch, dim, length).
        weight, bias: (dim, width) and (dim,).
        seq_idx: must be None; a string is the activation, the fourth argument up to causal_conv1d 1.0.
        initial_states: (batch, dim, width - 1).
        return_final_states: also return the last width - 1 steps.
        final_states_out: (batch, dim, width - 1), receives the final states.
        activation: None, "silu" or "swish".

    Returns:
        y (batch, dim, length) in x's dtype; with `return_final_states` also the final states (batch, dim, width - 1).

    Raises:
        NotImplementedError: if `seq_idx` is given.
        TypeError, ValueError: if an argument is invalid; the message names it.
    """
    return _convolve(
        x, weight, bias, seq_idx, initial_states, return_final_states, final_states_out, activation, backend=None
    )


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | str | None = None,
    return_final_states: bool | None = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """`causal_conv1d_fn` in plain PyTorch; a string as fourth argument is the activation."""
    if isinstance(initial_states, str):
        initial_states, activation = None, initial_states
    return _convolve(
        x, weight, bias, None, initial_states, return_final_states, final_states_out, activation, backend="reference"
    )


class CausalConv1dFn:
    """`causal_conv1d_fn` with the interface of the package's autograd Function."""

    apply = staticmethod(causal_conv1d_fn)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """`vmddpm_kernels.causal_conv1d_update`. x is (batch, dim) or (batch, dim, length); conv_state (batch, dim,
    state_len) is updated in place."""
    return update(
        x, conv_state, weight, bias, activation=activation, cache_seqlens=cache_seqlens,
        conv_state_indices=conv_state_indices,
    )  # fmt: skip


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d_update` in plain PyTorch."""
    return update(
        x, conv_state, weight, bias, activation=activation, cache_seqlens=cache_seqlens, backend="reference"
    )


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | str | None, initial_states: Tensor | None,
    return_final_states: bool | None, final_states_out: Tensor | None, activation: str | None, backend: str | None,
) -> Any:  # fmt: skip
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    if seq_idx is not None:
        raise NotImplementedError(
            "seq_idx is not supported: packed sequences are not kept apart. Pass them as a batch"
        )
    wanted = check_truth("return_final_states", return_final_states)
    result = causal_conv1d(
        x, weight, bias, initial_states=initial_states, return_final_states=wanted, activation=activation,
        backend=backend,
    )  # fmt: skip
    if not wanted or final_states_out is None:
        return result
    y, final_states = result
    final_states_out.copy_(final_states)
    return y, final_states_out
