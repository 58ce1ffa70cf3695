"""Parameters, FLOPs and training time of the systems in the paper's tables."""

import os
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import vmddpm_kernels.flops  # noqa: F401  registers the scan's FLOP formula
from vmddpm.baselines.config import GANS
from vmddpm.baselines.networks import Generator, build_discriminator
from vmddpm.devices import choose_device
from vmddpm.errors import InputError
from vmddpm.training import RunConfig
from vmddpm.training.gan_learner import generator_config
from vmddpm.training.networks import build_network


@dataclass(frozen=True)
class Cost:
    """The size and cost of a system; torch counts the FLOPs, two for each multiply-add."""

    parameters: int  # in the network that draws images
    discriminator_parameters: int  # 0 without a discriminator
    flops: int  # in one pass of the drawing network, for one image; diffusion models take one pass per step

    def __str__(self) -> str:
        discriminator = f" and {self.discriminator_parameters / 1e6:.2f} M" if self.discriminator_parameters else ""
        return f"{self.parameters / 1e6:.2f} M{discriminator} parameters, {self.flops / 1e9:.3g} GFLOPs a pass"


def cost(config: RunConfig) -> Cost:
    """The cost of a run's system. Raises InputError if the network, or a pass of one image, does not fit into memory.
    """
    try:
        return _count_cost(config)
    except (RuntimeError, MemoryError) as error:  # on CPUs, torch raises RuntimeError when memory runs out
        if isinstance(error, RuntimeError) and not re.search("allocate|out of memory|overflow", str(error)):
            raise
        sides = " x ".join(map(str, config.data.shape[1:]))
        raise InputError(
            f"{config.system} for images of {sides} pixels does not fit in memory; use a smaller "
            "data.size or a narrower network"
        ) from error


def _count_cost(config: RunConfig) -> Cost:
    """Count parameters, and FLOPs of a forward pass. Baselines run on the meta device, which takes no memory and no
    computation. VM-DDPM must run on a real device to count its scans: the CPU, or the run's device if VMDDPM_BACKEND
    selects kernels, which may not run on a CPU."""
    scans = config.system == "vmddpm"
    own = config.training.device if os.environ.get("VMDDPM_BACKEND") else "cpu"
    device = choose_device(own, scans=True) if scans else torch.device("meta")
    network: nn.Module
    inputs: tuple[Tensor, ...]
    with nullcontext() if scans else device, torch.no_grad(), FlopCounterMode(display=False) as counter:
        if config.system in GANS:
            networks = generator_config(config)
            network, discriminator = Generator(networks), build_discriminator(networks)
            inputs, judged = (torch.zeros(1, config.gan.latent_dim),), _parameters(discriminator)
        else:
            network, judged = build_network(config).to(device), 0
            inputs = torch.zeros(1, *config.data.shape).to(device), torch.zeros(1, dtype=torch.int64).to(device)
        before = counter.get_total_flops()  # orthogonal initialisation also counts FLOPs
        network.eval()(*inputs)
    return Cost(_parameters(network), judged, counter.get_total_flops() - before)


def seconds_on_cpu(config: RunConfig, flops: int, processes: int = 1) -> float:
    """Estimated training time on this CPU, from the FLOPs of a pass of one image and the present speed of a matrix
    product. A step costs three passes of each image: the forward pass, and a backward pass of twice its cost.
    `processes` share a batch."""
    a = torch.rand(1024, 1024)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begun)
    options = config.training
    total = options.steps * options.batch_size / processes * 3 * flops * min(times) / (2 * 1024**3)
    return min(total, 60 * options.minutes) if options.minutes else total


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
