"""The registered operators check their arguments, and the backward checks saved tensors: no caller can
pass an invalid tensor to a kernel."""

import sys

import pytest
import torch
from test_scan_accuracy import image_problem

import vmddpm_kernels as vk
from vmddpm_kernels.backends.extension import native
from vmddpm_kernels.scan_inputs import ScanInputs

OPS = torch.ops.vmddpm
PARAMETERS = ScanInputs._fields[:8]


def problem(table=True):
    """Two images of twelve pixels, three routes."""
    orders = torch.stack([torch.randperm(12) for _ in range(3)]).int() if table else None
    return ScanInputs(*image_problem(2, 3, 12, 5, 4, torch.float32), table=orders)


def forward(inputs, backend, checkpoint=True):
    return OPS.selective_scan_forward(*inputs, True, False, False, backend, checkpoint)


def backward(inputs, backend, **changes):
    """Call the backward operator after a forward, with some arguments changed."""
    y, last_state, checkpoints, order = forward(inputs, backend)
    given = {"dy": torch.ones_like(y), "dlast_state": torch.ones_like(last_state), **inputs._asdict(), "table": order,
             "checkpoints": checkpoints, **changes}  # fmt: skip
    return OPS.selective_scan_backward(*given.values(), True, False, False, backend)


WRONG = {
    "length": lambda t: t[..., :1, :],
    "last axis": lambda t: torch.cat([t, t], -1),
    "dimensions": lambda t: t[None],
    "dtype": lambda t: t.int(),
    "device": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_wrong_input_is_named(backend, name, how):
    inputs = problem()
    wrong = WRONG[how](getattr(inputs, name))
    # If the wrong tensor defines the sizes, another one does not fit.
    decides = name == "x" or (name, how) == ("A", "last axis")
    calls = (
        lambda: forward(inputs._replace(**{name: wrong}), backend),
        lambda: backward(inputs, backend, **{name: wrong}),
    )
    for call in calls:
        with pytest.raises((TypeError, ValueError), match=r"must|is on" if decides else rf"^{name} (.*must|is on)"):
            call()


def test_the_extension_takes_what_python_takes():
    """Anything else goes to Python's check, which says what is wrong."""
    for inputs in (problem(), problem(table=False), problem()._replace(D=None, table=torch.arange(12).expand(3, 12))):
        assert native.scan_sizes(inputs, None, None) == inputs.sizes()
        y, last_state, *_ = forward(inputs, "cpu")
        assert native.scan_sizes(inputs, y, last_state) == inputs.sizes()
        assert native.scan_sizes(inputs, last_state, y) is None
    wide = problem()._replace(A=problem().A.double())
    assert native.scan_sizes(wide, None, None) == wide.sizes()
    assert wide.sizes().wide
    images = problem()._replace(x=torch.randn(2, 3, 12, 5))
    assert native.scan_sizes(images, None, None) == images.sizes()
    assert not images.sizes().sum_routes
    for name, value in problem()._asdict().items():
        if value is None:
            continue
        for wrong in (*(change(value) for change in WRONG.values() if name != "table"), "a string", 3, object()):
            assert native.scan_sizes(problem()._replace(**{name: wrong}), None, None) is None
    for states in (0, 257):
        inputs = ScanInputs(*image_problem(1, 2, 3, 2, states, torch.float32))
        assert native.scan_sizes(inputs, None, None) is None


@pytest.mark.parametrize("values", [-1, 12, 2**30, 0])
def test_a_wrong_table_is_named(backend, values):
    inputs = problem()
    wrong = inputs.table.clone()
    wrong[1, 3] = values if values else wrong[1, 4]
    x, y = torch.randn(2, 1, 12, 5), torch.randn(2, 3, 12, 5)
    for call in (
        lambda: forward(inputs._replace(table=wrong), backend),
        lambda: backward(inputs, backend, table=wrong),
        lambda: OPS.cross_scan(x, wrong, 0, 0, 0, False, backend),
        lambda: OPS.cross_merge(y, wrong, 0, 0, 0, True, False, backend),
    ):
        with pytest.raises(ValueError, match=r"every row of table must hold each of 0\.\.11 exactly once"):
            call()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("dy", torch.ones(2, 12, 4)),
        ("dy", torch.ones(2, 12, 5).int()),
        ("dlast_state", torch.ones(2, 3, 5, 3)),
        ("checkpoints", torch.ones(7)),
        ("checkpoints", torch.zeros(0).double()),
    ],
)
def test_a_wrong_argument_of_the_backward_is_named(compiled_backend, name, wrong):
    with pytest.raises((TypeError, ValueError), match=name):
        backward(problem(), compiled_backend, **{name: wrong})


def test_copies_check_their_shapes(backend):
    x, table = torch.randn(2, 1, 12, 5), problem().table
    with pytest.raises(ValueError, match=r"table must have shape \(K, L\) = \(3, 11\)"):
        OPS.cross_scan(x[:, :, :11], table, 0, 0, 0, False, backend)
    with pytest.raises(ValueError, match=r"x must have shape \(B, K, L, C\) = \(2, 3, 12, 5\)"):
        OPS.cross_scan(x.expand(-1, 2, -1, -1), table, 0, 0, 0, False, backend)
    with pytest.raises(ValueError, match=r"y must have shape \(B, K, L, C\) = \(2, 3, 12, 5\)"):
        OPS.cross_merge(x, table, 0, 0, 0, True, False, backend)
    with pytest.raises(TypeError, match="table must be an int32 or int64 tensor"):
        OPS.cross_merge(x, table.float(), 0, 0, 0, True, False, backend)
    for size in ((3, 5), (12, -1), (-3, -4), (0, 12)):
        with pytest.raises(ValueError, match="height and width must give the 12 pixels of x"):
            OPS.cross_scan(x, None, *size, 0, False, backend)
    for scans in (4, -1):
        with pytest.raises(ValueError, match="scans must be 0-3"):
            OPS.cross_scan(x, None, 3, 4, scans, False, backend)
    with pytest.raises(ValueError, match=r"y must have shape \(B, K, L, C\) = \(2, 4, 12, 5\)"):
        OPS.cross_merge(x.expand(-1, 3, -1, -1), None, 3, 4, 0, True, False, backend)


@pytest.mark.parametrize("name", ["abacus", ""])
def test_an_unknown_backend_is_named(name):
    with pytest.raises(ValueError, match=f"unknown backend '{name}'"):
        forward(problem(), name)


def leaves_of(inputs):
    return ScanInputs(*(t.detach().clone().requires_grad_() for t in inputs[:8]), table=inputs.table)


def differentiate(leaves, backend, change=None):
    y, last_state = vk.cross_selective_scan(
        *leaves[:7], leaves.table, initial_state=leaves.initial_state, return_last_state=True, backend=backend
    )
    if change:
        change()
    return torch.autograd.grad(y.square().sum() + last_state.sum(), leaves[:8])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("values", [6_400_000, -5, 0])
def test_a_table_that_numpy_changes_after_the_forward(backend, dtype, values):
    """The gradient uses the original table, of which the backward has a copy."""
    leaves = leaves_of(problem())
    leaves = leaves._replace(table=leaves.table.to(dtype))
    memory = leaves.table.numpy()
    expected = differentiate(leaves, backend)
    found = differentiate(leaves, backend, lambda: memory.fill(values))
    assert all(torch.equal(a, b) for a, b in zip(expected, found))


@pytest.mark.parametrize("values", [6_400_000, 0])
def test_a_table_that_numpy_changes_after_the_forward_of_a_copy(backend, values):
    table = problem().table
    memory, before = table.numpy(), table.clone()
    x, y = torch.randn(2, 1, 12, 5, requires_grad=True), torch.randn(2, 3, 12, 5, requires_grad=True)
    results = (
        OPS.cross_scan(x, table, 0, 0, 0, False, backend),
        OPS.cross_merge(y, table, 0, 0, 0, True, False, backend),
    )
    weights = [torch.randn_like(r) for r in results]
    memory.fill(values)
    assert torch.equal(
        torch.autograd.grad(results[0], x, weights[0])[0],
        OPS.cross_merge(weights[0], before, 0, 0, 0, True, False, backend),
    )
    assert torch.equal(
        torch.autograd.grad(results[1], y, weights[1])[0],
        OPS.cross_scan(weights[1], before, 0, 0, 0, False, backend),
    )


def test_a_table_that_torch_changes_is_read_again(backend):
    """Changed in place, and in inference mode, where tensors have no version counter."""
    inputs = problem()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            table = inputs.table.clone()
            first = forward(inputs._replace(table=table), backend)[0]
            assert torch.equal(first, forward(inputs, backend)[0])
            table.copy_(table.flip(1))
            assert torch.equal(
                forward(inputs._replace(table=table), backend)[0],
                forward(inputs._replace(table=inputs.table.flip(1)), backend)[0],
            )
            table[0, 0] = 99
            with pytest.raises(ValueError, match="every row of table"):
                forward(inputs._replace(table=table), backend)


@pytest.mark.parametrize("name", ["x", "delta", "A", "B", "C"])
def test_a_saved_tensor_of_another_shape_is_named(compiled_backend, name):
    leaves = leaves_of(problem())
    tensor = getattr(leaves, name)
    with pytest.raises(ValueError, match="must have shape"):
        differentiate(leaves, compiled_backend, lambda: setattr(tensor, "data", tensor.data[..., :1].clone()))


@pytest.mark.parametrize("size", [0, 16])
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_saved_tensor_without_its_memory_is_refused(compiled_backend, name, size):
    leaves = leaves_of(problem())
    storage = getattr(leaves, name).untyped_storage()
    with pytest.raises((ValueError, RuntimeError), match="has no memory for all of its elements"):
        differentiate(leaves, compiled_backend, lambda: storage.resize_(size))


@pytest.mark.parametrize("name", ["x", "delta", "A", "B", "C"])
def test_an_input_without_memory_is_refused(compiled_backend, name):
    inputs = problem()
    getattr(inputs, name).untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="has no memory for all of its elements"):
        forward(inputs, compiled_backend)


def test_every_module_is_passed_once():
    """From the public function to the extension, forward and backward, no module is left and entered again."""
    package = vk.__name__ + "."
    paths = []

    def record(frame, event, argument):
        if event == "c_call" and getattr(argument, "__name__", "") in ("scan_forward", "scan_backward"):
            modules = []
            while frame:
                name = frame.f_globals.get("__name__", "")
                if name.startswith(package) and modules[-1:] != [name]:
                    modules.append(name)
                frame = frame.f_back
            paths.append(modules[::-1])

    leaves = leaves_of(problem())
    sys.setprofile(record)
    try:
        y = vk.cross_selective_scan(*leaves[:7], leaves.table)
        with torch.no_grad():
            vk.cross_selective_scan(*leaves[:7], leaves.table)
        y.backward(torch.ones_like(y))
    finally:
        sys.setprofile(None)
    assert len(paths) >= 2
    for path in paths:
        assert len(path) == len(set(path)), path
    assert paths[0] == [package + "cross_selective_scan", package + "ops.selective_scan", package + "backends.cpu"]


def test_the_backward_is_that_of_the_reference_under_a_profiler(backend):
    """The operator runs below autograd, but the reference needs autograd again."""
    inputs = problem()
    expected = backward(inputs, backend)
    with torch.profiler.profile():
        found = backward(inputs, backend)
    negated = backward(inputs, backend, A=torch._neg_view(-inputs.A))
    for a, b, c in zip(expected, found, negated):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert a.abs().max() > 0


@pytest.mark.parametrize("name", ["B", "D", "initial_state"])
def test_a_nested_tensor_is_named(name):
    inputs = problem()
    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(2, 3)])
    with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got a nested one"):
        forward(inputs._replace(**{name: nested}), "cpu")


@pytest.mark.parametrize("name", ["x", "delta", "A", "B", "C", "D", "delta_bias", "initial_state", "dy", "dlast_state"])
def test_memory_that_ends_too_soon_is_refused(name):
    """A tensor with a shrunken storage, in the forward and in the backward."""
    inputs = problem()
    y, last_state, checkpoints, order = forward(inputs, "cpu")
    given = {"dy": torch.ones_like(y), "dlast_state": torch.ones_like(last_state), **inputs._asdict(), "table": order}
    storage = given[name].untyped_storage()
    storage.resize_(storage.nbytes() - 4)
    with pytest.raises(ValueError, match="no memory for all of its elements"):
        OPS.selective_scan_backward(*given.values(), checkpoints, True, False, False, "cpu")
    if name in PARAMETERS:
        with pytest.raises(ValueError, match="no memory for all of its elements"):
            forward(inputs, "cpu")


@pytest.mark.parametrize("name", ["tensor", "table"])
@pytest.mark.parametrize("operator", ["cross_scan", "cross_merge"])
def test_memory_of_a_copy_that_ends_too_soon_is_refused(operator, name):
    tensor, table = torch.randn(2, 3, 12, 5), problem().table
    storage = {"tensor": tensor, "table": table}[name].untyped_storage()
    storage.resize_(storage.nbytes() - 4)
    options = (False, "cpu") if operator == "cross_scan" else (True, False, "cpu")
    with pytest.raises(ValueError, match="no memory for all of its elements"):
        getattr(OPS, operator)(tensor, table, 0, 0, 0, *options)


@pytest.mark.parametrize("place", range(9))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_memory_taken_from_what_is_converted(backend, dtype, place):
    """The kernels convert parameters to another dtype, so memory is checked before torch reads it."""
    if backend == "reference":
        pytest.skip("torch's own operators read what they saved")
    x, delta = torch.randn(1, 6, 3), torch.randn(1, 2, 6, 3)
    A, B, C = -torch.rand(2, 3, 4, dtype=dtype), torch.randn(1, 2, 6, 4, dtype=dtype), torch.randn(1, 2, 6, 4)
    D, bias = torch.randn(2, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    table = vk.routes(2, 3, scans="unidi")[:2].to(torch.int64)
    tensors = [t.requires_grad_() for t in (x, delta, A, B, C, D, bias)]
    y = vk.cross_selective_scan(*tensors, table, delta_softplus=True, backend=backend)
    dy = torch.ones_like(y)
    taken = [*tensors, table, dy][place]
    taken.untyped_storage().resize_(0)
    if taken is table:  # the scan has its own copy
        torch.autograd.grad(y, tensors, dy)
        with pytest.raises(ValueError, match="no memory"):
            vk.cross_selective_scan(*tensors, table, delta_softplus=True, backend=backend)
        return
    with pytest.raises(ValueError, match="no memory"):
        torch.autograd.grad(y, tensors, dy)
