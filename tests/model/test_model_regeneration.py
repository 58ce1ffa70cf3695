import pytest
import torch

from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.model import csm as csm_module
from vmddpm.model.regeneration import VisitOrders, order_key_tensor
from vmddpm_kernels import cross_selective_scan, routes

SMALL = {"base_channels": 8, "norm_groups": 4, "d_state": 4}
LAYERS = 17


def make_model(**options):
    torch.manual_seed(0)
    model = VMDDPM(ModelConfig(**SMALL, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(size=2, height=32, width=64):
    x = torch.randn(size, 1, height, width, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(size) * 100


@pytest.fixture
def tables(monkeypatch):
    """Every table handed to the scan, in the order of the calls."""
    seen = []

    def spy(x, delta, A, B, C, D, delta_bias, table, **options):
        seen.append(table)
        return cross_selective_scan(x, delta, A, B, C, D, delta_bias, table, **options)

    monkeypatch.setattr(csm_module, "cross_selective_scan", spy)
    return seen


def test_zero_parameters():
    on, off = (VMDDPM(ModelConfig(**SMALL, regeneration=regeneration)) for regeneration in (True, False))
    with_it, without = ({k: v.shape for k, v in model.state_dict().items()} for model in (on, off))
    assert with_it == without
    assert not list(on.buffers())


def test_one_new_order_before_each_s6(tables):
    make_model()(*batch(), order_key=(0, 0))
    assert len(tables) == LAYERS
    for table in tables:
        length = table.shape[1]
        assert table.shape == (4, length)
        forwards, columns, backwards, backward_columns = table
        assert torch.equal(forwards.sort().values, torch.arange(length, dtype=torch.int32))
        # One permutation under all four routes: they relate as the ordered four do.
        assert torch.equal(backwards, forwards.flip(0))
        assert torch.equal(backward_columns, columns.flip(0))
    largest = [t for t in tables if t.shape[1] == 8 * 16]
    assert len(largest) == 4
    assert len({tuple(t[0].tolist()) for t in largest}) == 4
    assert all(torch.equal(t[1], t[0].view(8, 16).T.flatten()) for t in largest)


def test_key_and_layer_alone_make_the_order(tables):
    model = make_model()
    model(*batch(1), order_key=(7, 3))
    model.double().eval()
    x, t = batch(3)
    model(x.double(), t, order_key=(7, 3))
    assert all(torch.equal(a, b) for a, b in zip(tables[:LAYERS], tables[LAYERS:]))


def test_equal_keys_equal_outputs():
    model = make_model()
    x, t = batch()
    first = model(x, t, order_key=(1, 2))
    assert torch.equal(model(x, t, order_key=(1, 2)), first)
    for other in [(1, 3), (2, 2), (2, 1)]:
        assert not torch.allclose(model(x, t, order_key=other), first)


def test_without_a_key_torch_manual_seed_repeats_it():
    model = make_model()
    x, t = batch()
    torch.manual_seed(3)
    first, second = model(x, t), model(x, t)
    torch.manual_seed(3)
    assert torch.equal(model(x, t), first)
    assert not torch.allclose(first, second)


def test_with_a_key_the_global_generator_is_left_alone():
    model = make_model()
    before = torch.get_rng_state()
    model(*batch(), order_key=(0, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_off_means_ordered_scans(tables):
    model = make_model(regeneration=False)
    x, t = batch()
    assert torch.equal(model(x, t), model(x, t, order_key=(5, 5)))
    assert torch.equal(tables[0], routes(8, 16))
    assert tables[0] is tables[1]  # from the cache


def test_at_sampling_off_orders_in_eval_mode_only(tables):
    model = make_model(regeneration_at_sampling=False)
    model(*batch(), order_key=(0, 0))
    model.eval()(*batch(), order_key=(0, 0))
    assert not torch.equal(tables[0], routes(8, 16))
    assert torch.equal(tables[LAYERS], routes(8, 16))


def test_sampling_shuffles_by_default(tables):
    make_model().eval()(*batch(), order_key=(0, 0))
    assert not torch.equal(tables[0], routes(8, 16))


def test_patches_stay_whole():
    orders = VisitOrders(ModelConfig(**SMALL, regeneration_patch_size=2), order_key_tensor((0, 0)), torch.device("cpu"))
    patches = orders.next(4, 6)[0].view(2, 2, 3, 2).transpose(1, 2).reshape(6, 4)  # the pixels of each patch
    inside = torch.tensor([0, 1, 6, 7], dtype=torch.int32)
    assert torch.equal(patches - patches[:, :1], inside.expand(6, 4))


def test_a_table_cached_in_inference_mode_serves_training():
    model = make_model(regeneration=False)
    x, t = batch(1, 32, 96)  # a size no other test has put into the cache
    with torch.inference_mode():
        model(x, t)
    model(x, t).sum().backward()
