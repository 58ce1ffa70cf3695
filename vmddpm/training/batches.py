"""The inputs of a training step. All random numbers are functions of (seed, number of the image in the run).

Image `row` of step `step` has the number step * batch_size + row. Its index in the data set, its flip, its diffusion
step and its noise depend on (seed, number) alone, so stopping a run, dividing batches among processes and other users
of random numbers change nothing.
"""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from vmddpm.data import random_flip
from vmddpm.diffusion import draw_steps_and_noise
from vmddpm.evaluation.images import Images
from vmddpm.seeding import mix_seed
from vmddpm.training.config import RunConfig, TrainingConfig

# Streams of random numbers.
WEIGHTS, ORDER, FLIPS, NOISE = range(4)
T = TypeVar("T")


def generator_of(seed: int, stream: int, number: int) -> torch.Generator:
    """The CPU generator for `number` of a stream.

    torch's CPU generator uses the low 32 bits of its seed; adding the number makes these distinct within a stream.
    """
    return torch.Generator().manual_seed((mix_seed(seed, stream) + number) & 0xFFFFFFFF)


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of all images for one epoch."""
    return torch.randperm(count, generator=generator_of(seed, ORDER, epoch)).tolist()


def numbers_at(step: int, options: TrainingConfig, rows: range | None) -> range:
    """The numbers of the images in these rows of a batch; all rows if None."""
    rows = range(options.batch_size) if rows is None else rows
    return range(step * options.batch_size + rows.start, step * options.batch_size + rows.stop)


def images_at(dataset: Images, step: int, options: TrainingConfig, rows: range | None = None) -> Tensor:
    """Images (len(rows), C, size, size) of a training step, randomly flipped; the whole batch if `rows` is None."""
    images = []
    for number in numbers_at(step, options, rows):
        epoch, place = divmod(number, len(dataset))
        image = dataset[epoch_order(len(dataset), options.seed, epoch)[place]][None]
        images.append(random_flip(image, generator_of(options.seed, FLIPS, number)) if options.flip else image)
    return torch.cat(images).contiguous(memory_format=torch.channels_last)


def inputs_at(
    dataset: Images, step: int, config: RunConfig, rows: range | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, diffusion steps (len(rows),) and noise of a training step, on the CPU."""
    x0 = images_at(dataset, step, config.training, rows)
    numbers = numbers_at(step, config.training, rows)
    draws = [
        draw_steps_and_noise(x0[:1].shape, config.diffusion, generator_of(config.training.seed, NOISE, number))
        for number in numbers
    ]
    t, noise = (torch.cat(parts) for parts in zip(*draws))
    return x0, t, noise


def prefetch(make: Callable[[int], T], step: int) -> Generator[T, None, None]:
    """Yield make(step), make(step + 1), ...; a thread makes each while the previous one is in use."""
    with ThreadPoolExecutor(1, "batches") as thread:
        coming = thread.submit(make, step)
        while True:
            ready = coming.result()
            step += 1
            coming = thread.submit(make, step)
            yield ready
