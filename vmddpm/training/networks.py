"""Which network a run trains, and how it comes back from its folder."""

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
    """A new noise predictor, called as network(x, t, order_key=...), its weights from torch's global generator."""
    if config.system in GANS:
        raise InputError(f"system is {config.system!r}, which predicts no noise")
    return UNet(config.unet) if config.system == "unet" else VMDDPM(config.model)


def load_network(config: RunConfig, folder: Path) -> nn.Module:
    """The network, of a GAN the generator, that `save_pretrained` wrote to `folder`: safetensors and JSON, which run
    no code."""
    kind = Generator if config.system in GANS else UNet if config.system == "unet" else VMDDPM
    with redirect_stdout(None):  # huggingface_hub announces every local file
        return kind.from_pretrained(str(folder))
