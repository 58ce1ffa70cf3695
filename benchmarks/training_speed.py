"""Time of a training step of VM-DDPM, of the same model with the scan in plain PyTorch, and of diffusers' UNet2DModel
with as many parameters, measured in turn. A step is forward, backward, clipping, Adam and averaging of the weights.

    python benchmarks/training_speed.py --model demo --batch-size 16 --rounds 20
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from vmddpm.demo import demo_config
from vmddpm.diffusion import DiffusionConfig, diffusion_loss
from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.training.learner import update_ema

MODELS = {"demo": (64, demo_config(1).model), "paper": (128, ModelConfig())}


class UNet(nn.Module):
    """UNet2DModel with four levels and attention at the last two, called like VMDDPM."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        down, up = ("DownBlock2D",) * 2 + ("AttnDownBlock2D",) * 2, ("AttnUpBlock2D",) * 2 + ("UpBlock2D",) * 2
        self.unet = UNet2DModel(
            sample_size=size, in_channels=1, out_channels=1, layers_per_block=2, norm_num_groups=4,
            block_out_channels=(width, 2 * width, 2 * width, 4 * width), down_block_types=down, up_block_types=up,
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, order_key: tuple[int, int] | None = None) -> Tensor:
        return self.unet(x, t).sample


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def unet_of(size: int, wanted: int) -> UNet:
    """The UNet whose number of parameters is closest to `wanted`."""
    width = min(range(8, 161, 4), key=lambda w: abs(parameters(UNet(size, w).to("meta")) - wanted))
    return UNet(size, width)


def stepper(network: nn.Module, images: Tensor, backend: str | None) -> Callable[[int], float]:
    ema = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    chosen = {"VMDDPM_BACKEND": backend} if backend else {}

    def step(number: int) -> float:
        t = torch.full(images.shape[:1], 500)
        began = time.perf_counter()
        with mock.patch.dict(os.environ, chosen):
            loss = diffusion_loss(network, images, t, images.flip(0, 2), (0, number), DiffusionConfig())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        update_ema(ema, network, 0.9999, number)
        loss.item()
        return time.perf_counter() - began

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="demo")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    size, config = MODELS[options.model]
    images = torch.randn(options.batch_size, 1, size, size).contiguous(memory_format=torch.channels_last)
    ours = VMDDPM(config)
    networks = {"VM-DDPM": (ours, None), "VM-DDPM, scan in PyTorch": (copy.deepcopy(ours), "reference"),
                "UNet2DModel": (unet_of(size, parameters(ours)), None)}  # fmt: skip
    steppers = {name: stepper(network, images, backend) for name, (network, backend) in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for number in range(options.rounds + 2):
        for name, step in steppers.items():
            seconds = step(number)
            if number >= 2:
                times[name].append(seconds)
    print(f"{options.model}, {size} x {size}, batch {options.batch_size}, {torch.get_num_threads()} threads, "
          f"median of {options.rounds} (quartiles)")  # fmt: skip
    for name, (network, _) in networks.items():
        low, middle, high = statistics.quantiles(times[name], n=4)
        print(f"{name:<26} {parameters(network) / 1e6:6.2f} M parameters  {1e3 * middle:8.1f} ms "
              f"({1e3 * low:.1f}-{1e3 * high:.1f})  {options.batch_size / middle:7.2f} images/s")  # fmt: skip


if __name__ == "__main__":
    main()
