"""The names of `mamba_ssm.ops.selective_scan_interface`, with its signatures, on any device."""

from vmddpm_kernels.compat.mamba_inner import (
    bimamba_inner_fn,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
)
from vmddpm_kernels.compat.mamba_scan import selective_scan_fn, selective_scan_ref

__all__ = [
    "MambaInnerFn",
    "SelectiveScanFn",
    "bimamba_inner_fn",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "selective_scan_fn",
    "selective_scan_ref",
]


class SelectiveScanFn:
    """`selective_scan_fn` for those who call mamba_ssm's autograd Function."""

    apply = staticmethod(selective_scan_fn)


class MambaInnerFn:
    """`mamba_inner_fn` for those who call mamba_ssm's autograd Function."""

    apply = staticmethod(mamba_inner_fn)
