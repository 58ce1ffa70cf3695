"""The network over volumes (D, H, W): against loops, and against the network over images."""

import copy
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from vmddpm.errors import InputError
from vmddpm.model import CSM, VMDDPM, ModelConfig
from vmddpm.model.dimensions import channels_last, convolution, convolve_up
from vmddpm_kernels import routes

SMALL = {"base_channels": 8, "norm_groups": 4, "d_state": 4}
FLAT = "dhw,dwh,dhw-reversed,dwh-reversed"  # on a volume one voxel deep, the routes of an image's cross scan


def perturbed(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("regeneration", [False, True])
def test_a_volume_one_voxel_deep_is_an_image(regeneration):
    """Only the middle plane of each kernel meets voxels, and the routes are those of an image."""
    options = {**SMALL, "sampling": (1, 1), "channel_multipliers": (1, 2), "layers_per_stage": 1, "image_skip": True,
               "regeneration": regeneration}  # fmt: skip
    deep = perturbed(VMDDPM(ModelConfig(**options, spatial_dims=3, scans=FLAT))).double()
    flat = VMDDPM(ModelConfig(**options)).double()
    flat.load_state_dict(
        {name: v[:, :, v.shape[2] // 2] if v.dim() == 5 else v for name, v in deep.state_dict().items()}
    )
    x, t = noise(2, 1, 6, 5).double(), torch.tensor([3, 700])
    found, expected = deep(x[:, :, None], t, order_key=(4, 2)), flat(x, t, order_key=(4, 2))
    torch.testing.assert_close(found[:, :, 0], expected, rtol=1e-9, atol=1e-11)


def test_the_scan_of_a_volume_equals_a_loop():
    torch.manual_seed(0)
    size = (2, 3, 2)
    csm = CSM(8, ModelConfig(**SMALL, spatial_dims=3)).double()
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    table = routes(*size)
    assert table.shape == (6, 12)
    expected = torch.zeros_like(x)
    for k, route in enumerate(table.tolist()):
        places = list(product(*map(range, size)))
        order = [places[i] for i in route]  # axes in order, then swapped with the first axis, then reversed
        key = [lambda p: p, lambda p: (p[1], p[0], p[2]), lambda p: (p[2], p[1], p[0])][k % 3]
        assert order == sorted(places, key=key, reverse=k >= 3)
        state = torch.zeros(16, 4, dtype=torch.float64)
        for i in route:
            rank, B, C = (csm.x_proj[k] @ x[0, i]).split([csm.rank, 4, 4])
            delta = torch.nn.functional.softplus(csm.dt_proj[k] @ rank + csm.dt_bias[k])
            state = torch.exp(delta[:, None] * -csm.A_log[k].exp()) * state + delta[:, None] * B * x[0, i, :, None]
            expected[0, i] += state @ C + csm.D[k] * x[0, i]
    torch.testing.assert_close(csm.s6(x, table), expected, rtol=1e-9, atol=1e-11)


def test_sampling_up_equals_a_loop():
    factor, up = 2, convolution(3, 5, 3 * 8, 1).double()
    x = noise(2, 5, 2, 1, 3).double()
    found = convolve_up(up, x.contiguous(memory_format=channels_last(3)), factor)
    assert found.shape == (2, 3, 4, 2, 6)
    tokens = up(x)
    for b, c, d, h, w in product(range(2), range(3), range(4), range(2), range(6)):
        channel = c * 8 + (d % 2) * 4 + (h % 2) * 2 + w % 2
        torch.testing.assert_close(found[b, c, d, h, w], tokens[b, channel, d // 2, h // 2, w // 2])


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_sampling_up_of_images_is_torchs_pixel_shuffle(factor):
    up = convolution(2, 5, 4 * factor**2, 1).double()
    x = noise(2, 5, 3, 2).double().contiguous(memory_format=channels_last(2)).requires_grad_()
    found, expected = convolve_up(up, x, factor), F.pixel_shuffle(up(x), factor)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=channels_last(2))
    wanted = (x, *up.parameters())
    dy = torch.rand(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad(y, wanted, dy, retain_graph=True) for y in (found, expected))):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradients_of_shallow_volumes_in_bfloat16(depth, groups, autocast):
    """Against float64, with memory full of NaN beforehand, which shows where a kernel does not write."""
    conv = convolution(3, 32, 32, 3, padding=1, groups=groups).to(memory_format=channels_last(3))
    x, dy = (t.contiguous(memory_format=channels_last(3)) for t in noise(2, 2, 32, depth, 4, 3).bfloat16())
    exact = copy.deepcopy(conv).double()
    expected = torch.autograd.grad(exact(x.double()), list(exact.parameters()), dy.double())
    if not autocast:
        conv.bfloat16()
    for _ in range(3):
        poison = [torch.full((size,), torch.nan) for size in (27 * 32, 4096, 27 * 32 * 32)]
        del poison
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = conv(x.float() if autocast else x)
        assert y.dtype is torch.bfloat16
        for found, right in zip(torch.autograd.grad(y, list(conv.parameters()), dy), expected):
            assert (found - right).abs().max() < 0.02 * right.abs().max()


@pytest.mark.parametrize("scans", [0, "ss3d", "tri-orientated", "hilbert"])
def test_shapes_and_gradients(scans):
    stages = {"sampling": (2, 2), "channel_multipliers": (1, 2), "image_skip": True}
    config = ModelConfig(**SMALL, **stages, spatial_dims=3, scans=scans)
    model = perturbed(VMDDPM(config))
    x = noise(2, 1, 8, 4, 12).requires_grad_()
    assert model.encode(x, torch.tensor([3, 700])).shape == (2, 16, 2, 1, 3)
    y = model(x, torch.tensor([3, 700]), order_key=(0, 0))
    assert y.shape == x.shape
    y.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    assert (x.grad != 0).all()


def test_a_convolution_of_side_1_equals_torch_s():
    ours, theirs = convolution(3, 5, 7, 1).double(), torch.nn.Conv3d(5, 7, 1).double()
    theirs.load_state_dict(ours.state_dict())
    x = noise(2, 5, 3, 4, 2).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("side", "options"),
    [
        (3, {"dilation": 2}),
        (3, {"padding": 1, "padding_mode": "circular"}),
        (3, {"padding": "same"}),
        (1, {"stride": 2}),
        (1, {"stride": 1}),
        (1, {"groups": 2, "bias": False}),
        (1, {"padding": 1}),
    ],
)
def test_a_convolution_follows_its_options(side, options):
    ours = convolution(3, 2, 4, side, **options)
    theirs = torch.nn.Conv3d(2, 4, side, **options)
    theirs.load_state_dict(ours.state_dict())
    x = noise(1, 2, 6, 6, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_shallow_volume_in_float64_stays_in_float64_under_autocast():
    layer = convolution(3, 2, 4, 3, padding=1).double()
    x = noise(1, 2, 2, 6, 6).double()
    expected = F.conv3d(x, layer.weight, layer.bias, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), expected)


def test_voxels_keep_their_channels_side_by_side(one_thread):
    """With one thread torch uses other convolutions."""
    model = VMDDPM(ModelConfig(**SMALL, spatial_dims=3, sampling=(2, 2), channel_multipliers=(1, 2)))
    not_channels_last = []

    def check(module, args, out):
        tensors = [t for t in (*args, out) if isinstance(t, torch.Tensor) and t.dim() == 5]
        if not all(t.is_contiguous(memory_format=torch.channels_last_3d) for t in tensors):
            not_channels_last.append(module)

    for name, module in model.named_modules():
        if ".csm." not in name or name.endswith(".conv"):
            module.register_forward_hook(check)
    model(noise(2, 1, 8, 8, 8), torch.tensor([1, 2]))
    assert not not_channels_last


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ((2, 1, 8, 8), r"x must have shape \(B, 1, D, H, W\), got \(2, 1, 8, 8\)"),
        ((2, 3, 8, 8, 8), r"x must have shape \(B, 1, D, H, W\)"),
        ((2, 1, 6, 8, 8), r"depth, height and width must be multiples of 4 .* got 6 x 8 x 8; pad or resize"),
    ],
)
def test_bad_inputs(x, message):
    config = ModelConfig(**SMALL, spatial_dims=3, sampling=(2, 2), channel_multipliers=(1, 2))
    with pytest.raises(InputError, match=message):
        VMDDPM(config)(torch.zeros(x), torch.zeros(2))


def test_routes_that_are_not_those_of_a_volume():
    with pytest.raises(InputError, match=r"scans is 'local'; it must be a set of routes for volumes: .*cross3d"):
        ModelConfig(spatial_dims=3, scans="local")
    with pytest.raises(InputError, match="spatial_dims is 4; it must be 2, for images, or 3, for volumes"):
        ModelConfig(spatial_dims=4)


def test_a_saved_network_comes_back(tmp_path):
    config = ModelConfig(**SMALL, spatial_dims=3, sampling=(2, 2), channel_multipliers=(1, 2))
    model = perturbed(VMDDPM(config)).eval()
    model.save_pretrained(tmp_path)
    loaded = VMDDPM.from_pretrained(tmp_path)
    assert loaded.config == config
    x, t = noise(1, 1, 8, 8, 8), torch.tensor([1])
    assert torch.equal(loaded(x, t, order_key=(4, 2)), model(x, t, order_key=(4, 2)))
