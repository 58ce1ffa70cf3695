"""Cross scan, selective scan and cross merge in one operator: the core of a vision state-space model."""

from typing import Literal, NoReturn, overload

from torch import Tensor

from vmddpm_kernels.checks import check_axes, check_discretization, check_flag, misnamed, warn_of_change
from vmddpm_kernels.ops.selective_scan import scan
from vmddpm_kernels.scan_inputs import ScanInputs, scan_options


# Only a single route may omit `table`. Types cannot express that: several routes without it raise ValueError.
@overload
def cross_selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    delta_bias: Tensor | None = None, table: Tensor | None = None, *, delta_softplus: bool | None = None,
    discretization: str = "mamba", initial_state: Tensor | None = None, return_last_state: Literal[False] = False,
    dt_proj: Tensor | None = None, backend: str | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def cross_selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    delta_bias: Tensor | None = None, table: Tensor | None = None, *, delta_softplus: bool | None = None,
    discretization: str = "mamba", initial_state: Tensor | None = None, return_last_state: Literal[True],
    dt_proj: Tensor | None = None, backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def cross_selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    delta_bias: Tensor | None = None, table: Tensor | None = None, *, delta_softplus: bool | None = None,
    discretization: str = "mamba", initial_state: Tensor | None = None, return_last_state: bool,
    dt_proj: Tensor | None = None, backend: str | None = None,
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
    dt_proj: Tensor | None = None,
    backend: str | None = None,
    **names: NoReturn,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scans (S6) along several routes over an image, summed at each pixel: the core of VMamba's SS2D.

    Route k visits the pixels table[k, 0], table[k, 1], ... and updates d_state states per channel:

        h = exp(delta A) h + delta B x,   y[table[k, l]] += C h + D x      (delta after bias and softplus)

    All tensors are in pixel order and have any strides; none is copied into the order of a route.

    Args:
        x: (batch, length, dim) image tokens, length = height * width.
        delta: (batch, routes, length, dim) step sizes before `delta_bias` and softplus; with `dt_proj`, their factor
            (batch, routes, length, dt_rank).
        A: (routes, dim, d_state) state matrix, negative (A = -exp(A_log)).
        B, C: (batch, routes, length, d_state) input and output matrices of each pixel.
        D: (routes, dim) skip weight.
        delta_bias: (routes, dim).
        table: (routes, length) int32 from `routes`, or any table whose rows are permutations. Required for more than
            one route; without it a single route is in row-major order.
        delta_softplus: apply softplus to delta + delta_bias (identity above 20). Always pass it: the default is True
            with a FutureWarning, and will become False, as in `selective_scan`.
        discretization: "mamba" (B̄ = ΔB, as in Mamba and VMamba) or "zoh" (VM-DDPM's Eq. 6).
        initial_state: (batch, routes, dim, d_state).
        return_last_state: also return the state after the last step, (batch, routes, dim, d_state), with gradient.
        dt_proj: (routes, dim, dt_rank), dt_rank at least 1: the step sizes are delta @ dt_proj.mT. "cpu" computes them
            in small tiles and never stores them all, forward or backward. "cuda" and "triton" compute them before the
            scan, in delta's dtype.
        backend: "cuda", "triton", "cpu" or "reference"; the best available one for x's device by default.

    Returns:
        y (batch, length, dim) in x's dtype, also under torch.autocast. Accumulation and the last state are in float64
        if x, delta, A, B, C or dt_proj is, else in float32.

    Raises:
        TypeError, ValueError: if an argument is invalid or missing; the message names it.

    Example:
        >>> x, delta = torch.randn(2, 6 * 8, 16), torch.randn(2, 4, 6 * 8, 16)
        >>> A, B, C = -torch.rand(4, 16, 8), torch.randn(2, 4, 6 * 8, 8), torch.randn(2, 4, 6 * 8, 8)
        >>> cross_selective_scan(x, delta, A, B, C, table=routes(6, 8), delta_softplus=True).shape
        torch.Size([2, 48, 16])
    """
    if positions or names:
        raise misnamed("cross_selective_scan", positions, names)
    check_flag("return_last_state", return_last_state)
    check_axes("x", x, "batch, length, dim")
    inputs = ScanInputs(x, delta, A, B, C, D, delta_bias, initial_state, dt_proj, table)
    last = "dim" if dt_proj is None else "dt_rank"
    if table is None and check_axes("delta", delta, f"batch, routes, length, {last}")[1] > 1:
        inputs.check()  # first report a table that was passed as another argument
        raise ValueError(
            f"table is missing: the {int(delta.shape[1])} routes need visit orders. Pass table=routes(height, "
            'width), with scans="unidi" for rows only, or any other (routes, length) of visit orders'
        )
    softplus = delta_softplus is None or check_flag("delta_softplus", delta_softplus)
    options = scan_options(softplus, check_discretization(discretization), False)
    y, last_state = scan(inputs, options, backend, last_state=return_last_state)
    if delta_softplus is None:
        warn_of_change(
            "cross_selective_scan without delta_softplus applies softplus to delta, but a later version will not, like "
            "selective_scan; pass delta_softplus=True or False"
        )
    if not return_last_state:
        return y
    assert last_state is not None
    return y, last_state
