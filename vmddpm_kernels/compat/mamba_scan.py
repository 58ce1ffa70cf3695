"""mamba_ssm's selective scan, on any device.

As in mamba_ssm, flags are converted to bool, so None is False. Differences: the last state has a gradient, float64 is
computed in float64, and delta, B and C may have different dtypes.
"""

from typing import Literal, overload

from torch import Tensor

from vmddpm_kernels.checks import check_float, check_truth
from vmddpm_kernels.compat.complex_scan import complex_scan
from vmddpm_kernels.compat.groups import common_groups
from vmddpm_kernels.selective_scan import selective_scan


@overload
def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool | None = False,
    return_last_state: Literal[False] | None = False,
) -> Tensor: ...  # fmt: skip
@overload
def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool | None = False,
    *, return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool | None = False,
    return_last_state: bool | None = False,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool | None = False,
    return_last_state: bool | None = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`vmddpm_kernels.selective_scan` with mamba_ssm's arguments.

    Args:
        u, delta, z: (batch, dim, length).
        A: (dim, d_state), real or complex.
        B, C: (dim, d_state), constant over steps, (batch, d_state, length) or (batch, groups, d_state, length). If A is
            complex, the last two are real with 2 * length alternating real and imaginary parts.
        D, delta_bias: (dim,).

    Returns:
        out (batch, dim, length) in u's dtype; with `return_last_state` also the state after the last step, (batch, dim,
        d_state), in A's dtype.

    Raises:
        TypeError, ValueError: if an argument is invalid; the message names it.

    Example:
        >>> u, delta, A = torch.randn(2, 6, 20), torch.rand(2, 6, 20), -torch.rand(6, 16)
        >>> B, C = torch.randn(2, 16, 20), torch.randn(2, 16, 20)
        >>> selective_scan_fn(u, delta, A, B, C, delta_softplus=True).shape
        torch.Size([2, 6, 20])
    """
    return _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, backend=None)


@overload
def selective_scan_ref(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool | None = False,
    return_last_state: Literal[False] | None = False,
) -> Tensor: ...  # fmt: skip
@overload
def selective_scan_ref(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool | None = False,
    *, return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def selective_scan_ref(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool | None = False,
    return_last_state: bool | None = False,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool | None = False,
    return_last_state: bool | None = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan_fn` in plain PyTorch, one step at a time."""
    return _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, backend="reference")


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool | None,
    return_last_state: bool | None,
    backend: str | None,
) -> Tensor | tuple[Tensor, Tensor]:
    softplus = check_truth("delta_softplus", delta_softplus)
    wanted = check_truth("return_last_state", return_last_state)
    check_float("u", u)
    if u.dim() != 3:
        raise ValueError(f"u must have shape (batch, dim, length), got {tuple(u.shape)}")
    if isinstance(A, Tensor) and A.is_complex():
        out, last_state = complex_scan(u, delta, A, B, C, D, z, delta_bias, softplus)
        return (out, last_state) if wanted else out
    check_float("B", B, u)
    check_float("C", C, u)
    B, C = common_groups(u, B, C)
    out, last_state = selective_scan(
        u, delta, A, B, C, D, z, delta_bias,
        delta_softplus=softplus, return_last_state=True, backend=backend,
    )  # fmt: skip
    return (out, last_state.to(A.dtype)) if wanted else out
