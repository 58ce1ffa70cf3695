import pytest
import torch
from torch.nn import functional as F

from vmddpm.model import CSM, ModelConfig
from vmddpm.model import csm as csm_module
from vmddpm_kernels import patch_permutation, routes
from vmddpm_kernels.ops.cross_scan import cross_merge, cross_scan
from vmddpm_kernels.routes import RouteOrder


def make_csm(channels=8, seed=0, **options):
    torch.manual_seed(seed)
    return CSM(channels, ModelConfig(base_channels=8, norm_groups=4, d_state=4, **options))


def image(batch, channels, height, width, seed=1):
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def ordered(height, width):
    return routes(height, width)


def shuffled(height, width, seed, patch_size=1):
    return routes(height, width, permutation=patch_permutation(height, width, patch_size=patch_size, seed=seed))


def layer_norm(x, weight, bias):
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    return (x - mean) / (var + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]


def definition(csm, x, pixel_orders, zoh=False):
    """The module in float64 by its definition, one pixel of one route at a time.

    pixel_orders: for each route, the (row, column) of pixels in the order of its visits."""
    w = {name: p.double() for name, p in csm.named_parameters()}
    x = x.double()
    batch = x.shape[0]
    tokens = layer_norm(x, w["norm.weight"], w["norm.bias"])
    value = torch.einsum("bchw,dc->bdhw", tokens, w["value.weight"])
    gate = torch.einsum("bchw,dc->bdhw", tokens, w["gate.weight"])
    value = F.conv2d(value, w["conv.weight"], w["conv.bias"], padding=1, groups=value.shape[1])
    value = value * value.sigmoid()
    merged = torch.zeros_like(value)
    rank, states = csm.rank, csm.states
    for k, order in enumerate(pixel_orders):
        sequence = torch.stack([value[:, :, i, j] for i, j in order], dim=2)                    # (B, D, L)
        projected = torch.einsum("bdl,cd->bcl", sequence, w["x_proj"][k])
        low_rank, B, C = projected[:, :rank], projected[:, rank : rank + states], projected[:, -states:]
        delta = torch.einsum("brl,dr->bdl", low_rank, w["dt_proj"][k]) + w["dt_bias"][k][:, None]
        delta = torch.log1p(delta.exp())
        A = -w["A_log"][k].exp()                                                                # (D, N)
        h = torch.zeros(batch, value.shape[1], states, dtype=torch.float64)
        for step, (i, j) in enumerate(order):
            dt = delta[:, :, step, None]                                                        # (B, D, 1)
            B_bar = ((dt * A).exp() - 1) / (dt * A) * dt if zoh else dt                         # Eq. 6
            h = (dt * A).exp() * h + B_bar * B[:, None, :, step] * sequence[:, :, step, None]   # Eq. 5
            merged[:, :, i, j] += (h * C[:, None, :, step]).sum(-1) + w["D"][k] * sequence[:, :, step]
    y = layer_norm(merged, w["norm_out.weight"], w["norm_out.bias"])
    return torch.einsum("bdhw,cd->bchw", y * gate * gate.sigmoid(), w["out.weight"])


def four_directions(height, width):
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    return [rows, columns, rows[::-1], columns[::-1]]


@pytest.mark.parametrize("discretization", ["mamba", "zoh"])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (1, 1)])
def test_matches_the_definition(discretization, height, width):
    csm, x = make_csm(discretization=discretization), image(2, 8, height, width)
    with torch.no_grad():
        for parameter in csm.parameters():  # an initial 0 or 1 could hide a missing weight
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected = definition(csm, x, four_directions(height, width), zoh=discretization == "zoh")
    table = ordered(height, width)
    torch.testing.assert_close(csm.double()(x.double(), table), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(csm.float()(x, table).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scans", "count"), [("omnidirectional", 8), ("hw,snake-wh-reversed,skip2-hw", 3), ("hw", 1)])
def test_weights_follow_the_routes(scans, count):
    csm, x = make_csm(scans=scans).double(), image(2, 8, 3, 5).double()
    for name in ("x_proj", "dt_proj", "dt_bias", "A_log", "D"):
        assert getattr(csm, name).shape[0] == count
    orders = [[divmod(pixel, 5) for pixel in order] for order in routes(3, 5, scans=scans).tolist()]
    y = csm(x, routes(3, 5, scans=scans))
    torch.testing.assert_close(y, definition(csm, x, orders), rtol=1e-10, atol=1e-12)


def test_gradients_match_the_definition():
    csm, x = make_csm().double(), image(2, 8, 3, 4).double().requires_grad_()
    weight = image(2, 8, 3, 4, seed=2).double()
    inputs = [x, *csm.parameters()]
    expected = torch.autograd.grad((definition(csm, x, four_directions(3, 4)) * weight).sum(), inputs)
    result = torch.autograd.grad((csm(x, ordered(3, 4)) * weight).sum(), inputs)
    for a, b in zip(result, expected):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_regeneration_is_the_same_directions_over_a_shuffled_image(patch_size):
    height, width = 4, 6
    csm, x = make_csm().double(), image(2, 8, height, width).double()
    permutation = patch_permutation(height, width, patch_size=patch_size, seed=5).tolist()
    # Place (i, j) of the shuffled image holds pixel permutation[i * width + j] of the image.
    directions = four_directions(height, width)
    orders = [[divmod(permutation[i * width + j], width) for i, j in direction] for direction in directions]
    y = csm(x, shuffled(height, width, 5, patch_size))
    torch.testing.assert_close(y, definition(csm, x, orders), rtol=1e-10, atol=1e-12)


def identity_s6(x, delta, A, B, C, D, delta_bias, table, **options):
    order = RouteOrder(table)
    return cross_merge(cross_scan(x[:, None], order, False), order, True, False)[:, 0]


@pytest.mark.parametrize("seed", range(5))
def test_with_an_identity_s6_no_permutation_changes_the_output(monkeypatch, seed):
    monkeypatch.setattr(csm_module, "cross_selective_scan", identity_s6)
    csm, x = make_csm(), image(2, 8, 4, 6)
    assert torch.equal(csm(x, shuffled(4, 6, seed)), csm(x, ordered(4, 6)))


@pytest.mark.parametrize("seed", range(5))
def test_without_state_no_permutation_changes_the_output(seed):
    csm, x = make_csm(), image(2, 8, 4, 6)
    with torch.no_grad():
        csm.x_proj[:, csm.rank + csm.states :] = 0  # C = 0 leaves only the skip D x of the S6, and D starts at 1
    assert torch.equal(csm(x, shuffled(4, 6, seed)), csm(x, ordered(4, 6)))


def test_a_real_s6_does_depend_on_the_order():
    csm, x = make_csm(), image(2, 8, 4, 6)
    assert not torch.allclose(csm(x, shuffled(4, 6, 0)), csm(x, ordered(4, 6)))
    assert not torch.allclose(csm(x, shuffled(4, 6, 0)), csm(x, shuffled(4, 6, 1)))


def test_initial_values_are_mambas():
    csm = make_csm(channels=32)
    torch.testing.assert_close(csm.A_log.exp(), torch.tensor([1.0, 2, 3, 4]).expand(4, 64, 4))
    assert torch.equal(csm.D, torch.ones(4, 64))
    dt = F.softplus(csm.dt_bias)
    assert dt.min() >= 1e-3 * (1 - 1e-3)
    assert dt.max() <= 1e-1 * (1 + 1e-3)
    # log-uniform: the median of 256 draws lies within a factor of 1.6 of 1e-2 (over 3 deviations)
    assert 1 / 1.6 < dt.median() / 1e-2 < 1.6
    assert csm.x_proj.abs().max() <= 64**-0.5
    assert csm.dt_proj.abs().max() <= csm.rank**-0.5


def test_the_scan_reads_views_not_copies(monkeypatch):
    seen = {}

    def spy(x, delta, A, B, C, D, delta_bias, table, **options):
        seen.update(x=x, delta=delta, B=B, C=C)
        return x

    monkeypatch.setattr(csm_module, "cross_selective_scan", spy)
    csm = make_csm()
    out = csm(image(2, 8, 4, 6), ordered(4, 6))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert seen["delta"].shape == (2, 4, 24, csm.rank)
    assert seen["B"].shape == seen["C"].shape == (2, 4, 24, 4)
    storages = {name: t.untyped_storage() for name, t in seen.items()}
    assert storages["B"].data_ptr() == storages["C"].data_ptr() == storages["delta"].data_ptr()
    assert storages["B"].nbytes() == 2 * 24 * 4 * (csm.rank + 8) * 4  # a view of the projection's result
    assert seen["x"].is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    csm, x = make_csm(channels=16), image(2, 16, 4, 6)
    with torch.no_grad():
        exact = csm(x, ordered(4, 6))
        with torch.autocast("cpu", dtype):
            rough = csm(x, ordered(4, 6))
    error = (rough.float() - exact).abs().max() / exact.abs().max()
    assert rough.dtype == dtype
    assert error < 8 * torch.finfo(dtype).eps  # a few roundings of the type
