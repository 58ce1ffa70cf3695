"""`fwd` and `bwd` of the compiled modules `selective_scan_cuda`, `selective_scan_cuda_core` and its variants `_nrow`
(with the same functions), `_ndstate` and `_oflex`, for code with its own autograd Function around them.

Their x, the states between chunks, is (batch, dim, 1, 2 * d_state) here. It has the last state at x[:, :, -1, 1::2],
where that code reads it, and zeros elsewhere. `bwd` recomputes the forward.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.checks import check_float, check_optional
from vmddpm_kernels.compat import mamba_scan, vmamba


def mamba_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """`selective_scan_cuda.fwd`: [out, x], and out * silu(z) third if z is given."""
    with torch.no_grad():
        scan = mamba_scan.selective_scan_fn
        out, last_state = scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state=True)
        outs = [out, _states(last_state)]
        if z is not None:
            outs.append(scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus))
        return outs


def mamba_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """`selective_scan_cuda.bwd`: [du, ddelta, dA, dB, dC, dD, ddelta_bias]; then dz if z is given, written to `dz` if
    that is given; then out * silu(z) if `recompute_out_z`."""

    scan = partial(mamba_scan.selective_scan_fn, delta_softplus=delta_softplus)
    result, grads = _gradients(
        scan, {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}, dout
    )
    dz_computed = grads.pop(6)
    if z is not None and dz is not None:
        check_optional("dz", dz, z, "batch, dim, length", tuple(z.shape))
        with torch.no_grad():
            dz.copy_(dz_computed)
    if z is not None:
        grads.append(dz_computed if dz is None else dz)
    return [*grads, result] if recompute_out_z else grads


def oflex_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int,
    out_float: bool,
) -> list[Tensor]:
    """`selective_scan_cuda_oflex.fwd`: [out, x], out in float32 if `out_float`."""
    delta, delta_bias = vmamba.per_channel(u, delta, delta_bias)
    out, x = mamba_fwd(vmamba.widened(u) if out_float else u, delta, A, B, C, D, None, delta_bias, delta_softplus)
    return [out, x]


def core_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor]:
    """`selective_scan_cuda_core.fwd`: [out, x], out in u's dtype."""
    return oflex_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows, False)


def vmamba_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor | None]:
    """`bwd` of `selective_scan_cuda_oflex` and `selective_scan_cuda_core`:
    [du, ddelta, dA, dB, dC, dD, ddelta_bias]."""
    scan = partial(vmamba.selective_scan_fn, delta_softplus=delta_softplus)
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    return _gradients(scan, tensors, dout)[1]


def ndstate_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor]:
    """`selective_scan_cuda_ndstate.fwd`: `core_fwd` with one state and no axis for it. A is (dim,), B and C are (batch,
    groups, length)."""
    A, B, C = _with_state(A, B, C)
    return core_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows)


def ndstate_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor | None]:
    """`selective_scan_cuda_ndstate.bwd`: `vmamba_bwd` with A, B and C as in `ndstate_fwd`."""
    shapes = A.shape, B.shape, C.shape
    A, B, C = _with_state(A, B, C)
    grads = vmamba_bwd(u, delta, A, B, C, D, delta_bias, dout, x, delta_softplus, nrows)
    for i, shape in enumerate(shapes, start=2):
        grad = grads[i]
        grads[i] = None if grad is None else grad.view(shape)
    return grads


def _with_state(A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    axes_of_matrix = "batch, groups, length"
    for name, t, axes, dims in (("A", A, "dim", 1), ("B", B, axes_of_matrix, 3), ("C", C, axes_of_matrix, 3)):
        check_float(name, t)
        if t.dim() != dims:
            raise ValueError(f"{name} must have shape ({axes}), got {tuple(t.shape)}")
    return A[:, None], B.unsqueeze(2), C.unsqueeze(2)


def _states(last_state: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(last_state), last_state], dim=-1).flatten(2)[:, :, None]


def _gradients(
    scan: Callable[..., Any], tensors: dict[str, Tensor | None], dout: Tensor
) -> tuple[Tensor, list[Any]]:
    """scan(*tensors) and the gradient of each tensor; None for None."""
    with torch.enable_grad():
        leaves = [None if t is None else _leaf(name, t) for name, t in tensors.items()]
        result = scan(*leaves)
    check_optional("dout", dout, result, "batch, dim, length", tuple(result.shape))
    present = [t for t in leaves if t is not None]
    if result.requires_grad:
        grads = torch.autograd.grad(result, present, dout.to(result.dtype), allow_unused=True, materialize_grads=True)
    else:  # empty sequences
        grads = tuple(map(torch.zeros_like, present))
    remaining = iter(grads)
    return result.detach(), [None if t is None else next(remaining) for t in leaves]


def _leaf(name: str, tensor: Tensor) -> Tensor:
    if not (isinstance(tensor, Tensor) and tensor.is_complex()):
        check_float(name, tensor)
    return tensor.detach().requires_grad_()
