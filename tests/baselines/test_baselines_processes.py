"""Batch normalisation and gradients of a GAN on several processes, against one process with the whole batch."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from vmddpm.baselines.layers import BatchNorm
from vmddpm.training.ranks import Ranks

PROCESS = """
import sys, torch, torch.distributed as dist
from vmddpm.baselines.layers import BatchNorm
from vmddpm.training.ranks import Ranks
def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    given = torch.load(f"{folder}/given.pt")
    norm = BatchNorm(5)
    norm.load_state_dict(given["norm"])
    x = given["x"].split([2, 5])[rank].clone().requires_grad_()
    (norm(x) * given["weights"].split([2, 5])[rank]).sum().backward()
    Ranks(rank, 2, torch.device("cpu")).add_gradients(norm)
    torch.save({"x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad, "norm": norm.state_dict()},
               f"{folder}/found-{rank}.pt")
    dist.barrier()  # neither goes while the other still talks to it
    dist.destroy_process_group()
"""


@pytest.fixture
def connected():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_two_processes_normalise_by_the_whole_batch(tmp_path, connected):
    """Unequal parts of 2 and 5 images, far from 0. Gradients and running statistics too, against torch in float64."""
    norm = torch.nn.BatchNorm2d(5)
    torch.nn.init.uniform_(norm.weight)
    torch.nn.init.uniform_(norm.bias)
    x, weights = 30 + 4 * torch.randn(7, 5, 6, 6), torch.randn(7, 5, 6, 6)
    torch.save({"x": x, "weights": weights, "norm": norm.state_dict()}, tmp_path / "given.pt")
    child = subprocess.Popen([sys.executable, "-c", f"{PROCESS}\nwork(1, {str(tmp_path)!r})"])
    namespace = {}
    exec(PROCESS, namespace)
    namespace["work"](0, tmp_path)
    assert child.wait(120) == 0
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2)]

    def whole_batch(dtype):
        module = torch.nn.BatchNorm2d(5).to(dtype)
        module.load_state_dict(torch.load(tmp_path / "given.pt")["norm"])
        inputs = x.to(dtype, copy=True).requires_grad_()
        (module(inputs) * weights.to(dtype)).sum().backward()
        return [inputs.grad, module.weight.grad, module.bias.grad, module.running_mean, module.running_var]

    ours = [torch.cat([f["x"] for f in found]), *(found[0][n] for n in ("weight", "bias")),
            *(found[0]["norm"][n] for n in ("running_mean", "running_var"))]  # fmt: skip
    for mine, torchs, exact in zip(ours, whole_batch(torch.float32), whole_batch(torch.float64)):
        assert (mine - exact).abs().max() <= 2 * (torchs - exact).abs().max()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(found[0]["norm"][name], found[1]["norm"][name])
    assert torch.equal(found[0]["weight"], found[1]["weight"])


def test_in_one_process_it_is_that_of_torch():
    x, ours, torchs = torch.randn(4, 5, 6, 6), BatchNorm(5), torch.nn.BatchNorm2d(5)
    assert torch.equal(ours(x), torchs(x))
    assert Ranks(0, 1, torch.device("cpu")).add_gradients(ours) is None
