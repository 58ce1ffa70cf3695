"""The model's steps as CUDA graphs: Sequence Regeneration draws new orders on the device at each replay."""

import pytest
import torch
from gpu_cases import DEVICE

from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.model import csm as csm_module
from vmddpm.model.regeneration import VisitOrders, order_key_tensor
from vmddpm_kernels import cross_selective_scan

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

CPU = torch.device("cpu")
SIZES = {8 * 16: (8, 16), 4 * 8: (4, 8)}


def make_model(training, **options):
    torch.manual_seed(0)
    small = {"base_channels": 8, "norm_groups": 4, "d_state": 4, "channel_multipliers": (1, 2), "sampling": (4, 2)}
    model = VMDDPM(ModelConfig(**small, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(DEVICE).train(training)


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_replays_have_new_orders(training, patch_size, monkeypatch):
    tables = []

    def spy(x, delta, A, B, C, D, delta_bias, table, **options):
        tables.append(table)
        return cross_selective_scan(x, delta, A, B, C, D, delta_bias, table, **options)

    monkeypatch.setattr(csm_module, "cross_selective_scan", spy)
    model = make_model(training, regeneration_patch_size=patch_size)
    x, t = torch.randn(2, 1, 32, 64, device=DEVICE), torch.tensor([3, 500], device=DEVICE)
    step = torch.zeros((), dtype=torch.int64, device=DEVICE)

    def work(order_key):
        with torch.set_grad_enabled(training):
            y = model(x, t, order_key=order_key)
            results = [y, *(torch.autograd.grad(y.square().mean(), list(model.parameters())) if training else [])]
        return [result.detach() for result in results]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work((5, step))
    torch.cuda.current_stream().wait_stream(side)
    tables.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work((5, step))
        step.add_(1)
    captured_tables = tables[:]
    step.fill_(10)
    for number in (10, 11, 12):
        graph.replay()
        orders = VisitOrders(model.config, order_key_tensor((5, number), CPU), CPU)
        for table in captured_tables:
            assert torch.equal(table.cpu(), orders.next(*SIZES[table.shape[1]]))
        for replayed, eager in zip(captured, work((5, number))):
            torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-5)
    assert step == 13


def test_the_first_pass_of_all_can_be_captured():
    """Ordered scans too: no table is made on the host, and a captured table without values is not cached."""
    model = make_model(False, regeneration=False)
    x, t = torch.randn(1, 1, 40, 24, device=DEVICE), torch.tensor([3], device=DEVICE)  # a size that no other test uses
    torch.backends.cudnn.enabled, before = False, torch.backends.cudnn.enabled  # its first call creates a handle
    try:
        torch.ones(2, 2, device=DEVICE) @ torch.ones(2, 2, device=DEVICE)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            captured = model(x, t)
        with torch.no_grad():
            eager = model(x, t)
        graph.replay()
        torch.testing.assert_close(captured, eager, rtol=1e-4, atol=1e-5)
    finally:
        torch.backends.cudnn.enabled = before
