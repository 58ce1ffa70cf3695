"""Predicts the peak memory of a training run by running one step on fake tensors, which have shapes but no values."""

import math
import os
import resource
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vmddpm.errors import InputError
from vmddpm.model import VMDDPM
from vmddpm.training.config import RunConfig
from vmddpm.training.learner import autocast
from vmddpm.training.networks import build_network

EXTRA_COPIES = 3  # tensors of the size of the weights besides the network: the EMA and Adam's two moments
SCRATCH = 2**27  # libraries and kernel workspaces of the first step; 50 to 140 MB were measured
GB = 1e9


@dataclass(frozen=True)
class Memory:
    """Peak bytes of a training run, in one process."""

    program: int  # Python and its libraries, at present
    weights: int  # network, EMA and optimiser state
    step: int  # activations and gradients of a micro-batch, the batch itself, and scratch

    @property
    def total(self) -> int:
        return self.program + self.weights + self.step

    def __str__(self) -> str:
        return f"about {self.total / GB:.2g} GB" if self.total < 10 * GB else f"about {self.total / GB:.0f} GB"


class _Step(nn.Module):
    """Forward and backward in one module, because activation checkpointing needs the weights in the backward too."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network, self.precision = network, precision

    def forward(self, x: Tensor, t: Tensor, noise: Tensor) -> None:
        with autocast(x.device, self.precision):
            predicted = self.network(x, t, order_key=(0, 0))
        F.mse_loss(predicted.float(), noise).backward()


class _LiveMemory(TorchDispatchMode):
    """Counts the bytes of live tensors, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.bytes += size
        self.most = max(self.most, self.bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def predict(config: RunConfig, device: torch.device, processes: int = 1) -> Memory:
    """The memory of one process in a diffusion training run whose batch is divided among `processes`.

    SCRATCH allows for workspaces inside operators. On a CPU, the measured peaks of five runs were 0.94 to 1.01 times
    the prediction.

    Args:
        config: a run whose system predicts noise.
        device: where it trains.
    """
    options = config.training
    rows = math.ceil(options.batch_size / processes)
    images_at_once = min(rows, options.micro_batch_size or rows)
    with torch.device("meta"):
        network = build_network(config).train()
    network.requires_grad_()
    if isinstance(network, VMDDPM):
        network.recompute = options.activation_checkpointing
    with FakeTensorMode(), _LiveMemory() as living:
        state = {
            name: torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=device, requires_grad=v.requires_grad)
            for name, v in (*network.named_parameters(), *network.named_buffers())
        }
        weights = living.bytes
        x = torch.empty(images_at_once, *config.data.shape, device=device)
        noise, t = torch.empty_like(x), torch.zeros(images_at_once, dtype=torch.int64, device=device)
        weights_of_step = {f"network.{name}": value for name, value in state.items()}
        functional_call(_Step(network, options.precision), weights_of_step, (x, t, noise))
        step = living.most - weights
    # Images and noise of the whole batch, for the current step and the prefetched one.
    inputs = 4 * 4 * rows * math.prod(config.data.shape)
    return Memory(_program(device), weights * (1 + EXTRA_COPIES), step + inputs + SCRATCH)


def check_fits(config: RunConfig, device: torch.device, processes: int = 1, have: int | None = None) -> Memory:
    """The memory that a training run will take.

    Args:
        have: available bytes; by default the device's.

    Raises:
        InputError: if that is not enough; the message names options that make the run fit.
    """
    need = predict(config, device, processes)
    have = available(device) if have is None else have
    if have is None or need.total <= have:
        return need
    raise InputError(
        f"training needs {need}, of which {need.step / GB:.2g} GB for a step, but {have / GB:.2g} GB are available; "
        f"{_advice(config, device, processes, have)}"
    )


def _advice(config: RunConfig, device: torch.device, processes: int, have: int) -> str:
    """The least costly change of options with which the run fits, in words."""
    rows = math.ceil(config.training.batch_size / processes)
    images_at_once = min(rows, config.training.micro_batch_size or rows)
    sizes = [size for size in (images_at_once // 2 ** n for n in range(1, images_at_once.bit_length())) if size]
    changes: list[dict[str, Any]] = [{"micro_batch_size": size} for size in sizes]
    if config.system == "vmddpm" and not config.training.activation_checkpointing:
        changes += [{"activation_checkpointing": True, **({"micro_batch_size": n} if n < images_at_once else {})}
                    for n in (images_at_once, *sizes)]  # fmt: skip
    for change in changes:
        other = predict(replace(config, training=replace(config.training, **change)), device, processes)
        if other.total <= have:
            names = " and ".join(f"training.{name} to {str(value).lower()}" for name, value in change.items())
            return f"set {names}, which needs {other}"
    return "use a smaller data.size, a narrower or coarser model, or a machine with more"


def available(device: torch.device) -> int | None:
    """Bytes that this process holds or can still allocate (on a GPU, the free bytes); None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        free = next(int(line.split()[1]) << 10 for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):  # container limits: cgroup v2, v1
        try:
            free = min(free, int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or no limit ("max")
            continue
    return max(free, 0) + _program(device)


def _program(device: torch.device) -> int:
    """Resident bytes of this process; 0 for a GPU, whose free memory already excludes them."""
    if device.type == "cuda":
        return 0
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
