"""The selective scan as an operator: `torch.ops.vmddpm.selective_scan_forward` and `selective_scan_backward`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmddpm_kernels.backends import BACKENDS, by_name, reference, select
from vmddpm_kernels.backends.extension import accumulation, check_results, checked_sizes, empty
from vmddpm_kernels.backends.protocol import Backend
from vmddpm_kernels.checks import check_input
from vmddpm_kernels.interception import (
    Way,
    apply_of,
    differentiated,
    entry_below_autograd,
    in_forward_mode,
    refuse_batched,
    way_in,
)
from vmddpm_kernels.library import define, differentiate, differentiate_once, vmap_by_loop
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanSizes, scan_options

_INPUTS = len(ScanInputs._fields)
_DIFFERENTIABLE = _INPUTS - 1  # all but the table


def scan(
    inputs: ScanInputs, options: ScanOptions, backend: str | None, *, last_state: bool
) -> tuple[Tensor, Tensor | None]:
    """The differentiable scan behind the public functions: y in x's shape, summed over the routes if they share x, and
    the last state (B, K, D, N) if requested."""
    chosen = select(backend, inputs.x)
    if chosen == reference.NAME:  # PyTorch's own operators support compilers
        inputs.check()
        y, state, *_ = BACKENDS[chosen].scan(inputs, inputs.sizes(), options, last_state=last_state, checkpoint=False)
        return y, state
    way = way_in(inputs)
    if way is Way.KERNEL:
        sizes = checked_sizes(inputs)
        y, state, *_ = BACKENDS[chosen].scan(inputs, sizes, options, last_state=last_state, checkpoint=False)
    elif way is Way.AUTOGRAD:
        y, state = _apply_directly(*inputs, options, chosen, last_state)
    else:
        inputs.check()  # for better error messages than the dispatcher's
        call = SelectiveScan.apply if way is Way.TRANSFORM else selective_scan_forward
        # Inside a transform of torch.func, the Function cannot see whether a gradient is needed.
        checkpoint = way is Way.TRANSFORM and differentiated(inputs)
        y, state, *_ = call(*inputs, *_flags(options), chosen, checkpoint)
    return y, state


def _flags(options: ScanOptions) -> tuple[bool, bool, bool]:
    """The options in the order of the schema."""
    return options.delta_softplus, options.zoh, options.channel_first


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The forward with the results of the schema, which has empty tensors instead of None."""
    inputs, options = ScanInputs(*args[:_INPUTS]), scan_options(*args[-5:-2])
    sizes, backend = checked_sizes(inputs), by_name(args[-2], inputs.x)
    y, last_state, checkpoints, order = backend.scan(inputs, sizes, options, last_state=True, checkpoint=args[-1])
    assert last_state is not None
    return (
        y,
        last_state,
        last_state.new_empty(0) if checkpoints is None else checkpoints,
        last_state.new_empty(0, dtype=torch.int32) if order is None else order,
    )


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, (*_, channel_first, backend, checkpoint) = ScanInputs(*args[:_INPUTS]), args[_INPUTS:]
    inputs.check()
    x, sizes = inputs.x, inputs.sizes()
    checkpoints = by_name(backend, x).checkpoint_shape(sizes) if checkpoint else (0,)
    order = (0,) if inputs.table is None or not checkpoint else inputs.table.shape
    return (
        _image_like(inputs, channel_first),
        x.new_empty((sizes.batch, sizes.routes, sizes.channels, sizes.states), dtype=accumulation(sizes)),
        x.new_empty(checkpoints, dtype=accumulation(sizes)),
        x.new_empty(order, dtype=torch.int32),
    )


def _image_like(inputs: ScanInputs, channel_first: bool) -> Tensor:
    """An empty y or dx: (B, L, D) if the routes share the image, else (B, K, L, D)."""
    x = inputs.x
    return empty(tuple(x.shape), channel_first, x.dtype, x.device)


def _run_backward(
    dy: Tensor | None, dlast_state: Tensor | None, inputs: ScanInputs, checkpoints: Tensor, options: ScanOptions,
    backend: str, needed: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """The backward, after checking the arguments: saved tensors can change without autograd's knowledge."""
    sizes, chosen = checked_sizes(inputs, dy, dlast_state), by_name(backend, inputs.x)
    _check_checkpoints(checkpoints, inputs.x, sizes, chosen)
    return chosen.scan_backward(dy, dlast_state, inputs, sizes, checkpoints, options, needed)


def _check_checkpoints(checkpoints: Tensor, x: Tensor, sizes: ScanSizes, backend: Backend) -> None:
    kept = backend.checkpoint_shape(sizes)
    check_input("checkpoints", checkpoints, x, x.device, "of the forward", kept, (accumulation(sizes),))


def _backward(*args: Any) -> list[Tensor]:
    inputs, options = ScanInputs(*args[2:-5]), scan_options(*args[-4:-1])
    grads = _run_backward(args[0], args[1], inputs, args[-5], options, args[-1], (True,) * _DIFFERENTIABLE)
    return [g for g in grads if g is not None]


def _backward_fake(*args: Any) -> list[Tensor]:
    dy, dlast_state, inputs, checkpoints = args[0], args[1], ScanInputs(*args[2:-5]), args[-5]
    inputs.check()
    x, delta, channel_first = inputs.x, inputs.delta, args[-2]
    sizes = inputs.sizes()
    check_results(inputs, sizes, dy, dlast_state)
    _check_checkpoints(checkpoints, x, sizes, by_name(args[-1], x))
    return [
        _image_like(inputs, channel_first),
        empty(tuple(delta.shape), channel_first, delta.dtype, delta.device)
        if inputs.dt_proj is None
        else delta.new_empty(delta.shape),
        *(t.new_empty(t.shape) for t in inputs[2:_DIFFERENTIABLE] if t is not None),
    ]


_SCAN = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, Tensor? initial_state, "
    "Tensor? dt_proj, Tensor? table"
)
_OPTIONS = "bool delta_softplus, bool zoh, bool channel_first, str backend"

# The backward starts from checkpoints and uses order, a private copy of the table; both are empty unless `checkpoint`
# is set or autograd needs them.
selective_scan_forward = define(
    f"selective_scan_forward({_SCAN}, {_OPTIONS}, bool checkpoint) -> "
    "(Tensor y, Tensor last_state, Tensor checkpoints, Tensor order)",
    _forward,
    _forward_fake,
)
# A gradient for each of the first nine tensors that is given, in its dtype.
selective_scan_backward = define(
    f"selective_scan_backward(Tensor? dy, Tensor? dlast_state, {_SCAN}, Tensor checkpoints, {_OPTIONS}) -> Tensor[]",
    _backward,
    _backward_fake,
)


def _gradients(
    dy: Tensor | None, dlast_state: Tensor | None, inputs: ScanInputs, checkpoints: Tensor, needed: Sequence[bool],
    options: ScanOptions, backend: str,
) -> list[Tensor | None]:  # fmt: skip
    """The gradients of the first nine inputs, None for None. Hooks may have replaced saved tensors."""
    refuse_batched(dy, dlast_state)
    way = way_in((dy, dlast_state, *inputs, checkpoints))
    if way is Way.KERNEL:
        return _run_backward(dy, dlast_state, inputs, checkpoints, options, backend, needed)
    call = selective_scan_backward if way is Way.DISPATCHER else _Gradients.apply
    grads = iter(call(dy, dlast_state, *inputs, checkpoints, *_flags(options), backend))
    return [t if t is None else next(grads) for t in inputs[:_DIFFERENTIABLE]]


class SelectiveScan(torch.autograd.Function):
    """`selective_scan_forward` with its derivative, in reverse and forward mode: deterministic gradients, second
    derivatives raise. The arguments and results of `apply` are those of the operator."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tensors = args[:_INPUTS]
        keep = args[-1] or any(t is not None and t.requires_grad for t in tensors)
        results: tuple[Tensor, Tensor, Tensor, Tensor] = entry_below_autograd(
            selective_scan_forward, _forward, tensors
        )(*args[:-1], keep)
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        _, _, checkpoints, order = output
        ctx.options = scan_options(*inputs[_INPUTS:-2]), inputs[-2]
        *tensors, table = inputs[:_INPUTS]
        ctx.save_for_backward(*tensors, None if table is None else order, checkpoints)
        if in_forward_mode():
            ctx.save_for_forward(*tensors, table)
        ctx.mark_non_differentiable(checkpoints, order)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast_state: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        *tensors, checkpoints = ctx.saved_tensors
        inputs = ScanInputs(*tensors)
        return *_gradients(dy, dlast_state, inputs, checkpoints, ctx.needs_input_grad, *ctx.options), *[None] * 6

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor, None, None]:
        inputs = ScanInputs(*ctx.saved_tensors)
        return *reference.selective_scan_tangent(inputs, tangents[:_INPUTS], ctx.options[0]), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        # Whether a gradient is needed is not visible here: each element saves its checkpoints.
        return vmap_by_loop(SelectiveScan, info, in_dims, *args[:-1], True)


class DirectSelectiveScan(torch.autograd.Function):
    """`SelectiveScan` for calls that cannot be intercepted: checkpoints are saved without being results. The arguments
    of `apply` are the inputs, the options, the backend and whether the last state is requested."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor | None]:
        inputs, (options, backend, wanted) = ScanInputs(*args[:_INPUTS]), args[_INPUTS:]
        ctx.options = options, backend
        sizes = checked_sizes(inputs)
        y, last_state, checkpoints, order = BACKENDS[backend].scan(
            inputs, sizes, options, last_state=wanted, checkpoint=True
        )
        ctx.save_for_backward(*args[: _INPUTS - 1], order, checkpoints)
        ctx.set_materialize_grads(False)
        return y, last_state if wanted else None

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast_state: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, checkpoints = ctx.saved_tensors
        inputs, needed = ScanInputs(*tensors), ctx.needs_input_grad
        grads = _gradients(dy, dlast_state, inputs, checkpoints, needed, *ctx.options)
        return *grads, None, None, None, None


_apply_directly = apply_of(DirectSelectiveScan)

differentiate(selective_scan_forward, SelectiveScan, _forward)
_Gradients = differentiate_once(
    selective_scan_backward,
    _backward,
    "the compiled selective_scan has no second derivative; pass backend='reference' to differentiate twice",
)
