"""VMamba's selective scan (`csms6s.py`), with the same signatures, on any device."""

from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.checks import check_float, check_truth
from vmddpm_kernels.selective_scan import selective_scan

__all__ = [
    "SelectiveScanCore",
    "SelectiveScanCuda",
    "SelectiveScanMamba",
    "SelectiveScanOflex",
    "flops_selective_scan_fn",
    "flops_selective_scan_ref",
    "selective_scan_flop_jit",
    "selective_scan_fn",
]

# VMamba's names of kernels. All but "torch" use the default backend here and differ in the dtype of the result.
_BACKENDS = {"oflex": None, "core": None, "mamba": None, "torch": "reference"}


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    oflex: bool = True,
    backend: str | None = None,
) -> Tensor:
    """`vmddpm_kernels.selective_scan` with VMamba's arguments. The K*C channels form K groups.

    Args:
        u: (B, K*C, L).
        delta: (B, K*C, L), or (B, G, L) with one step size for each K*C/G neighbouring channels.
        A: (K*C, N).
        B, C: (B, K, N, L), or (B, N, L).
        D: (K*C,).
        delta_bias: (K*C,), or (G,).
        oflex: return float32, without rounding to half precision; otherwise u's dtype.
        backend: VMamba's "oflex", "core", "mamba" (the last two return u's dtype), "torch" (plain PyTorch), or one of
            `vmddpm_kernels.backends()`; by default the best one for u's device.

    Returns:
        (B, K*C, L).

    Raises:
        TypeError, ValueError: if an argument is invalid; the message names it.
    """
    delta, delta_bias = per_channel(u, delta, delta_bias)
    wide = check_truth("oflex", oflex) and backend not in ("core", "mamba")
    chosen = _BACKENDS.get(backend, backend) if isinstance(backend, str) else backend
    y = selective_scan(
        widened(u) if wide else u, delta, A, B, C, D, None, delta_bias,
        delta_softplus=check_truth("delta_softplus", delta_softplus), backend=chosen,
    )  # fmt: skip
    return y.float() if wide else y


def widened(u: Tensor) -> Tensor:
    return u.to(torch.promote_types(u.dtype, torch.float32))


def per_channel(u: Tensor, delta: Tensor, delta_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """delta (B, G, L) and delta_bias (G,) -> (B, K*C, L) and (K*C,)."""
    check_float("u", u)
    if u.dim() != 3:
        raise ValueError(f"u must have shape (B, K*C, L), got {tuple(u.shape)}")
    check_float("delta", delta, u)
    dim = u.shape[1]
    if delta.dim() != 3 or delta.shape[1] in (0, dim) or dim % delta.shape[1]:
        return delta, delta_bias  # selective_scan checks the shapes
    channels = dim // delta.shape[1]
    if delta_bias is not None:
        check_float("delta_bias", delta_bias, u)
        if delta_bias.dim() != 1 or delta_bias.shape[0] != delta.shape[1]:
            raise ValueError(
                f"delta_bias must have shape (G,) = ({delta.shape[1]},) as delta has, got {tuple(delta_bias.shape)}"
            )
        delta_bias = delta_bias.repeat_interleave(channels)
    return delta.repeat_interleave(channels, dim=1), delta_bias


class SelectiveScanOflex:
    """The scan with the signature of VMamba's older autograd Functions; `nrows` and `backnrows` are ignored."""

    @staticmethod
    def apply(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        nrows: int = 1,
        backnrows: int = 1,
        oflex: bool = True,
    ) -> Tensor:
        return selective_scan_fn(u, delta, A, B, C, D, delta_bias, delta_softplus, oflex)


class SelectiveScanCore:
    """`SelectiveScanOflex`, but the result is in u's dtype."""

    @staticmethod
    def apply(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        nrows: int = 1,
        backnrows: int = 1,
        oflex: bool = True,
    ) -> Tensor:
        return selective_scan_fn(u, delta, A, B, C, D, delta_bias, delta_softplus, oflex=False)


SelectiveScanMamba = SelectiveScanCore


class SelectiveScanCuda:
    """`selective_scan_fn` with the signature of VMamba's newer autograd Function."""

    @staticmethod
    def apply(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        oflex: bool = True,
        backend: str | None = None,
    ) -> Tensor:
        return selective_scan_fn(u, delta, A, B, C, D, delta_bias, delta_softplus, oflex, backend)


def flops_selective_scan_fn(
    B: int = 1,
    L: int = 256,
    D: int = 768,
    N: int = 16,
    with_D: bool = True,
    with_Z: bool = False,
    with_complex: bool = False,
) -> int:
    """VMamba's FLOP count of a scan: 9 for each step, channel and state, and 1 for each step and channel of D and z."""
    if with_complex:
        raise ValueError("with_complex must be False: complex states are not counted")
    return 9 * B * L * D * N + B * D * L * (bool(with_D) + bool(with_Z))


def flops_selective_scan_ref(
    B: int = 1,
    L: int = 256,
    D: int = 768,
    N: int = 16,
    with_D: bool = True,
    with_Z: bool = False,
    with_Group: bool = True,
    with_complex: bool = False,
) -> int:
    """VMamba's older count, in multiply-adds: NumPy's count of the scan's products as einsums, without its rounding."""
    if with_complex:
        raise ValueError("with_complex must be False: complex states are not counted")
    return 7 * B * D * L * N // 2 + B * D * L * (bool(with_D) + bool(with_Z))


def selective_scan_flop_jit(inputs: Any, outputs: Any, backend: str = "prefixsum", verbose: bool = True) -> int:
    """`flops_selective_scan_fn` of a traced call, a handle for fvcore's FlopCountAnalysis. `backend` and `verbose` are
    ignored."""
    batch, dim, length = inputs[0].type().sizes()
    return flops_selective_scan_fn(B=batch, L=length, D=dim, N=inputs[2].type().sizes()[1])
