"""The functions of the `selective_scan` package of older VMamba code and VM-UNet, with the same signatures."""

from torch import Tensor

from vmddpm_kernels.compat import vmamba

__all__ = ["selective_scan_fn", "selective_scan_ref"]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
    backnrows: int = -1,
) -> Tensor:
    """`vmamba.selective_scan_fn` in u's dtype, softplus off by default. `nrows` and `backnrows` are ignored."""
    return vmamba.selective_scan_fn(u, delta, A, B, C, D, delta_bias, delta_softplus, oflex=False)


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """`selective_scan_fn` in plain PyTorch, one step at a time."""
    return vmamba.selective_scan_fn(u, delta, A, B, C, D, delta_bias, delta_softplus, oflex=False, backend="torch")
