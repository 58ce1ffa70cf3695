"""The processes that train one network together: one, or as many as `torchrun` starts."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vmddpm.devices import choose_device
from vmddpm.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among those that train together. All must call the same methods in the same order.

    Attributes:
        rank: 0 to world_size - 1.
        world_size: number of processes.
        device: device of this process.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, the only one that uses the run folder."""
        return self.rank == 0

    def rows(self, batch_size: int) -> range:
        """This process's rows of a batch: contiguous, and about as many as in every other process."""
        return range(self.rank * batch_size // self.world_size, (self.rank + 1) * batch_size // self.world_size)

    def data_parallel(self, network: nn.Module) -> nn.Module:
        """Wrap the network so that each backward averages gradients over all processes."""
        if self.world_size == 1:
            return network
        return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)

    def add_gradients(self, network: nn.Module) -> None:
        """Replace each gradient of the network by its sum over all processes."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        total = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(total)
        for gradient, part in zip(gradients, total.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view(gradient.shape))

    def sum(self, *values: float) -> list[float]:
        """The sums of the values over all processes, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def broadcast(self, value: T) -> T:
        """The value of the main process, on the CPU, in all processes."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def main_process_first(self, work: Callable[[], T]) -> T:
        """Run work() in each process; the others start when the main process is done, for example to use its files."""
        if self.is_main:
            result = work()
        if self.world_size > 1:
            dist.barrier()
        return result if self.is_main else work()


@contextmanager
def process_group(device: str, scans: bool = False) -> Iterator[Ranks]:
    """Connect the processes that `torchrun` started (nccl for GPUs, gloo for CPUs).

    Args and Raises are those of `choose_device`; also raises InputError if the processes cannot be connected.
    """
    rank, count = rank_and_count()
    chosen = choose_device(device, scans)
    connect = count > 1 and not dist.is_initialized()
    if connect:
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        try:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(hours=1))
        except (ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{count} processes cannot be connected ({reason}); start them with torchrun") from error
    try:
        yield Ranks(rank, count, chosen)
    finally:
        if connect:
            dist.destroy_process_group()


def rank_and_count() -> tuple[int, int]:
    """The rank of this process and the number of processes, from torchrun's variables. Raises InputError."""
    rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise InputError(f"RANK is {rank!r} and WORLD_SIZE {count!r} in the environment; start processes with torchrun")
    return int(rank), int(count)
