"""The short depthwise causal convolution of Mamba's blocks, over sequences or a few steps at a time."""

import torch
from torch import Tensor

from vmddpm_kernels.checks import check_flag, check_float, check_optional, check_shape, check_tensor, is_non_overlapping
from vmddpm_kernels.ops.causal_conv1d import convolve, convolve_in_place
from vmddpm_kernels.step_inputs import ConvInputs

_INDICES = (torch.int32, torch.int64)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
    channel_last: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise causal convolution: step l depends on steps l - width + 1 to l.

        v_l = bias + sum_k weight_k x_{l-width+1+k},   y_l = v_l, or SiLU(v_l)

    Args:
        x: (batch, dim, length), or (batch, length, dim) with `channel_last`. Any strides.
        weight: (dim, width). Widths 2 to 4 have kernels; PyTorch computes other widths.
        bias: (dim,).
        initial_states: (batch, dim, width - 1), the steps before the first; zeros if not given.
        return_final_states: also return the last width - 1 steps of `initial_states` and x, (batch, dim, width - 1).
        activation: None, "silu" or "swish", which means the same.
        channel_last: see the shapes above.
        backend: "cuda", "triton", "cpu" or "reference"; the best available one for x's device by default.

    Returns:
        y in x's shape, dtype and memory order, rounded once; the final states in x's dtype, with gradient.

    Raises:
        TypeError, ValueError: if an argument is invalid; the message names it.

    Example:
        >>> x, weight = torch.randn(2, 6, 20), torch.randn(6, 4)
        >>> y = causal_conv1d(x, weight, activation="silu")                     # (batch, dim, length)
    """
    last, silu = check_flag("channel_last", channel_last), check_activation(activation)
    wanted = check_flag("return_final_states", return_final_states)
    axes = "batch, length, dim" if last else "batch, dim, length"
    check_float("x", x)
    if x.dim() != 3:
        raise ValueError(f"x must have shape ({axes}), got {tuple(x.shape)}")
    steps = x if last else x.mT                                                 # (batch, length, dim)
    _check_weight(weight, x, steps.shape[2])
    window = (x.shape[0], weight.shape[0], weight.shape[1] - 1)
    check_optional("initial_states", initial_states, x, "batch, dim, width - 1", window)
    history = None if initial_states is None else initial_states.mT
    y = convolve(ConvInputs(steps, weight, bias, history), silu, backend)
    y = y if last else y.mT
    if not wanted:
        return y
    before = steps.new_zeros(x.shape[0], weight.shape[1] - 1, weight.shape[0]) if history is None else history
    return y, torch.cat([before.to(x.dtype), steps], dim=1)[:, steps.shape[1] :].mT


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The next steps of `causal_conv1d`. `conv_state` holds the latest steps; x is appended to it in place.

    Args:
        x: (batch, dim), or (batch, dim, length) for several steps.
        conv_state: (batch, dim, state_len) with state_len at least width - 1, the latest steps; updated in place, so no
            other argument may share its memory.
        weight, bias, activation, backend: as in `causal_conv1d`.
        cache_seqlens: (batch,) int32 or int64. `conv_state` is then a ring buffer, and the next step is written at
            cache_seqlens % state_len.
        conv_state_indices: (batch,) int32 or int64, all different. `conv_state` is then (entries, dim, state_len), and
            sequence b of x uses entry conv_state_indices[b]. A negative index marks padding: its y is 0.

    Returns:
        y in x's shape and dtype.

    Raises:
        TypeError, ValueError: if an argument is invalid; the message names it.

    Example:
        >>> state, weight = torch.zeros(2, 6, 4), torch.randn(6, 4)
        >>> y = causal_conv1d_update(torch.randn(2, 6), state, weight, activation="silu")   # (batch, dim)
    """
    silu = check_activation(activation)
    check_float("x", x)
    if x.dim() not in (2, 3):
        raise ValueError(f"x must have shape (batch, dim) or (batch, dim, length), got {tuple(x.shape)}")
    _check_weight(weight, x, x.shape[1])
    check_float("conv_state", conv_state, x)
    rows = x.shape[0] if conv_state_indices is None else (conv_state.shape[0] if conv_state.dim() else 0)
    if conv_state.dim() != 3 or conv_state.shape[:2] != (rows, x.shape[1]):
        raise ValueError(
            f"conv_state must have shape (batch, dim, state_len) = ({rows}, {x.shape[1]}, state_len), "
            f"got {tuple(conv_state.shape)}"
        )
    if conv_state.shape[2] < weight.shape[1] - 1:
        raise ValueError(
            f"conv_state (batch, dim, state_len) must hold width - 1 = {weight.shape[1] - 1} steps, "
            f"got state_len = {conv_state.shape[2]}"
        )
    if conv_state.requires_grad and conv_state.is_leaf and torch.is_grad_enabled():
        raise ValueError("conv_state is a leaf that requires gradient, which cannot be updated in place; clone it")
    for name, t in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if t is not None:
            check_tensor(name, t, x, _INDICES)
            check_shape(name, t, "batch", (x.shape[0],))
    steps = x.unsqueeze(1) if x.dim() == 2 else x.mT                            # (batch, length, dim)
    y = None
    inputs = ConvInputs(steps, weight, bias)
    inputs.check()
    # A kernel that accumulates in float32 would round a float64 state.
    exact = conv_state.dtype != torch.float64 or inputs.accumulation() == torch.float64
    if cache_seqlens is None and conv_state_indices is None and exact and is_non_overlapping(conv_state):
        y = convolve_in_place(steps, conv_state.mT, weight, bias, silu, backend)
    if y is None:
        y = _by_copies(steps, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices, backend)
    return y.squeeze(1) if x.dim() == 2 else y.mT


def _by_copies(
    steps: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool,
    cache_seqlens: Tensor | None, conv_state_indices: Tensor | None, backend: str | None,
) -> Tensor:  # fmt: skip
    """The update composed of PyTorch operators and `convolve`, for ring buffers, indices and expanded states."""
    rows = None if conv_state_indices is None else conv_state_indices.long()
    # (batch, state_len, dim), before the update
    state = conv_state.mT.clone() if rows is None else conv_state.mT[rows.clamp(min=0)]
    before, size = weight.shape[1] - 1, state.shape[1]
    if cache_seqlens is None:
        history = state[:, size - before :]
        after = torch.cat([state, steps.to(state.dtype)], dim=1)[:, steps.shape[1] :]
    else:
        start, kept = cache_seqlens.long()[:, None], max(0, steps.shape[1] - size)  # earlier steps are overwritten

        def positions(first: int, end: int) -> Tensor:  # (B, end - first, D)
            offsets = torch.arange(first, end, device=steps.device)
            return ((start + offsets) % size)[..., None].expand(-1, -1, steps.shape[2])

        history = state.gather(1, positions(-before, 0))
        after = state.scatter(1, positions(kept, steps.shape[1]), steps[:, kept:].to(state.dtype))
    y = convolve(ConvInputs(steps, weight, bias, history), silu, backend)
    if rows is None:
        conv_state.copy_(after.mT)
        return y
    there = rows >= 0
    conv_state.index_copy_(0, rows[there], after.mT[there])
    return torch.where(there[:, None, None], y, torch.zeros_like(y))


def check_activation(activation: str | None) -> bool:
    """Whether to apply SiLU. Raise ValueError unless `activation` is None, "silu" or "swish"."""
    if activation is None:
        return False
    if activation not in ("silu", "swish"):
        raise ValueError(f'activation must be None, "silu" or "swish", got {activation!r}')
    return True


def _check_weight(weight: Tensor, x: Tensor, channels: int) -> None:
    check_float("weight", weight, x)
    if weight.dim() != 2 or weight.shape[1] < 1:
        raise ValueError(f"weight must have shape (dim, width) with width at least 1, got {tuple(weight.shape)}")
    check_shape("weight", weight, "dim, width", (channels, weight.shape[1]))
