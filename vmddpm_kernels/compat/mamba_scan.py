"""mamba_ssm's selective scan, on any device.

As there, flags count by their truth, and None is False. What differs: the last state carries gradient,
float64 is computed in float64, and delta, B and C may have dtypes of their own.
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
        u, delta, z: (B, D, L).
        A: (D, N), real or complex.
        B, C: (D, N), the same at every step, (B, N, L), or (B, G, N, L); where A is complex, the last two are real and
            hold real and imaginary parts in turn, 2L of them.
        D, delta_bias: (D,).

    Returns:
        out (B, D, L) in u's dtype; and h_L (B, D, N) in A's dtype, if `return_last_state`.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
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
        raise ValueError(f"u must have shape (B, D, L), got {tuple(u.shape)}")
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
