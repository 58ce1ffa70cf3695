"""The selective scan (S6) as a differentiable operator over sequences."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm_kernels import ops
from vmddpm_kernels.backends import reference, select
from vmddpm_kernels.checks import (
    FLOATS,
    INTEGERS,
    Input,
    check_axes,
    check_discretization,
    check_flag,
    check_float,
    check_inputs,
    check_shape,
    check_states,
)
from vmddpm_kernels.library import below_autograd, call, differentiate, vmap_by_loop


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    discretization: str = "mamba",
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    channel_last: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """S6 (Mamba, arXiv 2312.00752, Algorithm 2; paper Eq. 5-6) over a batch of sequences.

        h_l = exp(delta_l A) h_{l-1} + delta_l B_l u_l,   y_l = C_l h_l + D u_l,   out_l = y_l * silu(z_l)

    Args:
        u, delta: (B, D, L), or (B, L, D) with `channel_last`. Any strides; no copy is made of either layout.
        A: (D, N), negative.
        B, C: (B, N, L), or (B, G, N, L) with D divisible by the number of groups G;
            with `channel_last` (B, L, N) or (B, L, G, N).
        D, delta_bias: (D,).
        z: gate, shape of u.
        delta_softplus: apply softplus to delta + delta_bias (identity above 20).
        discretization: "mamba" (B̄ = ΔB, what Mamba and VMamba compute) or "zoh" (paper Eq. 6).
        initial_state: (B, D, N), zero if not given.
        return_last_state: also return h_L, (B, D, N); it carries gradient.
        channel_last: see the shapes above.
        backend: "cuda", "triton", "cpu" or "reference"; the best available one for u's device by default.

    Returns:
        out in u's shape and dtype; the last state in the dtype of the accumulation: float32, or float64 if u, delta, A,
        B or C is.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
    """
    channel_last, return_last_state = (
        check_flag(name, value)
        for name, value in (("channel_last", channel_last), ("return_last_state", return_last_state))
    )
    check_float("u", u)
    if u.dim() != 3:
        raise ValueError(f"u must have shape ({'B, L, D' if channel_last else 'B, D, L'}), got {tuple(u.shape)}")
    axes = "B, L, D" if channel_last else "B, D, L"
    check_float("delta", delta, u)
    check_shape("delta", delta, axes, tuple(u.shape))
    if z is not None:
        check_float("z", z, u)
        check_shape("z", z, axes, tuple(u.shape))
    batch, dim = u.shape[0], u.shape[2 if channel_last else 1]
    B, C = (_grouped(name, t, u, dim, channel_last) for name, t in (("B", B), ("C", C)))
    groups = B.shape[1]
    check_float("A", A, u)
    if A.dim() != 2:
        raise ValueError(f"A must have shape (D, N), got {tuple(A.shape)}")
    check_shape("A", A, "D, N", (dim, A.shape[1]))
    for name, t in (("D", D), ("delta_bias", delta_bias)):
        if t is not None:
            check_float(name, t, u)
            check_shape(name, t, "D", (dim,))
    if initial_state is not None:
        check_float("initial_state", initial_state, u)
        check_shape("initial_state", initial_state, "B, D, N", (batch, dim, A.shape[1]))

    # A view and its derivative cost microseconds, a short scan not many more: a single group does with fewer.
    def split(t: Tensor, axis: int) -> Tensor:
        return t.unsqueeze(axis) if groups == 1 else t.unflatten(axis, (groups, dim // groups))

    def grouped(t: Tensor) -> Tensor:  # -> (B, G, L, D/G), a view
        if not channel_last:
            return split(t, 1).mT
        return t.unsqueeze(1) if groups == 1 else split(t, 2).transpose(1, 2)

    y, last_state = scan_routes_with_states(
        grouped(u),
        grouped(delta),
        split(A, 0),
        B,
        C,
        None if D is None else split(D, 0),
        None if delta_bias is None else split(delta_bias, 0),
        None if initial_state is None else split(initial_state, 1),
        None,
        delta_softplus=delta_softplus,
        discretization=discretization,
        channel_first=not channel_last,
        backend=backend,
    )
    if groups == 1:
        out = y.squeeze(1) if channel_last else y.squeeze(1).mT
    else:
        out = y.transpose(1, 2).flatten(2) if channel_last else y.mT.flatten(1, 2)
    if z is not None:
        wide = torch.promote_types(out.dtype, torch.float32)
        out = (out.to(wide) * F.silu(z.to(wide))).to(out.dtype)
    return (out, last_state.flatten(1, 2)) if return_last_state else out


def _grouped(name: str, tensor: Tensor, u: Tensor, dim: int, channel_last: bool) -> Tensor:
    """B or C as the user gives it -> (B, G, L, N)."""
    check_float(name, tensor, u)
    axes = "(B, L, N) or (B, L, G, N)" if channel_last else "(B, N, L) or (B, G, N, L)"
    if tensor.dim() not in (3, 4):
        raise ValueError(f"{name} must have shape {axes}, got {tuple(tensor.shape)}")
    if channel_last:
        grouped = tensor.unsqueeze(1) if tensor.dim() == 3 else tensor.transpose(1, 2)
    else:
        grouped = (tensor.unsqueeze(1) if tensor.dim() == 3 else tensor).mT
    if grouped.shape[1] == 0 or dim % grouped.shape[1]:
        groups = grouped.shape[1]
        raise ValueError(f"the {dim} channels of u must divide into the {groups} groups of {name} {axes}")
    return grouped


def scan_routes_with_states(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    table: Tensor | None,
    *,
    delta_softplus: bool,
    discretization: str,
    channel_first: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """The one form both public operators reduce to, in pixel order and channel last, any strides.

    x (B, K, L, D), or (B, L, D), an image that the routes share; delta (B, K, L, D); A (K, D, N); B, C (B, K, L, N);
    D, delta_bias (K, D); initial_state (B, K, D, N); table (K, L) or None.
    Returns y in x's shape, summed over the routes if they share x; and the last state (B, K, D, N).
    `channel_first` asks for memory in (B, K, D, L) order behind the same logical shape.
    """
    softplus, zoh = check_flag("delta_softplus", delta_softplus), check_discretization(discretization)
    batch, *_, length, dim = shape = x.shape
    K = check_axes("delta", delta, "B, K, L, D")[1]
    states = check_axes("A", A, "K, D, N")[2]
    if K < 1:
        raise ValueError("delta (B, K, L, D) must have at least one route, got K = 0")
    check_states(states)
    inputs: list[Input] = [
        ("x", x, "B, L, D", shape, FLOATS),
        ("delta", delta, "B, K, L, D", (batch, K, length, dim), FLOATS),
        ("A", A, "K, D, N", (K, dim, states), FLOATS),
        ("B", B, "B, K, L, N", (batch, K, length, states), FLOATS),
        ("C", C, "B, K, L, N", (batch, K, length, states), FLOATS),
    ]
    if D is not None:
        inputs.append(("D", D, "K, D", (K, dim), FLOATS))
    if delta_bias is not None:
        inputs.append(("delta_bias", delta_bias, "K, D", (K, dim), FLOATS))
    if initial_state is not None:
        inputs.append(("initial_state", initial_state, "B, K, D, N", (batch, K, dim, states), FLOATS))
    if table is not None:
        inputs.append(("table", table, "K, L", (K, length), INTEGERS))  # a backend checks its values
    check_inputs(inputs, x)

    tensors = (x, delta, A, B, C, D, delta_bias, initial_state, table)
    chosen = select(backend, x)
    if chosen == "reference":
        return reference.selective_scan(*tensors, delta_softplus=softplus, zoh=zoh)
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors if t is not None)
    options = (softplus, zoh, channel_first, chosen, differentiable)
    y, last_state, _ = call(ops.selective_scan_forward, SelectiveScan, differentiable, *tensors, *options)
    return y, last_state


class SelectiveScan(torch.autograd.Function):
    """`scan_routes_with_states` on the compiled kernels: deterministic gradients, second derivatives raise.

    The arguments and results of `apply` are those of `ops.selective_scan_forward`."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return below_autograd(ops.selective_scan_forward, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, delta_softplus, zoh, channel_first, backend, ctx.checkpoint = inputs
        checkpoints = output[2]
        ctx.options = delta_softplus, zoh, channel_first, backend
        ctx.save_for_backward(*tensors, checkpoints)
        ctx.mark_non_differentiable(checkpoints)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast_state: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if not ctx.checkpoint:
            raise RuntimeError("a scan with checkpoint=False keeps nothing for a gradient")
        # Through complex numbers a gradient may come as a view that is still to be negated.
        dy, dlast_state = (g if g is None or not g.is_neg() else g.resolve_neg() for g in (dy, dlast_state))
        args = (dy, dlast_state, *ctx.saved_tensors, *ctx.options)
        grads = iter(call(ops.selective_scan_backward, SelectiveScanBackward, True, *args))
        return (*(None if t is None else next(grads) for t in args[2:10]), *[None] * 6)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_by_loop(SelectiveScan, info, in_dims, *args)


class SelectiveScanBackward(torch.autograd.Function):
    """Gradients that raise when they are differentiated again, instead of counting as constants and being silently
    wrong."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return tuple(below_autograd(ops.selective_scan_backward, *args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "the compiled selective_scan has no second derivative; pass backend='reference' to differentiate twice"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_by_loop(SelectiveScanBackward, info, in_dims, *args)


differentiate(ops.selective_scan_forward, SelectiveScan)
differentiate(ops.selective_scan_backward, SelectiveScanBackward)
