"""Optimisers: Adam, or Muon for the matrices between features and Adam for the rest."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from vmddpm.model import VMDDPM
from vmddpm.model.csm import CSM
from vmddpm.model.unet import UNet
from vmddpm.training.config import TrainingConfig
from vmddpm.training.muon import Muon


def make_optimizers(
    network: VMDDPM | UNet, options: TrainingConfig, bfloat16: bool
) -> dict[str, torch.optim.Optimizer]:
    """The optimisers of `options.optimizer`, by their names in a checkpoint; each weight belongs to one of them.

    Args:
        bfloat16: whether Muon multiplies in bfloat16. It must be the same in all processes of a run, or their weights
            would drift apart.
    """
    if options.optimizer == "adam":
        return {"optimizer": adam(network.parameters(), options.learning_rate)}
    matrices = list(hidden_matrices(network))
    muon_weights = {id(weight) for weight in matrices}
    rest = [weight for weight in network.parameters() if id(weight) not in muon_weights]
    return {
        "optimizer": adam(rest, options.learning_rate),
        "muon": Muon(matrices, options.learning_rate, dtype=torch.bfloat16 if bfloat16 else torch.float32),
    }


def adam(weights: Iterable[nn.Parameter], rate: float, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.Adam:
    """Adam, fused on a CPU or a CUDA device: it reads each weight and its moments from memory once."""
    weights = list(weights)
    fused = weights[0].device.type in ("cpu", "cuda")
    return torch.optim.Adam(weights, rate, betas, fused=fused or None)


def hidden_matrices(network: VMDDPM | UNet) -> Iterator[nn.Parameter]:
    """Weights that map features to features: linear layers, convolutions that mix channels, and the projections of each
    route. The first and the last layer and the class embedding are excluded."""
    ends: list[object]
    if isinstance(network, VMDDPM):
        ends = [network.encoder[0].down, network.projection[-1], network.class_embedding]
    else:
        ends = [network.network.conv_in, network.network.conv_out]
    for module in network.modules():
        if isinstance(module, CSM):
            yield from (module.x_proj, module.dt_proj)
        if module in ends:
            continue
        if isinstance(module, nn.Linear) or (isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.groups == 1):
            assert isinstance(module.weight, nn.Parameter)
            yield module.weight
