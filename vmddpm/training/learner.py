"""The interface between the training loop and a system: its networks, their state, and one training step."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vmddpm.baselines.networks import Generator
from vmddpm.devices import fast_in_bfloat16
from vmddpm.evaluation.images import Images
from vmddpm.model import VMDDPM
from vmddpm.model.unet import UNet
from vmddpm.training.checkpoints import Stateful
from vmddpm.training.config import RunConfig
from vmddpm.training.ranks import Ranks

Network = VMDDPM | UNet | Generator
I = TypeVar("I")


class Step(NamedTuple):
    """The result of a step.

    Attributes:
        finite: whether all losses and gradients were finite, so that the step was taken.
        metrics: of the whole batch, including "loss" and "gradient_norm".
    """

    finite: bool
    metrics: dict[str, float]


class Learner(ABC, Generic[I]):
    """The networks of a system. Weights are initialised from torch's global generator; when a run continues, the loop
    then loads its state.

    Args:
        config: the run.
        ranks: the processes that share each step; all make the same learner and call it in the same order.

    Attributes:
        raw, ema: the network that draws images, and its averaged copy.
        parts: everything a checkpoint saves, by name.
    """

    raw: Network
    ema: Network
    parts: dict[str, Stateful]

    @abstractmethod
    def __init__(self, config: RunConfig, ranks: Ranks) -> None: ...

    @abstractmethod
    def inputs_at(self, dataset: Images, step: int, rows: range) -> I:
        """This process's rows of a step's inputs, on the CPU. A thread calls it one step ahead."""

    @abstractmethod
    def start(self, inputs_at: Callable[[int], I], step: int) -> None:
        """Prepare for the first step; called once after the state is loaded, and not counted as training time."""

    @abstractmethod
    def step(self, inputs: I, step: int, rate: float) -> Step:
        """One step with this process's rows; a loss or gradient that is not finite changes no weight of its network."""

    @abstractmethod
    def draw(self, dataset: Images, count: int) -> Tensor:
        """Sample images 0 to count - 1 with the averaged weights, (count, C, size, size). Noise and conditions are the
        same at every step."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network runs in `TrainingConfig.precision`."""
    if precision == "auto":
        precision = "bf16" if fast_in_bfloat16(device) else "fp32"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """ema <- decay ema + (1 - decay) model, over parameters and buffers; counters are copied."""
    decay = min(decay, (1 + step) / (10 + step))
    pairs = list(zip(ema.state_dict().values(), model.state_dict().values()))
    averages = [pair for pair in pairs if pair[0].is_floating_point()]
    get_ema_multi_avg_fn(decay)(*map(list, zip(*averages)), 0)
    for counter, value in pairs:
        if not counter.is_floating_point():
            counter.copy_(value)
