"""The definitions as float64 loops that share no code with the package, and the error rule of the tests."""

import math

import torch


def scan_loop(
    x, delta, A, B, C, D=None, delta_bias=None, initial_state=None, table=None, *, softplus=True, zoh=False, merge=True
):
    """S6, one step of every sequence at a time. x (B, L, D) if `merge`, else (B, K, L, D); the rest as in the operator.
    Gradients come from autograd. (unbind, because the gradient of an index is a whole sequence at each step.)"""
    batch, K, length, _ = delta.shape
    k, pixel = torch.arange(K)[:, None], torch.arange(length).expand(K, -1) if table is None else table.long()
    u = x[:, pixel] if merge else x[:, k, pixel]                                  # (B, K, L, D), in the order of steps
    d = delta[:, k, pixel] + (0 if delta_bias is None else delta_bias[:, None])
    if softplus:
        d = torch.where(d > 20, d, torch.log1p(torch.exp(d.clamp(max=20.0))))
    h = torch.zeros(batch, *A.shape, dtype=A.dtype) if initial_state is None else initial_state
    rows = []
    columns = (d[..., None], u[..., None], B[:, k, pixel][..., None, :], C[:, k, pixel][..., None])
    for d_l, u_l, B_l, C_l in zip(*(t.unbind(2) for t in columns)):               # (B, K, D or 1, 1 or N)
        decay = torch.exp(d_l * A)
        weight = (decay - 1) / A if zoh else d_l
        h = decay * h + weight * B_l * u_l
        rows.append(h @ C_l)
    steps = torch.cat(rows, -1).movedim(-1, 2) if rows else u
    steps = steps + (0 if D is None else D[:, None] * u)
    y = torch.zeros_like(steps).index_put((torch.arange(batch)[:, None, None], k, pixel), steps)
    return (y.sum(1) if merge else y), h


def route_destination(code, k, h, w, height, width):
    """The step at which route k visits pixel (h, w), by VMamba's definition."""
    length, by_row, by_column = height * width, h * width + w, w * height + h
    return {
        0: [by_row, by_column, length - 1 - by_row, length - 1 - by_column],
        1: [by_row] * 4,
        2: [by_row, by_row, length - 1 - by_row, length - 1 - by_row],
        3: [
            by_row,
            (width - 1 - w) * height + h,
            length - 1 - by_row,
            w * height + (height - 1 - h),
        ],
    }[code][k]


def relative_error(value, exact):
    """Mean absolute error over mean absolute value, in float64. (A mean square would be dominated by the one sum that
    cancels most.)"""
    value, exact = value.detach().double(), exact.detach().double()
    assert value.shape == exact.shape
    scale = exact.abs().sum().item()
    error = (value - exact).abs().sum().item()
    return error / scale if scale > 0 else error


def assert_as_accurate(value, reference, exact, dtype, name):
    """The rule of every comparison: at most twice the error of PyTorch's arithmetic in the same dtype, or one unit in
    the last place, because PyTorch may round a handful of values well by chance. In float64 the loop is no more exact
    than the kernel, so sixteen units are allowed."""
    ours, theirs = relative_error(value, exact), relative_error(reference, exact)
    bound = max(2 * theirs, torch.finfo(dtype).eps * (16 if dtype == torch.float64 else 1))
    assert math.isfinite(ours), f"{name} is not finite"
    assert ours <= bound, f"{name}: error {ours:.2e}, reference {theirs:.2e}"


def concatenated_results(problems, function):
    """The results of `function` on all problems, each concatenated to one vector: on one small problem the ratio of two
    errors is chance."""
    return [torch.cat([r.flatten() for r in results]) for results in zip(*map(function, problems))]
