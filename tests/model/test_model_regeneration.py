import importlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vmddpm.errors import InputError
from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.model import csm as csm_module
from vmddpm.model.philox import random_keys
from vmddpm.model.regeneration import VisitOrders, order_key_tensor
from vmddpm_kernels import cross_selective_scan, patch_permutation, routes

routes_module = importlib.import_module("vmddpm_kernels.routes")  # `vmddpm_kernels.routes` is the function

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
    """Records every table passed to the scan, in call order."""
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
        # One permutation for all four routes, which relate to each other like the ordered four.
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
    cpu = torch.device("cpu")
    orders = VisitOrders(ModelConfig(**SMALL, regeneration_patch_size=2), order_key_tensor((0, 0), cpu), cpu)
    patches = orders.next(4, 6)[0].view(2, 2, 3, 2).transpose(1, 2).reshape(6, 4)  # the pixels of each patch
    inside = torch.tensor([0, 1, 6, 7], dtype=torch.int32)
    assert torch.equal(patches - patches[:, :1], inside.expand(6, 4))


def test_a_table_cached_in_inference_mode_serves_training():
    model = make_model(regeneration=False)
    x, t = batch(1, 32, 96)  # a size that no other test caches
    with torch.inference_mode():
        model(x, t)
    model(x, t).sum().backward()


def test_a_step_that_is_a_tensor_is_the_same_step(tables):
    model = make_model()
    model(*batch(), order_key=(2**70 - 5, 2**40 + 3))
    model(*batch(), order_key=(torch.tensor([-5]), torch.tensor(2**40 + 3)))
    assert all(torch.equal(a, b) for a, b in zip(tables[:LAYERS], tables[LAYERS:]))


def test_an_order_is_that_of_sorted_words(tables):
    """An order is the argsort of the generator's words; test_model_philox.py checks the generator."""
    make_model()(*batch(), order_key=(5, 11))
    words = random_keys(torch.tensor(5), torch.tensor(11), LAYERS, 128).tolist()
    for row, table in zip(words, tables):
        length = table.shape[1]
        assert table[0].tolist() == sorted(range(length), key=row.__getitem__)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ((0, torch.tensor(1.0)), "step of order_key must be an integer"),
        ((torch.tensor([1, 2]), 0), "seed of order_key must be an integer"),
        ((0, torch.zeros((), dtype=torch.int64, device="meta")), "step of order_key is on meta, but x is on cpu"),
    ],
)
def test_keys_that_do_not_fit(key, words):
    with pytest.raises(InputError, match=words):
        make_model()(*batch(1), order_key=key)


class NoDeviceTransfers(TorchDispatchMode):
    """A mode that refuses to read a value on the host or to copy between devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"), f"{name} waits for the device"
        result = function(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            assert all(t.device == result.device for t in args if isinstance(t, torch.Tensor)), "copied to a device"
        return result


def orders_inside_operators(device, scans):
    """Replace the operators of a pass by their kernels, so that dispatch modes see the work inside."""
    step = torch.zeros((), dtype=torch.int64, device=device)
    keys = random_keys(*order_key_tensor((7, step), step.device), 3, 24)
    for row in keys:
        permutation = routes_module._make_patch_order(row, (8, 12), 2)
        yield routes_module._make_routes((8, 12), scans, permutation, str(step.device))


@pytest.mark.parametrize(
    "scans", ["hw,wh-reversed", "hilbert-hw,zorder-wh,zigzag-hw", "window3-hw,skip2-hw,diagonal-hw"]
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_orders_are_made_without_the_host(device, scans, monkeypatch):
    """On the CPU nothing reads a value. On another device, as fake tensors, nothing mixes with CPU tensors."""
    monkeypatch.setattr(routes_module, "_cache", {})
    with FakeTensorMode() if device == "meta" else NoDeviceTransfers():
        for table in orders_inside_operators(device, scans):
            assert table.shape == (len(scans.split(",")), 96)
            assert table.device.type == device
    assert len(routes_module._cache) == (device == "cpu")  # a fake table is not cached


def test_a_pass_reads_no_value():
    config = {**SMALL, "channel_multipliers": (1,), "sampling": (4,), "layers_per_stage": 1}
    with torch.device("meta"):  # a device without values
        model = VMDDPM(ModelConfig(**config))
        step = torch.zeros((), dtype=torch.int64)
        model(torch.zeros(1, 1, 8, 12), torch.zeros(1, dtype=torch.int64), order_key=(7, step)).sum().backward()


def test_a_made_table_is_not_checked_again(monkeypatch):
    cpu = torch.device("cpu")
    table = VisitOrders(ModelConfig(**SMALL), order_key_tensor((0, torch.tensor(1)), cpu), cpu).next(4, 6)
    monkeypatch.setattr(routes_module, "_holds_permutations", None)  # the check that waits for a GPU
    routes_module.check_table_once(table, 24)
    routes_module.check_table_once(routes_module.private_copy(table), 24)
    with pytest.raises(ValueError, match="23 steps"):
        routes_module.check_table_once(table, 23)
    with pytest.raises(TypeError):  # a changed table, or a user's, is read
        routes_module.check_table_once(table.add_(1), 24)
    with pytest.raises(TypeError):
        routes_module.check_table_once(torch.arange(24)[None], 24)


def test_scans_by_name(tables):
    for scans, count in (("omnidirectional", 8), ("hilbert", 4), ("hw", 1)):
        for regeneration in (False, True):
            tables.clear()
            make_model(scans=scans, regeneration=regeneration)(*batch(1), order_key=(0, 0))
            assert all(len(table) == count for table in tables)
            ordered = routes(8, 16, scans=scans)
            assert torch.equal(tables[0], ordered) != regeneration
    words = random_keys(torch.tensor(0), torch.tensor(0), 1, 128)
    assert torch.equal(tables[0][0], words[0].argsort(stable=True).int())


def test_keys_of_any_values_make_a_permutation():
    for keys in (torch.zeros(6), torch.full((6,), float("nan")), torch.tensor([3, 1, 2, 1, 3, 0])):
        order = patch_permutation(2, 3, keys=keys)
        assert sorted(order.tolist()) == list(range(6))
    assert order.tolist() == [5, 1, 3, 2, 0, 4]  # equal keys stay in order
