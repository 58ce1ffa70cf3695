"""`vmddpm_kernels.linear` and `modules.Linear` against float64 and against PyTorch's own linear layer."""

import pytest
import torch
from oracle import assert_as_accurate
from torch import Tensor, nn
from torch.nn import functional as F

from vmddpm_kernels import linear as module
from vmddpm_kernels.backends import extension
from vmddpm_kernels.linear import linear, weight_gradient
from vmddpm_kernels.modules import Linear, Mamba, replace_linear

# Leading sizes of x, in_features, out_features: the kernel for few rows, oneDNN, and layers too small for either.
SIZES = [
    ((1,), 512, 384), ((1, 1), 777, 333), ((2,), 1000, 200), ((3,), 515, 600), ((2, 2), 2048, 129),
    ((5,), 700, 700), ((33,), 300, 301), ((2, 512), 96, 97), ((2, 3, 700), 48, 64), ((64,), 8, 8), ((0, 4), 512, 512),
    ((9000,), 31, 40),
]  # fmt: skip
LARGE = [((64,), 768, 1536), ((64,), 1024, 600), ((5000,), 96, 192), ((600,), 300, 64), ((9000,), 64, 130)]


def tensors(sizes: tuple[int, ...], inputs: int, outputs: int, bias: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(*sizes, inputs), (outputs, inputs)] + [(outputs,)] * bias
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("sizes", "inputs", "outputs"), SIZES)
def test_forward_is_as_accurate_as_torch(
    sizes: tuple[int, ...], inputs: int, outputs: int, bias: bool, threads: int
) -> None:
    given = tensors(sizes, inputs, outputs, bias)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, theirs = linear(*given), F.linear(*given)
    finally:
        torch.set_num_threads(before)
    exact = F.linear(*(t.double() for t in given))
    assert ours.shape == exact.shape
    assert ours.dtype is torch.float32
    assert_as_accurate(ours, theirs, exact, torch.float32, "y")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("sizes", "inputs", "outputs"), [*SIZES, *LARGE])
def test_gradients_are_as_accurate_as_torchs(sizes: tuple[int, ...], inputs: int, outputs: int, threads: int) -> None:
    given = [t.requires_grad_() for t in tensors(sizes, inputs, outputs)]
    wide = [t.detach().double().requires_grad_() for t in given]
    dy = torch.randn(*sizes, outputs, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = torch.autograd.grad(linear(*given), given, dy)
        theirs = torch.autograd.grad(F.linear(*given), given, dy)
    finally:
        torch.set_num_threads(before)
    for a, b, exact in zip(ours, theirs, torch.autograd.grad(F.linear(*wide), wide, dy.double())):
        assert a.shape == exact.shape
        assert_as_accurate(a, b, exact, torch.float32, "gradient")


def test_every_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes above reach the kernel for few rows and oneDNN, with and without gradients."""
    if not module._onednn_is_better(torch.empty(1, 1)) or extension.native is None:
        pytest.skip("needs AVX-512 and the extension")
    taken = []
    for name in ("_by_rows", "_by_onednn", "_apply"):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, f=function, name=name: (taken.append(name), f(*given))[1])
    for sizes, inputs, outputs in SIZES:
        given = tensors(sizes, inputs, outputs)
        linear(*given)
        linear(*(t.requires_grad_() for t in given))
    assert set(taken) == {"_by_rows", "_by_onednn", "_apply"}


def test_only_wanted_gradients() -> None:
    x, weight, bias = tensors((600,), 300, 64)
    y = linear(x, weight.requires_grad_(), bias)
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    torch.testing.assert_close(gradient, x.sum(0).expand(64, -1), rtol=1e-4, atol=1e-4)


def test_second_derivatives() -> None:
    given = [t.requires_grad_() for t in tensors((600,), 200, 100)]

    def second(layer: object) -> list[Tensor]:
        y = layer(*given).square().sum()  # type: ignore[operator]
        first = torch.autograd.grad(y, given, create_graph=True)
        return list(torch.autograd.grad(sum((g / 100).square().sum() for g in first), given))

    for ours, theirs in zip(second(linear), second(F.linear)):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("sizes", [(600,), (2, 300)])
def test_batched_gradients(sizes: tuple[int, ...]) -> None:
    """Of `is_grads_batched`, which torch.autograd.functional.jacobian(vectorize=True) passes."""
    given = [t.requires_grad_() for t in tensors(sizes, 200, 100)]
    batch = torch.randn(3, *sizes, 100, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(linear(*given), given, batch, is_grads_batched=True)
    for i, dy in enumerate(batch):
        for one, other in zip(ours, torch.autograd.grad(F.linear(*given), given, dy)):
            torch.testing.assert_close(one[i], other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 3, 700])
def test_strided_tensors(rows: int) -> None:
    x, weight, bias = tensors((2 * rows,), 1200, 600)
    cases = [
        (x[::2], weight, bias),
        (x[:rows, ::2], weight[:, ::2], bias),
        (x[:1].expand(rows, -1), weight, bias),
        (x[:rows], weight[:1].expand(600, -1), bias),
        (x[:rows], weight, bias[:1].expand(600)),
        (x[:rows, :600], weight[:, :600].mT, bias),
        (x.T.contiguous().T[:rows], weight, bias),
    ]
    for given in cases:
        torch.testing.assert_close(linear(*given), F.linear(*given), rtol=1e-4, atol=1e-4)


def test_onednn_gets_weights_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a reference path for the others, a thousand times slower: in the gradients too."""
    if not module._onednn_is_better(torch.empty(1, 1)):
        pytest.skip("needs AVX-512")
    product, given = module._product, []
    monkeypatch.setattr(module, "_product", lambda *arguments: (given.append(arguments[1]), product(*arguments))[1])
    x, weight, _ = tensors((700,), 1200, 600)
    for strided in (weight[:, ::2], weight[:1].expand(600, -1)[:, :600], weight[:, :600].mT):
        leaves = [x[:, :1200:2].detach().requires_grad_(), strided.detach().requires_grad_()]
        dy = torch.randn(700, 1200)[:, :600]
        torch.autograd.grad(linear(*leaves), leaves, dy)
    assert len(given) == 9
    assert all(weight.is_contiguous() or weight.mT.is_contiguous() for weight in given)


def test_few_rows_do_not_depend_on_threads_or_memory() -> None:
    x, weight, bias = tensors((3,), 1003, 500)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(linear(x, weight, bias))
        finally:
            torch.set_num_threads(before)
        torch.full((3, 500), float("nan"))  # the next result gets memory with NaN
    assert all(torch.equal(result, results[0]) for result in results)


def test_the_default_dtype_does_not_matter() -> None:
    given = tensors((2,), 600, 300)
    expected = linear(*given)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(linear(*given), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_not_finite_values_come_through() -> None:
    x, weight, _ = tensors((2,), 600, 300)
    x[0, 599] = torch.inf
    weight[7, 3] = torch.nan
    ours, theirs = linear(x, weight), F.linear(x, weight)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.isinf(), theirs.isinf())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_torchs(dtype: torch.dtype) -> None:
    given = [t.to(dtype) for t in tensors((2, 600), 200, 100)]
    assert torch.equal(linear(*given), F.linear(*given))


def test_autocast_compile_and_transforms() -> None:
    given = tensors((2, 600), 200, 100)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(*given), F.linear(*given))
    with torch.device("meta"):
        assert linear(*(torch.empty_like(t, device="meta") for t in given)).shape == (2, 600, 100)
    exported = torch.export.export(Linear(200, 100), (given[0],))
    assert torch.ops.aten.linear.default in {node.target for node in exported.graph.nodes}
    batched = torch.func.vmap(linear, in_dims=(0, None, None))(*given)
    torch.testing.assert_close(batched, F.linear(*given))
    tangent = torch.func.jvp(lambda x: linear(x, *given[1:]), (given[0],), (given[0],))[1]
    torch.testing.assert_close(tangent, F.linear(*given[:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [((600, 100), (50, 99)), ((4, 600), (300, 500))])
def test_wrong_shapes_are_torchs_errors(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        linear(torch.ones(sizes[0]), torch.ones(sizes[1]))


@pytest.mark.parametrize("rows", [40, 5000])
def test_weight_gradient(rows: int) -> None:
    x, _, _ = tensors((rows,), 70, 1)
    grad, _, _ = tensors((rows,), 90, 1)
    exact = grad.double().mT @ x.double()
    assert_as_accurate(weight_gradient(x, grad), grad.mT @ x, exact, torch.float32, "weight gradient")


def test_replace_linear_keeps_everything_else() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(300, 600), nn.SiLU(), Own(600, 20), nn.Sequential(nn.Linear(20, 3, bias=False)))
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda layer, given, result: seen.append(result))
    x, state = torch.randn(700, 300), model.state_dict()
    expected = model(x)
    assert replace_linear(model) is model
    assert [type(layer) for layer in (model[0], model[2], model[3][0])] == [Linear, Own, Linear]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert len(seen) == 2
    assert list(model.state_dict()) == list(state)


def test_mambas_layers_are_ours() -> None:
    layers = [layer for layer in Mamba(16).modules() if isinstance(layer, nn.Linear)]
    assert layers
    assert all(type(layer) is Linear for layer in layers)
