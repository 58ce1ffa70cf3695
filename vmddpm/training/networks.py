"""Builds the network of a run, and loads it from its folder."""

from contextlib import redirect_stdout
from pathlib import Path

from torch import nn

from vmddpm.baselines.config import GANS
from vmddpm.baselines.networks import Generator
from vmddpm.errors import InputError
from vmddpm.model import VMDDPM
from vmddpm.model.unet import UNet
from vmddpm.training.config import RunConfig


def build_network(config: RunConfig) -> VMDDPM | UNet:
    """A new noise predictor, network(x, t, order_key=...), initialised from torch's global generator."""
    if config.system in GANS:
        raise InputError(f"system is {config.system!r}, which predicts no noise")
    return UNet(config.unet) if config.system == "unet" else VMDDPM(config.model)


def load_network(config: RunConfig, folder: Path) -> nn.Module:
    """Load the network (for a GAN, the generator) that `save_pretrained` wrote to `folder`. The files are safetensors
    and JSON, so loading runs no code."""
    kind = Generator if config.system in GANS else UNet if config.system == "unet" else VMDDPM
    with redirect_stdout(None):  # huggingface_hub prints a line per local file
        return kind.from_pretrained(str(folder))
