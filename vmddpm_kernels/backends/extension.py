"""The compiled extension `_native` of csrc/, and its arguments: input tensors in the form that kernels read, and output
tensors."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vmddpm_kernels.backends.protocol import BackendStatus
from vmddpm_kernels.checks import FLOATS, check_input, check_memory
from vmddpm_kernels.routes import check_table_once, private_copy
from vmddpm_kernels.scan_inputs import ScanInputs, ScanSizes

if TYPE_CHECKING:
    from vmddpm_kernels import _native as _native

    native = _native
else:
    native = None

problem = ""
try:
    # The package imports torch first, so that the extension uses torch's OpenMP runtime.
    native = import_module("vmddpm_kernels._native")
except ImportError as error:
    problem = (
        f"{error}; build the extension with `pip install .` in the source tree, and start python outside it, "
        "where its folder does not hide the installed package, or install with `pip install -e .`"
    )


def missing() -> BackendStatus:
    """The status of a backend without the extension."""
    return BackendStatus(False, problem, "not_installed")


def checked_sizes(
    inputs: ScanInputs, dy: Tensor | None = None, dlast_state: Tensor | None = None
) -> ScanSizes:
    """`inputs.sizes()` after `inputs.check()` and `check_results`, at a third of the cost for valid inputs."""
    sizes = None if native is None else native.scan_sizes(inputs, dy, dlast_state)
    if sizes is None:
        inputs.check()
        sizes = inputs.sizes()
        check_results(inputs, sizes, dy, dlast_state)
    return sizes


def check_results(inputs: ScanInputs, sizes: ScanSizes, dy: Tensor | None, dlast_state: Tensor | None) -> None:
    """Raise TypeError or ValueError unless the gradients of the results fit the inputs."""
    x = inputs.x
    if dy is not None:
        axes = "batch, length, dim" if sizes.sum_routes else "batch, routes, length, dim"
        check_input("dy", dy, x, x.device, axes, image_shape(sizes), FLOATS)
    if dlast_state is not None:
        state = (sizes.batch, sizes.routes, sizes.channels, sizes.states)
        check_input("dlast_state", dlast_state, x, x.device, "batch, routes, dim, d_state", state, FLOATS)


class ScanOutputs(NamedTuple):
    """The outputs of a forward kernel."""

    y: Tensor
    last_state: Tensor | None
    checkpoints: Tensor | None
    narrow_y: Tensor | None = None  # on a CPU: the sum y rounded to x's dtype


class ScanGradients(NamedTuple):
    """The outputs of a backward kernel; None for an input that is None or needs no gradient."""

    dx: Tensor
    ddelta: Tensor | None
    dA: Tensor | None
    dB: Tensor | None
    dC: Tensor | None
    dD: Tensor | None
    ddelta_bias: Tensor | None
    dinitial_state: Tensor | None
    ddt_proj: Tensor | None = None
    narrow_dx: Tensor | None = None  # on a CPU: the sum dx rounded to x's dtype


def accumulation(sizes: ScanSizes) -> torch.dtype:
    return torch.float64 if sizes.wide else torch.float32


def int32(table: Tensor) -> Tensor:
    """A contiguous int32 table. Values beyond int32 become -1 or 2^31 - 1, which are invalid pixels too."""
    if table.dtype != torch.int32:
        check_memory((table,))
        table = table.clamp(-1, 2**31 - 1).to(torch.int32)
    return contiguous(table)


def checked_table(table: Tensor | None, length: int, *, private: bool) -> Tensor | None:
    """The checked, contiguous int32 table; with `private`, a copy."""
    if table is None:
        return None
    check_table_once(table, length)
    if table.dtype == torch.int32:
        return private_copy(table) if private else contiguous(table)
    return private_copy(int32(table))


def contiguous(tensor: Tensor) -> Tensor:
    """`tensor.contiguous()` with a check of the storage, which may have been resized since the tensor was saved."""
    if tensor.is_contiguous():
        return tensor
    check_memory((tensor,))
    return tensor.contiguous()


def typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)` with the check of `contiguous`."""
    if tensor.dtype == dtype:
        return tensor
    check_memory((tensor,))
    return tensor.to(dtype)


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor, contiguous and in `dtype`; unchanged if it is so already."""
    return None if tensor is None else cast_given(tensor, dtype)


def cast_given(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if _is_cast(tensor, dtype):
        return tensor
    check_memory((tensor,))
    return tensor.detach().to(dtype).contiguous()


def _is_cast(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.dtype == dtype and tensor.is_contiguous()


def with_parameters_cast(inputs: ScanInputs, table: Tensor | None, dtype: torch.dtype) -> ScanInputs:
    """The inputs with `table`, and with A, D, delta_bias, initial_state and dt_proj contiguous in the accumulation's
    dtype."""
    x, delta, A, B, C, D, delta_bias, initial_state, dt_proj, given = inputs
    if (
        table is given
        and _is_cast(A, dtype)
        and (D is None or _is_cast(D, dtype))
        and (delta_bias is None or _is_cast(delta_bias, dtype))
        and (initial_state is None or _is_cast(initial_state, dtype))
        and (dt_proj is None or _is_cast(dt_proj, dtype))
    ):
        return inputs
    return ScanInputs(
        x, delta, cast_given(A, dtype), B, C, cast(D, dtype), cast(delta_bias, dtype), cast(initial_state, dtype),
        cast(dt_proj, dtype), table,
    )  # fmt: skip


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, which takes a microsecond, only if the dtype differs."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def empty(shape: Sequence[int], channel_first: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor (B, K, L, D), in memory (B, K, D, L) or (B, L, K, D); or (B, L, D), in memory (B, D, L) or (B, L,
    D)."""
    length, channels = shape[-2:]
    image = length * channels
    if len(shape) == 3:
        strides: tuple[int, ...] = (image, 1, length) if channel_first else (image, channels, 1)
    else:
        routes = shape[1]
        whole = routes * image
        strides = (whole, image, 1, length) if channel_first else (whole, channels, routes * channels, 1)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def image_shape(sizes: ScanSizes) -> tuple[int, ...]:
    """The shape of x, y and dx."""
    batch, routes, length, channels = sizes[:4]
    return (batch, length, channels) if sizes.sum_routes else (batch, routes, length, channels)


def empty_gradients(
    inputs: ScanInputs, pieces: int, needed: Sequence[bool], dx: Tensor, ddelta: Tensor | None,
    narrow_dx: Tensor | None = None, matrix_dtypes: tuple[torch.dtype, torch.dtype] | None = None,
) -> ScanGradients:  # fmt: skip
    """Empty gradients. dA, dD, ddelta_bias and ddt_proj get a leading axis of partial sums over parts of the batch if
    `pieces` > 1. dB and dC exist if ddelta does, in the accumulation's dtype or in `matrix_dtypes`."""
    _, _, A, B, _, D, delta_bias, initial_state, dt_proj, _ = inputs
    of_dB, of_dC = matrix_dtypes or (A.dtype, A.dtype)
    dB: Tensor | None
    if ddelta is None:
        dB = None
    elif B.dtype is of_dB and B.is_contiguous():
        dB = torch.empty_like(B)  # faster than with a shape
    else:
        dB = torch.empty(B.shape, dtype=of_dB, device=A.device)
    return ScanGradients(
        dx,
        ddelta,
        _partial(A, pieces) if needed[2] else None,
        dB,
        None if dB is None else torch.empty_like(dB, dtype=of_dC),
        None if D is None or not needed[5] else _partial(D, pieces),
        None if delta_bias is None or not needed[6] else _partial(delta_bias, pieces),
        None if initial_state is None or not needed[7] else torch.empty_like(initial_state),
        None if dt_proj is None or not needed[8] else _partial(dt_proj, pieces),
        narrow_dx,
    )


def _partial(parameter: Tensor, pieces: int) -> Tensor:
    return torch.empty_like(parameter) if pieces == 1 else parameter.new_empty((pieces, *parameter.shape))


def gradients_of(
    inputs: ScanInputs, arguments: ScanInputs, grads: ScanGradients, *, partial: bool
) -> list[Tensor | None]:
    """The gradients of the first nine inputs in their shapes and dtypes, None for None. torch adds `partial` sums
    here, in a fixed order. `arguments` are the converted inputs of the kernel."""
    if (
        arguments is inputs
        and not partial
        and grads.narrow_dx is None
        and grads.ddelta is not None
        and grads.dB is not None
        and inputs.B.dtype is inputs.C.dtype is grads.dB.dtype
        and inputs.x.dtype is grads.dx.dtype
        and inputs.delta.dtype is grads.ddelta.dtype
    ):
        return list(grads[:9])  # fast path: nothing to convert
    dx, *others, narrow_dx = grads
    return [
        g if g is None or (not partial and g.dtype is t.dtype) else _summed(g, t)  # type: ignore[union-attr]
        for g, t in zip((dx if narrow_dx is None else narrow_dx, *others), inputs)
    ]


def _summed(grad: Tensor, like: Tensor | None) -> Tensor:
    assert like is not None
    return rounded(grad.sum(0) if grad.dim() > like.dim() else grad, like.dtype)
