"""The compiled kernels as operators of PyTorch, `torch.ops.vmddpm.*`. Each has a kernel, the backend's, and a fake
kernel, which states shapes, dtypes and strides; its derivative is where its autograd Function is."""

from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends import implementation
from vmddpm_kernels.backends.extension import empty
from vmddpm_kernels.library import define

_SCAN = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, Tensor? initial_state, "
    "Tensor? table"
)
_OPTIONS = "bool delta_softplus, bool zoh, bool channel_first, str backend"


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, softplus, zoh, channel_first, backend, checkpoint = args
    y, last_state, checkpoints = implementation(backend).selective_scan_forward(
        tensors, softplus, zoh, channel_first, checkpoint=checkpoint
    )
    return y, last_state, last_state.new_empty(0) if checkpoints is None else checkpoints


def _forward_fake(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *_, channel_first, backend, checkpoint = args
    batch, routes, length, channels = delta.shape
    states = A.shape[2]
    dtype = torch.float64 if torch.float64 in [t.dtype for t in (x, delta, A, B, C)] else torch.float32
    y = _image_like(x, delta, channel_first)
    last_state = x.new_empty((batch, routes, channels, states), dtype=dtype)
    sizes = (batch, routes, length, channels, states, dtype == torch.float64)
    shape = implementation(backend).checkpoint_shape(*sizes) if checkpoint else (0,)
    return y, last_state, x.new_empty(shape, dtype=dtype)


def _image_like(x: Tensor, delta: Tensor, channel_first: bool) -> Tensor:
    """y or dx: (B, L, D) where the routes share the image, else (B, K, L, D)."""
    return empty(tuple(x.shape if x.dim() == 3 else delta.shape), channel_first, x.dtype, x.device)


def _backward(dy: Tensor | None, dlast_state: Tensor | None, *args: Any) -> list[Tensor]:
    *tensors, checkpoints, softplus, zoh, channel_first, backend = args
    backward = implementation(backend).selective_scan_backward
    return backward(dy, dlast_state, tensors, checkpoints, softplus, zoh, channel_first)


def _backward_fake(dy: Tensor | None, dlast_state: Tensor | None, x: Tensor, delta: Tensor, *args: Any) -> list[Tensor]:
    parameters, channel_first = args[:6], args[-2]
    dx = _image_like(x, delta, channel_first)
    ddelta = empty(tuple(delta.shape), channel_first, delta.dtype, delta.device)
    return [dx, ddelta, *(t.new_empty(t.shape) for t in parameters if t is not None)]


def _scan_routes(x: Tensor, table: Tensor, channel_first: bool, backend: str) -> Tensor:
    return implementation(backend).scan_routes(x, table, channel_first=channel_first)


def _scan_routes_fake(x: Tensor, table: Tensor, channel_first: bool, backend: str) -> Tensor:
    batch, _, length, channels = x.shape
    return empty((batch, table.shape[0], length, channels), channel_first, x.dtype, x.device)


def _merge_routes(y: Tensor, table: Tensor, merge: bool, channel_first: bool, backend: str) -> Tensor:
    return implementation(backend).merge_routes(y, table, merge=merge, channel_first=channel_first)


def _merge_routes_fake(y: Tensor, table: Tensor, merge: bool, channel_first: bool, backend: str) -> Tensor:
    batch, routes, length, channels = y.shape
    return empty((batch, 1 if merge else routes, length, channels), channel_first, y.dtype, y.device)


# Tensors as in `selective_scan.scan_routes_with_states`. checkpoints are what the backward starts from; without
# `checkpoint` they are empty, and nothing can be differentiated.
selective_scan_forward = define(
    f"selective_scan_forward({_SCAN}, {_OPTIONS}, bool checkpoint) -> "
    "(Tensor y, Tensor last_state, Tensor checkpoints)",
    _forward,
    _forward_fake,
)
# A gradient for each of the first eight tensors that is given, in its dtype.
selective_scan_backward = define(
    f"selective_scan_backward(Tensor? dy, Tensor? dlast_state, {_SCAN}, Tensor checkpoints, {_OPTIONS}) -> Tensor[]",
    _backward,
    _backward_fake,
)
# x (B, K or 1, L, C) -> (B, K, L, C), and its adjoint.
scan_routes = define(
    "scan_routes(Tensor x, Tensor table, bool channel_first, str backend) -> Tensor", _scan_routes, _scan_routes_fake
)
merge_routes = define(
    "merge_routes(Tensor y, Tensor table, bool merge, bool channel_first, str backend) -> Tensor",
    _merge_routes,
    _merge_routes_fake,
)
