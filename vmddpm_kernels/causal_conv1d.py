"""The short causal convolution of Mamba's blocks: depthwise, over sequences or a few steps at a time."""

import torch
from torch import Tensor

from vmddpm_kernels.checks import check_flag, check_float, check_shape, check_tensor, has_places_of_its_own
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
    """A depthwise convolution in which a step sees itself and the W - 1 steps before it.

        v_l = bias + sum_k weight_k x_{l-W+1+k},   y_l = v_l, or SiLU(v_l)

    Args:
        x: (B, D, L), or (B, L, D) with `channel_last`. Any strides.
        weight: (D, W). W from 2 to 4 has kernels; any other W is computed by PyTorch.
        bias: (D,).
        initial_states: (B, D, W - 1), the steps before the first; zeros if not given.
        return_final_states: also return the last W - 1 steps of x and what came before it, (B, D, W - 1).
        activation: None, "silu" or "swish", which is the same.
        channel_last: see the shapes above.
        backend: "cuda", "triton", "cpu" or "reference"; the best available one for x's device by default.

    Returns:
        y in x's shape, dtype and memory order, rounded once; the final states in x's dtype, with gradient.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.

    Example:
        >>> x, weight = torch.randn(2, 6, 20), torch.randn(6, 4)
        >>> y = causal_conv1d(x, weight, activation="silu")                     # (2, 6, 20)
    """
    last, silu = check_flag("channel_last", channel_last), check_activation(activation)
    wanted = check_flag("return_final_states", return_final_states)
    axes = "B, L, D" if last else "B, D, L"
    check_float("x", x)
    if x.dim() != 3:
        raise ValueError(f"x must have shape ({axes}), got {tuple(x.shape)}")
    steps = x if last else x.mT                                                 # (B, L, D)
    _check_weight(weight, x, steps.shape[2])
    if initial_states is not None:
        check_float("initial_states", initial_states, x)
        check_shape("initial_states", initial_states, "B, D, W - 1", (x.shape[0], *_window(weight, -1)))
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
    """The next step, or the next few, of `causal_conv1d`, after those that `conv_state` holds; they move on into it.

    Args:
        x: (B, D), or (B, D, L) for L steps.
        conv_state: (B, D, S) with S at least W - 1, the last S steps; changed in place, so that no other argument may
            lie in its memory.
        weight, bias, activation, backend: as in `causal_conv1d`.
        cache_seqlens: (B,) int32 or int64: `conv_state` is a ring, and the next step is written at cache_seqlens % S.
        conv_state_indices: (B,) int32 or int64: `conv_state` is (more, D, S), and these are the rows of x's sequences,
            all different; where one is negative there is no sequence, and y is 0.

    Returns:
        y in x's shape and dtype.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.

    Example:
        >>> state, weight = torch.zeros(2, 6, 4), torch.randn(6, 4)
        >>> y = causal_conv1d_update(torch.randn(2, 6), state, weight, activation="silu")   # (2, 6)
    """
    silu = check_activation(activation)
    check_float("x", x)
    if x.dim() not in (2, 3):
        raise ValueError(f"x must have shape (B, D) or (B, D, L), got {tuple(x.shape)}")
    _check_weight(weight, x, x.shape[1])
    check_float("conv_state", conv_state, x)
    rows = x.shape[0] if conv_state_indices is None else (conv_state.shape[0] if conv_state.dim() else 0)
    if conv_state.dim() != 3 or conv_state.shape[:2] != (rows, x.shape[1]):
        raise ValueError(
            f"conv_state must have shape (B, D, S) = ({rows}, {x.shape[1]}, S), got {tuple(conv_state.shape)}"
        )
    if conv_state.shape[2] < weight.shape[1] - 1:
        raise ValueError(
            f"conv_state (B, D, S) must hold W - 1 = {weight.shape[1] - 1} steps, got S = {conv_state.shape[2]}"
        )
    if conv_state.requires_grad and conv_state.is_leaf and torch.is_grad_enabled():
        raise ValueError("conv_state is a leaf that requires gradient, which cannot be changed in place; clone it")
    for name, t in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if t is not None:
            check_tensor(name, t, x, _INDICES)
            check_shape(name, t, "B", (x.shape[0],))
    steps = x.unsqueeze(1) if x.dim() == 2 else x.mT                            # (B, L, D)
    y = None
    inputs = ConvInputs(steps, weight, bias)
    inputs.check()
    exact = conv_state.dtype != torch.float64 or inputs.accumulation() == torch.float64  # steps move on as they are
    if cache_seqlens is None and conv_state_indices is None and exact and has_places_of_its_own(conv_state):
        y = convolve_in_place(steps, conv_state.mT, weight, bias, silu, backend)
    if y is None:
        y = _by_copies(steps, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices, backend)
    return y.squeeze(1) if x.dim() == 2 else y.mT


def _by_copies(
    steps: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool,
    cache_seqlens: Tensor | None, conv_state_indices: Tensor | None, backend: str | None,
) -> Tensor:  # fmt: skip
    """The update composed of operators that everybody can hear of."""
    rows = None if conv_state_indices is None else conv_state_indices.long()
    state = conv_state.mT.clone() if rows is None else conv_state.mT[rows.clamp(min=0)]     # (B, S, D), as it was
    before, size = weight.shape[1] - 1, state.shape[1]
    if cache_seqlens is None:
        history = state[:, size - before :]
        after = torch.cat([state, steps.to(state.dtype)], dim=1)[:, steps.shape[1] :]
    else:
        start, kept = cache_seqlens.long()[:, None], max(0, steps.shape[1] - size)  # earlier steps are written over

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
    """Whether SiLU follows. ValueError unless None, "silu" or "swish"."""
    if activation is None:
        return False
    if activation not in ("silu", "swish"):
        raise ValueError(f'activation must be None, "silu" or "swish", got {activation!r}')
    return True


def _check_weight(weight: Tensor, x: Tensor, channels: int) -> None:
    check_float("weight", weight, x)
    if weight.dim() != 2 or weight.shape[1] < 1:
        raise ValueError(f"weight must have shape (D, W) with W at least 1, got {tuple(weight.shape)}")
    check_shape("weight", weight, "D, W", (channels, weight.shape[1]))


def _window(weight: Tensor, more: int) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1] + more
