"""The registered operators on random arguments, forward and backward, with tensors that change unseen by autograd
between the two: the reference's result or an error, never a crash, and finite values where the reference's are."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from fuzzing import OPTIONS, SAME, SPOILED, ArgumentBuilder, cross_selective_scan, is_plain
from oracle import relative_error
from test_fuzz import RTOL, same

OPS = torch.ops.vmddpm
ERRORS = (TypeError, ValueError, RuntimeError, NotImplementedError, IndexError)


def scan(m):
    a = cross_selective_scan(m)
    if m.draw(st.booleans()) and a["x"].dim() == 3:  # images of their own
        a["x"] = m.normal(*a["delta"].shape[:3], a["x"].shape[2])
    a["table"] = m.maybe(a["table"])  # also for several routes
    names = ("x", "delta", "A", "B", "C", "D", "delta_bias", "initial_state", "dt_proj", "table")
    options = {"delta_softplus": a["delta_softplus"]}
    options |= {"zoh": m.draw(st.booleans()), "channel_first": m.draw(st.booleans()), "backend": "cpu"}
    return {**{name: a[name] for name in names}, **options, "checkpoint": m.draw(st.booleans())}


def scan_backward(m):
    """The arguments of the backward operator, made by a forward."""
    a = scan(m)
    results = OPS.selective_scan_forward(*{**a, "checkpoint": True}.values())
    y, last_state, checkpoints, order = results
    del a["checkpoint"]
    options = [a.pop(name) for name in ("delta_softplus", "zoh", "channel_first", "backend")]
    a["table"] = None if a["table"] is None else order
    return {
        "dy": m.maybe(torch.ones_like(y)), "dlast_state": m.maybe(torch.ones_like(last_state)), **a,
        "checkpoints": checkpoints, "delta_softplus": options[0], "zoh": options[1], "channel_first": options[2],
        "backend": options[3],
    }  # fmt: skip


def copy(m):
    routes, (batch, length, channels) = m.draw(st.integers(1, 4)), (m.draw(st.integers(0, 9)) for _ in range(3))
    images = m.draw(st.sampled_from([1, routes]))
    table = m.permutations(routes, length)
    x = m.normal(batch, images, length, channels)
    sizes = {"height": 0, "width": 0, "scans": 0}
    if routes == 4 and length and m.draw(st.booleans()):
        height = m.draw(st.sampled_from([n for n in range(1, length + 1) if length % n == 0]))
        table, sizes = None, {"height": height, "width": length // height, "scans": m.draw(st.integers(0, 3))}
    return {"x": x, "table": table, **sizes, "channel_first": m.draw(st.booleans()), "backend": "cpu"}


def merge(m):
    a = copy(m)
    batch, _, length, channels = a.pop("x").shape
    y = m.normal(batch, 4 if a["table"] is None else len(a["table"]), length, channels)
    order = {name: a.pop(name) for name in ("table", "height", "width", "scans")}
    return {"y": y, **order, "sum_routes": m.draw(st.booleans()), **a}


OPERATORS = {
    "selective_scan_forward": (OPS.selective_scan_forward, scan),
    "selective_scan_backward": (OPS.selective_scan_backward, scan_backward),
    "cross_scan": (OPS.cross_scan, copy),
    "cross_merge": (OPS.cross_merge, merge),
}


def fill(value):
    def change(t, draw):
        t.detach().numpy().fill(0 if t.is_floating_point() else value)  # a growing state may overflow

    return change


def other_data(t, draw):
    shapes = [(0,), (3,), (2, 2), (1, 4, 9), (1, 1, 1, 1), tuple(t.shape)]
    t.data = torch.zeros(draw(st.sampled_from(shapes)), dtype=t.dtype)


# Changes to a tensor between forward and backward that autograd does not see.
CHANGES = {
    "filled": fill(1),
    "filled with a large number": fill(99),
    "filled with a negative number": fill(-1),
    "of other data": other_data,
    "without memory": lambda t, draw: t.untyped_storage().resize_(0),
    "with less memory": lambda t, draw: t.untyped_storage().resize_(t.untyped_storage().nbytes() // 2),
}


def spoil(arguments, draw):
    done = []
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        name = draw(st.sampled_from(sorted(arguments)))
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            pool = SAME if draw(st.booleans()) else SPOILED
            how = draw(st.sampled_from(sorted(pool)))
            if is_plain(value):
                arguments[name] = pool[how](value, draw)
        else:
            how = draw(st.sampled_from(range(len(OPTIONS))))
            arguments[name] = OPTIONS[how]
        done.append((name, how))
    return done


def run(operator, arguments, leaves, change=None):
    """The result, with gradients; or the error."""
    try:
        results = operator(*arguments.values())
        results = list(results) if isinstance(results, tuple | list) else [results]
        values = [r.detach().clone() for r in results]
        if change:
            change()
        differentiable = [r for r in results if r.requires_grad]
        if differentiable and leaves:
            weights = [torch.ones_like(r) for r in differentiable]
            values += torch.autograd.grad(differentiable, leaves, weights, allow_unused=True, materialize_grads=True)
        return values
    except ERRORS as error:
        return error


def in_float64(arguments, leaves):
    """The arguments for the reference, converted to float64, and their leaves."""
    wide, wide_leaves = {**arguments, "backend": "reference"}, []
    for key, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            wide[key] = value.detach().double().requires_grad_(value.requires_grad)
            wide_leaves += [wide[key]] if any(value is leaf for leaf in leaves) else []
    if "checkpoints" in wide:
        wide["checkpoints"] = wide["checkpoints"].new_empty(0)
    return wide, wide_leaves


def accurate_enough(ours, reference, exact, steps):
    """The accuracy rule, with at least one unit in the last place per step allowed: growing states leave small
    differences of large numbers, and the reference may round a single sequence well by chance."""
    if ours.shape != exact.shape or not torch.equal(ours.isfinite(), reference.isfinite()):
        return False
    finite = ours.isfinite() & exact.isfinite()
    error, allowed = (relative_error(v[finite], exact[finite]) for v in (ours, reference))
    return error <= max(2 * allowed, steps * torch.finfo(ours.dtype).eps)


@pytest.mark.parametrize("name", OPERATORS)
@hypothesis.settings(
    max_examples=hypothesis.settings.default.max_examples * 5,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(st.data())
def test_any_operator_call(name, data):
    operator, make = OPERATORS[name]
    arguments = make(ArgumentBuilder(data.draw))
    done = spoil(arguments, data.draw)
    if data.draw(st.booleans()) and name != "selective_scan_backward":
        arguments = {
            key: value.detach().clone().requires_grad_() if isinstance(value, torch.Tensor)
            and value.is_floating_point() and value.dtype.itemsize > 1 and value.layout == torch.strided
            and not value.is_nested and not value.is_meta else value
            for key, value in arguments.items()
        }  # fmt: skip
    leaves = [t for t in arguments.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    reference = None
    # A backward with nothing to differentiate multiplies by zero where the reference leaves terms out.
    unlike = name == "selective_scan_backward" and any(how in ("NaN", "infinite", "large") for _, how in done)
    if arguments["backend"] == "cpu" and "checkpoints" not in dict(done) and not unlike:
        own = {"checkpoints": arguments["checkpoints"].new_empty(0)} if "checkpoints" in arguments else {}
        reference = run(operator, {**arguments, **own, "backend": "reference"}, leaves)
    tensors = [t for t in arguments.values() if type(t) is torch.Tensor and t.layout == torch.strided
               and not t.is_nested and not t.is_meta and t.dtype.itemsize > 1 and t.numel()
               and t.dtype not in (torch.bfloat16, torch.complex64) and not t.is_neg()]  # fmt: skip
    change = None
    if tensors and leaves and data.draw(st.booleans()):
        tensor, how = data.draw(st.sampled_from(range(len(tensors)))), data.draw(st.sampled_from(sorted(CHANGES)))
        done.append((tensor, how))

        def change():
            CHANGES[how](tensors[tensor], data.draw)

    ours = run(operator, arguments, leaves, change)
    outcome = "refused" if isinstance(ours, Exception) else "returned"
    hypothesis.event(f"{'changed' if change else 'unchanged'}, {outcome}")
    if isinstance(reference, Exception):
        assert isinstance(ours, Exception), f"{reference!r} but {ours} after {done}"
    if reference is None or isinstance(reference, Exception) or isinstance(ours, Exception):
        assert change or reference is None or isinstance(reference, Exception), f"{ours!r} after {done}"
        return
    dtypes = [t.dtype for t in (*arguments.values(), *ours) if isinstance(t, torch.Tensor)]
    rtol = max(RTOL.get(dtype, 1e-9) for dtype in dtypes)
    skipped = {"selective_scan_forward": (2, 3)}.get(name, ())  # checkpoints are the backend's own
    exact = None
    for i, (a, b) in enumerate(zip(ours, reference)):
        if i in skipped:
            continue
        if change:
            assert not b.isfinite().all() or a.isfinite().all(), f"{a} but {b} after {done}"
        elif not same(a, b, rtol):
            assert name.startswith("selective_scan"), f"{a} but {b} after {done}"
            exact = exact or run(operator, *in_float64(arguments, leaves))
            steps = arguments["delta"].shape[2]
            assert accurate_enough(a, b, exact[i], steps), f"{a} but {b} after {done}"
