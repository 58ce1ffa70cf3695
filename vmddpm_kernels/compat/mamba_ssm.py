"""The functions of `mamba_ssm.ops.selective_scan_interface`, with the same signatures, on any device."""

from vmddpm_kernels.compat.mamba_inner import (
    bimamba_inner_fn,
    bimamba_inner_ref,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
    rms_norm_forward,
)
from vmddpm_kernels.compat.mamba_scan import selective_scan_fn, selective_scan_ref

__all__ = [
    "BiMambaInnerFn",
    "MambaInnerFn",
    "MambaInnerFnNoOutProj",
    "SelectiveScanFn",
    "bimamba_inner_fn",
    "bimamba_inner_ref",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "rms_norm_forward",
    "selective_scan_fn",
    "selective_scan_ref",
]


class SelectiveScanFn:
    """`selective_scan_fn` with the interface of mamba_ssm's autograd Function."""

    apply = staticmethod(selective_scan_fn)


class MambaInnerFn:
    """`mamba_inner_fn` with the interface of mamba_ssm's autograd Function."""

    apply = staticmethod(mamba_inner_fn)


class MambaInnerFnNoOutProj:
    """`mamba_inner_fn_no_out_proj` with the interface of the autograd Function of Vim's fork."""

    apply = staticmethod(mamba_inner_fn_no_out_proj)


class BiMambaInnerFn:
    """`bimamba_inner_fn` with the interface of the autograd Function of Vim's fork."""

    apply = staticmethod(bimamba_inner_fn)
