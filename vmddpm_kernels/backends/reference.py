"""Plain PyTorch: the definition of each operator, one step at a time, on any device, in any floating-point dtype and
differentiable to any order. Written for reading and comparison, not for speed."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm_kernels.backends.protocol import BackendStatus
from vmddpm_kernels.backends.reference_steps import ReferenceSteps, gradients
from vmddpm_kernels.interception import not_autocast
from vmddpm_kernels.routes import RouteOrder, check_table
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanResult, ScanSizes

NAME = "reference"


class ReferenceBackend(ReferenceSteps):
    devices: frozenset[str] = frozenset()  # chosen if no other backend is available

    def runs_on(self, device: str) -> bool:
        return True

    def status(self, device: torch.device | None = None) -> BackendStatus:
        return BackendStatus(True, "PyTorch, any device and floating dtype, differentiable to any order")

    def checkpoint_shape(self, sizes: ScanSizes) -> tuple[int, ...]:
        return (0,)

    def scan(
        self, inputs: ScanInputs, sizes: ScanSizes, options: ScanOptions, *, last_state: bool, checkpoint: bool
    ) -> ScanResult:
        y, state = selective_scan(inputs, options)
        if state is inputs.initial_state:  # an empty sequence
            state = state.clone()
        order = None if inputs.table is None or not checkpoint else inputs.table.to(torch.int32, copy=True)
        return ScanResult(y, state, state.new_empty(0) if checkpoint else None, order)

    def scan_backward(
        self,
        dy: Tensor | None,
        dlast_state: Tensor | None,
        inputs: ScanInputs,
        sizes: ScanSizes,
        checkpoints: Tensor,
        options: ScanOptions,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        def scan(leaves: Sequence[Tensor | None]) -> Sequence[Tensor]:
            return selective_scan(ScanInputs._make((*leaves, inputs.table)), options)

        return gradients(scan, inputs[:9], (dy, dlast_state))

    def cross_scan(self, x: Tensor, order: RouteOrder, channel_first: bool) -> Tensor:
        table = order.as_table(x.device)
        check_table(table, x.shape[2])
        return _as_layout(_gather(x, table), channel_first)

    def cross_merge(self, y: Tensor, order: RouteOrder, sum_routes: bool, channel_first: bool) -> Tensor:
        """Half precision is summed in float32 and rounded once."""
        table = order.as_table(y.device)
        check_table(table, y.shape[2])
        pixels = _gather(y, _inverse(table))
        if sum_routes:
            accumulate = torch.promote_types(y.dtype, torch.float32)
            pixels = pixels.to(accumulate).sum(1, keepdim=True).to(y.dtype)
        return _as_layout(pixels, channel_first)


def _as_layout(t: Tensor, channel_first: bool) -> Tensor:
    if channel_first:
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def _gather(x: Tensor, table: Tensor) -> Tensor:
    """x (B, K or 1, L, D) in pixel order -> (B, K, L, D) in the order of each route."""
    routes, length = table.shape
    # Copied, because the caller may change the table before the backward.
    index = table.to(torch.int64, copy=True)[None, :, :, None].expand(x.shape[0], routes, length, x.shape[3])
    return x.expand(-1, routes, -1, -1).gather(2, index)


def _inverse(table: Tensor) -> Tensor:
    return table.long().argsort(dim=1).to(table.dtype)


def zoh_factor(v: Tensor) -> Tensor:
    """expm1(v) / v, 1 at v = 0: the weight of zero-order hold."""
    small = v.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(v), v)
    series = 1 + v / 2 * (1 + v / 3 * (1 + v / 4))
    return torch.where(small, series, torch.expm1(safe) / safe)


def zoh_slope(v: Tensor) -> Tensor:
    """The derivative of `zoh_factor`: (e^v - expm1(v) / v) / v, 1/2 at v = 0."""
    small = v.abs() < 1e-2
    safe = torch.where(small, torch.ones_like(v), v)
    series = 1 / 2 + v * (1 / 3 + v * (1 / 8 + v * (1 / 30 + v * (1 / 144 + v / 840))))
    return torch.where(small, series, (torch.exp(safe) - torch.expm1(safe) / safe) / safe)


class _Steps(NamedTuple):
    """The tensors of a scan in the accumulation's dtype and in the order of the steps."""

    x: Tensor           # (B, K, L, D)
    delta: Tensor       # (B, K, L, D), with bias and softplus
    A: Tensor           # (K, D, N)
    B: Tensor           # (B, K, L, N)
    C: Tensor           # (B, K, L, N)
    D: Tensor | None    # (K, D)
    state: Tensor       # (B, K, D, N)


def _product(factor: Tensor, dt_proj: Tensor) -> Tensor:
    """(B, K, L, R) and (K, D, R) -> (B, K, L, D)."""
    with not_autocast(factor.device.type):
        return torch.matmul(factor, dt_proj.mT)


def _steps(inputs: ScanInputs, options: ScanOptions) -> _Steps:
    x, delta, A, B, C, D, delta_bias, initial_state, dt_proj, table = inputs
    sizes = inputs.sizes()
    dtype = torch.float64 if sizes.wide else torch.float32
    if table is not None:
        check_table(table, sizes.length)
    delta = delta.to(dtype)
    if dt_proj is not None:
        delta = _product(delta, dt_proj.to(dtype))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None, :]
    if options.delta_softplus:
        delta = F.softplus(delta)
    if initial_state is None:
        shape = (sizes.batch, sizes.routes, sizes.channels, sizes.states)
        state = torch.zeros(shape, dtype=dtype, device=x.device)
    else:
        state = initial_state.to(dtype)

    def in_route_order(tensor: Tensor) -> Tensor:
        tensor = tensor.to(dtype)
        tensor = tensor if tensor.dim() == 4 else tensor.unsqueeze(1)
        return tensor.expand(-1, sizes.routes, -1, -1) if table is None else _gather(tensor, table)

    x, delta, B, C = (in_route_order(t) for t in (x, delta, B, C))
    return _Steps(x, delta, A.to(dtype), B, C, None if D is None else D.to(dtype), state)


def _in_pixel_order(ys: list[Tensor], skipped: Tensor | None, steps: _Steps, inputs: ScanInputs) -> Tensor:
    """y_l (B, K, D) of each step and the skip term (B, K, L, D) -> y in x's shape and dtype."""
    y = torch.stack(ys, dim=2) if ys else torch.zeros_like(steps.x)
    if skipped is not None:
        y = y + skipped
    if inputs.table is not None:
        y = _gather(y, _inverse(inputs.table))
    return (y.sum(1) if inputs.x.dim() == 3 else y).to(inputs.x.dtype)


def selective_scan(inputs: ScanInputs, options: ScanOptions) -> tuple[Tensor, Tensor]:
    """h_l = exp(delta A) h_{l-1} + delta B x, y_l = C h_l + D x along every route (arXiv 2312.00752, Algorithm 2).

    Returns y in x's shape and dtype, summed over the routes if they share x, and the last state (B, K, D, N) in the
    dtype of the accumulation.
    """
    steps = _steps(inputs, options)
    x, delta, A, B, C, D, h = steps
    ys = []
    # Not indexing: its gradient would be a tensor of the whole sequence at each step.
    for x_l, delta_l, B_l, C_l in zip(*(t.unbind(2) for t in (x, delta, B, C))):
        v = delta_l[..., None] * A                                              # (B, K, D, N)
        drive = (delta_l * x_l)[..., None] * B_l[:, :, None, :]                 # (B, K, D, N)
        if options.zoh:
            drive = drive * zoh_factor(v)
        h = torch.exp(v) * h + drive
        ys.append((h * C_l[:, :, None, :]).sum(-1))                             # (B, K, D)
    return _in_pixel_order(ys, None if D is None else D[:, None, :] * x, steps, inputs), h


def selective_scan_tangent(
    inputs: ScanInputs, tangents: Sequence[Tensor | None], options: ScanOptions
) -> tuple[Tensor, Tensor]:
    """The derivative of `selective_scan` in the direction of the tangents of its inputs, None for zero."""
    steps = _steps(inputs, options)
    along = ScanInputs._make(
        torch.zeros_like(t) if tangent is None and t is not None else tangent for t, tangent in zip(inputs, tangents)
    )
    raw, ddelta = (t.to(steps.delta.dtype) for t in (inputs.delta, along.delta))
    if inputs.dt_proj is not None and along.dt_proj is not None:
        weight, dweight = (t.to(raw.dtype) for t in (inputs.dt_proj, along.dt_proj))
        raw, ddelta = _product(raw, weight), _product(ddelta, weight) + _product(raw, dweight)
    if inputs.delta_bias is not None and along.delta_bias is not None:
        raw = raw + inputs.delta_bias.to(raw.dtype)[:, None, :]
        ddelta = ddelta + along.delta_bias.to(raw.dtype)[:, None, :]
    if options.delta_softplus:
        ddelta = ddelta * torch.where(raw > 20, torch.ones_like(raw), torch.sigmoid(raw))
    along = along._replace(delta=ddelta, delta_bias=None, dt_proj=None, table=inputs.table)
    directions = _steps(along, ScanOptions(delta_softplus=False))
    h, dh = steps.state, directions.state
    dys = []
    sequences = (
        steps.x, directions.x, steps.delta, directions.delta, steps.B, directions.B, steps.C, directions.C
    )
    for x_l, dx_l, delta_l, ddelta_l, B_l, dB_l, C_l, dC_l in zip(*(t.unbind(2) for t in sequences)):
        B_l, dB_l, C_l, dC_l = (t[:, :, None, :] for t in (B_l, dB_l, C_l, dC_l))
        delta_l, ddelta_l, x_l, dx_l = (t[..., None] for t in (delta_l, ddelta_l, x_l, dx_l))
        v, dv = delta_l * steps.A, ddelta_l * steps.A + delta_l * directions.A       # (B, K, D, N)
        drive = delta_l * x_l * B_l
        ddrive = (ddelta_l * x_l + delta_l * dx_l) * B_l + delta_l * x_l * dB_l
        if options.zoh:
            drive, ddrive = drive * zoh_factor(v), ddrive * zoh_factor(v) + drive * zoh_slope(v) * dv
        decay = torch.exp(v)
        dh = decay * (dv * h + dh) + ddrive
        h = decay * h + drive
        dys.append((dh * C_l + h * dC_l).sum(-1))                               # (B, K, D)
    skipped = None
    if steps.D is not None and directions.D is not None:
        skipped = directions.D[:, None, :] * steps.x + steps.D[:, None, :] * directions.x
    return _in_pixel_order(dys, skipped, steps, inputs), dh
