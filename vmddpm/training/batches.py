"""The inputs of a training step. All random numbers are functions of (seed, number of the image in the run).

Image `row` of step `step` has the number step * batch_size + row. Its index in the data set, its flip, its diffusion
step and its noise depend on (seed, number) alone. They stay the same when a run is stopped and resumed, when a batch is
divided among processes, and when other code draws random numbers.
"""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from vmddpm.data import random_flip
from vmddpm.data.conditioned import condition_of
from vmddpm.diffusion import draw_steps_and_noise
from vmddpm.evaluation.images import Images
from vmddpm.model.dimensions import channels_last
from vmddpm.seeding import mix_seed
from vmddpm.training.conditions import condition_names
from vmddpm.training.config import RunConfig, TrainingConfig

# Streams of random numbers.
WEIGHTS, ORDER, FLIPS, NOISE, DROPOUT = range(5)
T = TypeVar("T")


def generator_of(seed: int, stream: int, number: int) -> torch.Generator:
    """The CPU generator for one number of a stream.

    torch's CPU generator uses the low 32 bits of its seed; adding the number makes them distinct within a stream.
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
    """Images (len(rows), C, H, W), or volumes (len(rows), C, D, H, W), of a training step, randomly flipped; the whole
    batch if `rows` is None."""
    images = [
        flipped(dataset[index_of(number, dataset, options)][None], number, options)
        for number in numbers_at(step, options, rows)
    ]
    batch = torch.cat(images)
    return batch.contiguous(memory_format=channels_last(batch.dim() - 2))


def index_of(number: int, dataset: Images, options: TrainingConfig) -> int:
    """The data set index of the image with this number in the run."""
    epoch, position = divmod(number, len(dataset))
    return epoch_order(len(dataset), options.seed, epoch)[position]


def flipped(image: Tensor, number: int, options: TrainingConfig) -> Tensor:
    """Flip an image (1, C, H, W) at random by its number in the run; its condition image is flipped with it."""
    return random_flip(image, generator_of(options.seed, FLIPS, number)) if options.flip else image


def conditions_at(dataset: Images, step: int, config: RunConfig, rows: range | None = None) -> tuple[Tensor, ...]:
    """Conditions of the images of a training step, on the CPU, in the order of `condition_names`; zeros for images that
    are trained without a condition."""
    names, options, found = condition_names(config.model), config.training, []
    if not names:
        return ()
    for number in numbers_at(step, options, rows):
        condition = condition_of(dataset, index_of(number, dataset, options))
        kept = torch.rand((), generator=generator_of(options.seed, DROPOUT, number)) >= config.condition.dropout
        parts = (condition[name][None] * kept for name in names)
        found.append([flipped(part, number, options) if part.dim() >= 4 else part for part in parts])
    return tuple(torch.cat(parts) for parts in zip(*found))


def inputs_at(dataset: Images, step: int, config: RunConfig, rows: range | None = None) -> tuple[Tensor, ...]:
    """Images, diffusion steps (len(rows),), noise and `conditions_at` of a training step, on the CPU."""
    x0 = images_at(dataset, step, config.training, rows)
    numbers = numbers_at(step, config.training, rows)
    draws = [
        draw_steps_and_noise(x0[:1].shape, config.diffusion, generator_of(config.training.seed, NOISE, number))
        for number in numbers
    ]
    t, noise = (torch.cat(parts) for parts in zip(*draws))
    return x0, t, noise, *conditions_at(dataset, step, config, rows)


def prefetch(make: Callable[[int], T], step: int) -> Generator[T, None, None]:
    """Yield make(step), make(step + 1), ...; a thread computes the next one while the caller uses the current one."""
    with ThreadPoolExecutor(1, "batches") as thread:
        future = thread.submit(make, step)
        while True:
            result = future.result()
            step += 1
            future = thread.submit(make, step)
            yield result
