"""Cross scan, selective scan and cross merge in one operator: the core of a vision state-space model."""

from typing import Literal, NoReturn, overload

from torch import Tensor

from vmddpm_kernels.checks import check_axes, check_discretization, check_flag, misnamed, warn_of_change
from vmddpm_kernels.ops.selective_scan import scan
from vmddpm_kernels.scan_inputs import ScanInputs, scan_options


# Of one route `table` may be left out, which no type can tell: of several, that is a ValueError.
@overload
def cross_selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    delta_bias: Tensor | None = None, table: Tensor | None = None, *, delta_softplus: bool | None = None,
    discretization: str = "mamba", initial_state: Tensor | None = None, return_last_state: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def cross_selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    delta_bias: Tensor | None = None, table: Tensor | None = None, *, delta_softplus: bool | None = None,
    discretization: str = "mamba", initial_state: Tensor | None = None, return_last_state: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def cross_selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    delta_bias: Tensor | None = None, table: Tensor | None = None, *, delta_softplus: bool | None = None,
    discretization: str = "mamba", initial_state: Tensor | None = None, return_last_state: bool,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip

def cross_selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    table: Tensor | None = None,
    *positions: NoReturn,
    delta_softplus: bool | None = None,
    discretization: str = "mamba",
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    backend: str | None = None,
    **names: NoReturn,
) -> Tensor | tuple[Tensor, Tensor]:
    """S6 along K routes over one image, summed back to pixels (VMamba's SS2D core).

    Route k walks the pixels in the order table[k, 0], table[k, 1], ... carrying, for every channel d, N states
        h = exp(delta A) h + delta B x,   y[table[k, l]] += C h + D x      (delta after bias and softplus)
    All tensors stay in pixel order: nothing is copied into scan order, whatever the order. Any strides are
    accepted.

    Args:
        x: (B, L, D) image tokens, L = H*W, channel last.
        delta: (B, K, L, D) step sizes before `delta_bias` and softplus.
        A: (K, D, N) state matrix, negative real parts (A = -exp(A_log)).
        B, C: (B, K, L, N) input and output matrices of each pixel.
        D: (K, D) skip weight.
        delta_bias: (K, D).
        table: (K, L) int32 from `routes`, or any table whose rows are permutations. Required of more than one route;
            a single route without it runs in row-major order.
        delta_softplus: apply softplus to delta + delta_bias (identity above 20). Give it: without it softplus is
            applied, with a FutureWarning, and later it will not be, as in `selective_scan`.
        discretization: "mamba" (B̄ = ΔB, what Mamba and VMamba compute) or "zoh" (VM-DDPM's Eq. 6).
        initial_state: (B, K, D, N).
        return_last_state: also return the state after the last step, (B, K, D, N), with gradient.
        backend: "cuda", "triton", "cpu" or "reference"; the best available one for x's device by default.

    Returns:
        y (B, L, D) in x's dtype, under torch.autocast too; accumulation and the last state are in float32, or float64
        if x, delta, A, B or C is.

    Raises:
        TypeError, ValueError: naming the argument that does not fit, or the table that is missing.
    """
    if positions or names:
        raise misnamed("cross_selective_scan", positions, names)
    check_flag("return_last_state", return_last_state)
    check_axes("x", x, "B, L, D")
    inputs = ScanInputs(x, delta, A, B, C, D, delta_bias, initial_state, table)
    if table is None and check_axes("delta", delta, "B, K, L, D")[1] > 1:
        inputs.check()  # a table in the place of another argument is told first
        raise ValueError(
            f"table is missing: the {int(delta.shape[1])} routes need their visit orders. Give table=routes(height, "
            'width), with scans="unidi" for rows only, or any other (K, L) of visit orders'
        )
    softplus = delta_softplus is None or check_flag("delta_softplus", delta_softplus)
    options = scan_options(softplus, check_discretization(discretization), False)
    y, last_state = scan(inputs, options, backend, last_state=return_last_state)
    if delta_softplus is None:
        warn_of_change(
            "cross_selective_scan without delta_softplus applies softplus to delta, and later will not, as "
            "selective_scan; give delta_softplus=True or False"
        )
    if not return_last_state:
        return y
    assert last_state is not None
    return y, last_state
