"""Images along the regular routes in one call of the extension: when that call is used, its gradients, and the general
path for everything else."""

import itertools

import pytest
import torch
from test_cross_scan import LAYOUTS, image, merge_by_definition, scan_by_definition

import vmddpm_kernels as vk
from vmddpm_kernels.backends import BACKENDS
from vmddpm_kernels.backends.extension import native

HEIGHT, WIDTH = 3, 5
EVERY = [(*layout, *rest) for layout, *rest in itertools.product(LAYOUTS, [False, True], range(4))]


@pytest.fixture
def only_at_once(monkeypatch):
    """Make calls of the operators below the public functions fail."""

    def refuse(*_):
        raise AssertionError("not in one call")

    for name in ("cross_scan", "cross_merge"):
        monkeypatch.setattr(type(BACKENDS["cpu"]), name, refuse)


def images(layout, dtype=torch.float64):
    in_first, out_first, one_by_one, _ = layout
    x = image(2, 3, HEIGHT, WIDTH, in_first, one_by_one, dtype)
    return x, image(2, 3, HEIGHT, WIDTH, out_first, True, dtype)


@pytest.mark.usefixtures("only_at_once")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", EVERY)
def test_values_and_gradients(layout, dtype):
    """By definition, scan and merge are each other's gradient."""
    x, y = (t.requires_grad_() for t in images(layout, dtype))
    scanned, merged = vk.cross_scan(x, *layout), vk.cross_merge(y, *layout)
    expected = scan_by_definition(x.detach().double(), *layout).to(dtype)
    summed = merge_by_definition(y.detach().double(), *layout).to(dtype)
    assert torch.equal(scanned, expected)
    assert torch.equal(merged, summed)
    (dx,) = torch.autograd.grad(scanned, x, y.detach().view(scanned.shape))
    assert torch.equal(dx, summed.view(x.shape))
    (dy,) = torch.autograd.grad(merged, y, x.detach().view(merged.shape))
    assert torch.equal(dy, expected.view(y.shape))


@pytest.mark.usefixtures("only_at_once")
@pytest.mark.parametrize("layout", EVERY[::3])
def test_gradients_of_gradients(layout):
    for function, tensor in zip((vk.cross_scan, vk.cross_merge), images(layout)):
        tensor.requires_grad_()
        assert torch.autograd.gradgradcheck(lambda t, f=function: f(t, *layout) ** 2, (tensor,))


@pytest.mark.usefixtures("only_at_once")
@pytest.mark.parametrize("layout", EVERY[::3])
def test_a_gradient_that_repeats_one_number(layout):
    """The gradient of `sum` is one expanded number."""
    x, y = (t.requires_grad_() for t in images(layout))
    vk.cross_scan(x, *layout).sum().backward()
    vk.cross_merge(y, *layout).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 1 if layout[2] else 4))
    assert torch.equal(y.grad, torch.ones_like(y))


@pytest.mark.usefixtures("only_at_once")
def test_a_parameter_and_a_leaf_below_no_grad():
    x = torch.nn.Parameter(torch.randn(1, 2, 3, 4))
    y = vk.cross_scan(x)
    assert type(y) is torch.Tensor
    assert y.requires_grad
    with torch.no_grad():
        assert not vk.cross_scan(x).requires_grad
    with torch.inference_mode():
        assert vk.cross_scan(x).is_inference()


def at_once(x, *layout, merge=False):
    return native.cross_image(x, 0, 0, *layout, merge, 1)


def test_unusual_inputs_are_left_to_python():
    x, layout = torch.randn(1, 2, 3, 4), (True, True, False, 0)
    assert at_once(x, *layout) is not None
    for other in [
        x.long(), x.to_sparse(), x.to("meta"), x[0], x[None], x[:, :, :0], x[:, :, :, :0], None, "x",
        torch.randn(1, 2, 6, 8)[:, :, ::2, ::2],      # row stride differs from width times pixel stride
        torch.randn(1, 2, 4, 3).transpose(2, 3),
    ]:  # fmt: skip
        assert at_once(other, *layout) is None
    for flags in [(1, True, False, 0), (True, None, False, 0), (True, True, 0, 0)]:
        assert at_once(x, *flags) is None
    for scans in (-1, 4, True, 2**70, "cross2d", 0.0, None):
        assert at_once(x, True, True, False, scans) is None
    assert at_once(torch.randn(1, 3, 2, 3, 4), *layout, merge=True) is None  # three routes
    assert at_once(x, *layout, merge=True) is None
    flat = torch.randn(1, 4, 2, 12)
    assert native.cross_image(flat, 3, 4, *layout, True, 1).shape == (1, 2, 3, 4)
    assert native.cross_image(flat, 3, 5, *layout, True, 1) is None
    assert native.cross_image(flat, 2**40, 2**40, *layout, True, 1) is None


def test_pixels_that_are_not_evenly_spaced():
    x = torch.randn(1, 2, 6, 8)[:, :, ::2, ::2]
    assert torch.equal(vk.cross_scan(x), scan_by_definition(x.contiguous(), True, True, False, 0))


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1)])
def test_a_single_row_or_column(size):
    """A row or column of a larger image, so that pixels are not adjacent."""
    x = torch.randn(2, 3, 6, 6)[:, :, : size[0], : size[1]]
    assert torch.equal(vk.cross_scan(x), scan_by_definition(x.contiguous(), True, True, False, 0))


def test_memory_that_is_gone():
    x = torch.randn(1, 2, 3, 4)
    x.untyped_storage().resize_(16)
    with pytest.raises(ValueError, match="has no memory for all of its elements"):
        vk.cross_scan(x)


def test_the_environment_names_the_backend(monkeypatch):
    monkeypatch.setenv("VMDDPM_BACKEND", "reference")
    monkeypatch.setattr(native, "cross_image", None)
    x = torch.randn(1, 2, 3, 4)
    assert torch.equal(vk.cross_scan(x), scan_by_definition(x, True, True, False, 0))


@pytest.mark.parametrize("function", [vk.cross_scan, vk.cross_merge])
def test_no_tensor_at_all(function):
    with pytest.raises(TypeError, match=r"(x|y) must be a torch\.Tensor"):
        function(None)
