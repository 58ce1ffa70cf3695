"""Group normalisation with SiLU against float64, gradcheck, and the composition of PyTorch's operators."""

import pytest
import torch
from torch.nn import functional as F

import vmddpm_kernels as vk
from vmddpm_kernels.ops import group_norm

# (B, C, pixels), groups, whether each image has its own affine map
CASES = {
    "many pixels": ((2, 32, 17, 16), 8, False),
    "odd channels": ((3, 33, 7, 5), 3, True),
    "narrow groups": ((1, 96, 9, 9), 32, True),
    "one pixel": ((2, 6, 1, 1), 2, False),
    "a column": ((2, 8, 33, 1), 4, True),
    "a volume": ((2, 12, 3, 4, 5), 4, True),
    "a vector": ((4, 24), 6, False),
}
MEMORY = {2: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}


def problem(shape, of_images, dtype, mean=3.0):
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=generator)

    x = (2 * normal(*shape) + mean).to(dtype).contiguous(memory_format=MEMORY[len(shape)])
    size = shape[:2] if of_images else shape[1:2]
    parameters = torch.float64 if dtype is torch.float64 else torch.float32
    leaves = [x, normal(*size).to(parameters), normal(*size).to(parameters)]
    return [t.requires_grad_() for t in leaves], normal(*shape).to(dtype)


def definition(x, groups, weight, bias, eps=1e-5):
    """The formula, written as sums."""
    grouped = x.reshape(x.shape[0], groups, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    normal = centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()
    pixels = (1,) * (x.dim() - 2)
    v = normal.view(x.shape) * weight.reshape(-1, x.shape[1], *pixels) + bias.reshape(-1, x.shape[1], *pixels)
    return v / (1 + torch.exp(-v))


def results(function, leaves, dy):
    y = function(*leaves)
    return [y, *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_against_float64(case, dtype):
    """The error is at most twice that of PyTorch's operators in the same dtype."""
    shape, groups, of_images = CASES[case]
    leaves, dy = problem(shape, of_images, dtype)
    exact = results(
        lambda x, w, b: definition(x, groups, w, b), [t.detach().double().requires_grad_() for t in leaves], dy.double()
    )
    ours = results(lambda x, w, b: vk.group_norm_silu(x, groups, w, b), leaves, dy)
    theirs = results(lambda x, w, b: group_norm.composed(x, groups, w.to(dtype), b.to(dtype), 1e-5), leaves, dy)
    assert ours[0].stride() == leaves[0].stride()
    for name, got, their, want, leaf in zip(("y", "dx", "dweight", "dbias"), ours, theirs, exact, [leaves[0], *leaves]):
        assert (got.dtype, got.shape) == (leaf.dtype, want.shape)
        floor = torch.finfo(got.dtype).eps * want.abs().max()
        allowed = 2 * (their.double() - want).abs().max() + floor
        assert (got.double() - want).abs().max() <= allowed, name


def test_a_mean_far_from_zero():
    """The deviation loses no digits."""
    [x, weight, bias], _ = problem((2, 16, 8, 8), False, torch.float32, mean=1000.0)
    exact = definition(x.double(), 4, weight.double(), bias.double())
    assert (vk.group_norm_silu(x, 4, weight, bias).double() - exact).abs().max() < 1e-3


@pytest.mark.parametrize("of_images", [False, True])
def test_gradcheck(of_images):
    leaves, _ = problem((2, 6, 3, 2), of_images, torch.float64)
    assert torch.autograd.gradcheck(lambda x, w, b: vk.group_norm_silu(x, 3, w, b), leaves)
    assert torch.autograd.gradcheck(lambda x, w: vk.group_norm_silu(x, 3, w), leaves[:2])


def test_same_bits_on_any_number_of_threads():
    leaves, dy = problem((5, 48, 40, 40), True, torch.float32)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found.append(results(lambda x, w, b: vk.group_norm_silu(x, 8, w, b), leaves, dy))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


def test_not_a_number_stays_in_its_image():
    [x, weight, bias], _ = problem((3, 8, 4, 4), False, torch.float32)
    with torch.no_grad():
        x[1, 0, 0, 0] = torch.nan
    y = vk.group_norm_silu(x, 1, weight, bias)
    assert y.isnan().flatten(1).any(1).tolist() == y.isnan().flatten(1).all(1).tolist() == [False, True, False]


def test_other_memory_and_transforms_take_pytorchs_operators():
    [x, weight, bias], dy = problem((2, 8, 4, 4), True, torch.float64)

    def run(x):
        return vk.group_norm_silu(x, 4, weight, bias)

    expected = run(x)
    torch.testing.assert_close(run(x.contiguous()), expected)
    torch.testing.assert_close(run(x.mT.contiguous().mT), expected)
    _, tangent = torch.func.jvp(run, (x,), (dy,))
    [dx] = torch.autograd.grad(expected, x, dy)
    torch.testing.assert_close((tangent * dy).sum(), (torch.func.vjp(run, x)[1](dy)[0] * dy).sum())
    torch.testing.assert_close(torch.func.vjp(run, x)[1](dy)[0], dx)
    assert vk.group_norm_silu(x[:0], 4).shape == (0, 8, 4, 4)


def test_gradient_of_any_memory():
    [x, weight, bias], dy = problem((2, 8, 4, 6), False, torch.float32)
    y = vk.group_norm_silu(x, 4, weight, bias)
    [want] = torch.autograd.grad(y, x, dy.contiguous(memory_format=torch.channels_last), retain_graph=True)
    [got] = torch.autograd.grad(y, x, dy.contiguous(), retain_graph=True)
    assert torch.equal(got, want)
    [summed] = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(summed).all()


def test_second_derivatives_raise():
    [x, weight, bias], _ = problem((2, 8, 4, 4), False, torch.float32)
    [dx] = torch.autograd.grad(vk.group_norm_silu(x, 4, weight, bias).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        dx.sum().backward()


def test_reference_by_the_environment(monkeypatch):
    [x, weight, bias], _ = problem((2, 8, 4, 4), False, torch.float32)
    monkeypatch.setenv("VMDDPM_BACKEND", "reference")
    assert torch.equal(vk.group_norm_silu(x, 4, weight, bias), F.silu(F.group_norm(x, 4, weight, bias)))


@pytest.mark.parametrize("of_images", [False, True])
def test_opcheck(of_images):
    [x, weight, bias], dy = problem((2, 6, 3, 2), of_images, torch.float32)
    torch.library.opcheck(torch.ops.vmddpm.group_norm_silu.default, (x, weight, bias, 3, 1e-5))
    with torch.no_grad():
        _, mean, rstd = torch.ops.vmddpm.group_norm_silu(x, weight, bias, 3, 1e-5)
    dy = dy.contiguous(memory_format=torch.channels_last)
    arguments = [t.detach() for t in (dy, x, weight, bias, mean, rstd)]
    torch.library.opcheck(torch.ops.vmddpm.group_norm_silu_backward.default, tuple(arguments))


def test_the_operators_check_what_they_are_given():
    [x, weight, bias], dy = problem((2, 8, 4, 4), False, torch.float32)
    operator, backward = torch.ops.vmddpm.group_norm_silu, torch.ops.vmddpm.group_norm_silu_backward
    for arguments, words in (
        ((x, weight, bias, 16, 1e-5), "groups must be a divisor"),
        ((x, weight[:3], bias, 4, 1e-5), "weight must have shape"),
        ((x.contiguous(), weight, bias, 4, 1e-5), "side by side"),
        ((x, weight.double(), bias, 4, 1e-5), "float64"),
    ):
        with pytest.raises(ValueError, match=words):
            operator(*arguments)
    moments = torch.ones(2, 4)
    with pytest.raises(ValueError, match="dy must have shape"):
        backward(dy[:1], x, weight, bias, moments, moments)
    with pytest.raises(ValueError, match="rstd must have shape"):
        backward(dy, x, weight, bias, moments, moments[:1])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(3)}, ValueError, r"x must have shape \(B, C, \.\.\.\)"),
        ({"x": torch.ones(2, 8, dtype=torch.int64)}, TypeError, "x must be float16"),
        ({"groups": 3}, ValueError, "groups must be a divisor of x's 8 channels, got 3"),
        ({"groups": True}, ValueError, "groups must be a divisor"),
        ({"weight": torch.ones(7)}, ValueError, r"weight must have shape \(C\) = \(8,\), got \(7,\)"),
        ({"bias": torch.ones(3, 8)}, ValueError, r"bias must have shape \(B, C\) = \(2, 8\)"),
        ({"bias": torch.ones(8, device="meta")}, ValueError, "bias is on meta"),
    ],
)
def test_refusals(change, error, words):
    arguments = {"x": torch.ones(2, 8), "groups": 4, "weight": torch.ones(8), "bias": None, **change}
    with pytest.raises(error, match=words):
        vk.group_norm_silu(**arguments)
