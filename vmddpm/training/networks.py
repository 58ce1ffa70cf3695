"""Which network a run trains, and how it comes back from its folder."""

from contextlib import redirect_stdout
from pathlib import Path

from torch import nn

from vmddpm.model import VMDDPM
from vmddpm.training.config import RunConfig


def build_network(config: RunConfig) -> nn.Module:
    """A new network, called as network(x, t, order_key=...), its weights from torch's global generator."""
    return VMDDPM(config.model)


def load_network(config: RunConfig, folder: Path) -> nn.Module:
    """The network that `save_pretrained` wrote to `folder`: safetensors and JSON, which run no code."""
    with redirect_stdout(None):  # huggingface_hub announces every local file
        return VMDDPM.from_pretrained(str(folder))
