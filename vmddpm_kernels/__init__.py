"""Selective scan (S6) and 2-D cross scan operators for PyTorch, in CUDA, Triton, C++ for the CPU and plain PyTorch."""

import sys

from vmddpm_kernels.backends import backends
from vmddpm_kernels.backends.protocol import BackendStatus
from vmddpm_kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from vmddpm_kernels.cross_scan import cross_merge, cross_scan
from vmddpm_kernels.cross_selective_scan import cross_selective_scan
from vmddpm_kernels.group_norm import group_norm_silu
from vmddpm_kernels.routes import patch_permutation, routes
from vmddpm_kernels.selective_scan import selective_scan
from vmddpm_kernels.selective_state_update import selective_state_update

if "torch.utils.flop_counter" in sys.modules:
    from vmddpm_kernels import flops as flops

__version__ = "0.1.0"

__all__ = [
    "BackendStatus",
    "backends",
    "causal_conv1d",
    "causal_conv1d_update",
    "cross_merge",
    "cross_scan",
    "cross_selective_scan",
    "group_norm_silu",
    "patch_permutation",
    "routes",
    "selective_scan",
    "selective_state_update",
]
