"""Images from noise: the reverse process (paper Eq. 2) by ancestral DDPM sampling, by DDIM or by DPM-Solver++."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vmddpm.allocator import keeping_freed_memory
from vmddpm.diffusion.config import DiffusionConfig
from vmddpm.diffusion.guidance import Condition, Conditions, check_guidance, guided
from vmddpm.errors import InputError
from vmddpm.numbers import check_seed, shown
from vmddpm.seeding import mix_seed

MAX_BATCH_SIZE = 2**16  # images drawn together

SAMPLERS = ("ddpm", "ddim", "dpm-solver")


class Scheduler(Protocol):
    """The interface that all schedulers of diffusers share; the options of `step` differ."""

    timesteps: Tensor

    def step(self, *arguments: Any, **options: Any) -> Any: ...


def make_scheduler(config: DiffusionConfig, sampler: str, steps: int) -> Scheduler:
    """The scheduler of diffusers for `steps` steps, with the predicted image clipped to [-1, 1].

    The steps are spaced so that the first is the noisiest one of training ("trailing"), and the variance of DDPM is
    the posterior's ("fixed_small"). The paper states neither; both follow Ho et al. (2020).

    Raises:
        InputError: if the sampler is unknown or does not support this number of steps.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler  # imported late: it takes seconds
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    from vmddpm.diffusion.clipped_solver import ClippedDPMSolver

    if sampler not in SAMPLERS:
        raise InputError(f'sampler is {sampler!r}; it must be "ddpm", "ddim" or "dpm-solver"')
    total = config.timesteps
    if sampler == "ddim":
        # With other numbers, the steps of DDIMScheduler end at other noise levels than their successors start at.
        if steps < 1 or total % steps:
            divisors = [n for n in range(1, total + 1) if total % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - steps))
            raise InputError(
                f"steps is {steps}; with ddim it must be a divisor of the {total} steps of training, "
                f"the nearest is {nearest}"
            )
        ddim: DDIMScheduler = DDIMScheduler(**config.scheduler_options, timestep_spacing="trailing", clip_sample=True)
        ddim.set_timesteps(steps)
        return ddim
    if not 1 <= steps <= total:
        raise InputError(f"steps is {steps}; it must be from 1 to the {total} steps of training")
    # The schedulers' own "trailing" rounds, and adds a step of -1 for some numbers, such as 61. These are integers.
    trailing = [(total * (steps - i) + steps // 2) // steps - 1 for i in range(steps)]
    if sampler == "ddpm":
        ddpm: DDPMScheduler = DDPMScheduler(**config.scheduler_options, clip_sample=True, variance_type="fixed_small")
        ddpm.set_timesteps(timesteps=trailing)
        return ddpm
    solver: ClippedDPMSolver = ClippedDPMSolver(
        **config.scheduler_options, algorithm_type="dpmsolver++", solver_order=2
    )
    solver.set_timesteps(timesteps=trailing)
    return solver


def image_generator(seed: int, index: int) -> torch.Generator:
    """The CPU generator of all noise of image `index`.

    torch's CPU generator uses only the low 32 bits of its seed. Hashes of (seed, index) would collide there: one in
    four runs of 50,000 images would contain two equal images. Adding the index gives each image of a seed its own.
    """
    return torch.Generator().manual_seed((mix_seed(seed) + index) & 0xFFFFFFFF)


def check_batch(name: str, size: int) -> None:
    """Raise InputError unless `size` is a possible batch size."""
    if not 1 <= size <= MAX_BATCH_SIZE:
        raise InputError(f"{name} is {shown(size)}; it must be from 1 to {MAX_BATCH_SIZE:,}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in eval mode; the modes of all submodules are restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def conditions_on(conditions: Conditions | None, members: Sequence[int], device: torch.device) -> Condition | None:
    """The condition of a block's images on the device. Raises InputError unless it has a row for each."""
    if conditions is None:
        return None
    found = {name: values.to(device) for name, values in conditions(members).items()}
    for name, values in found.items():
        if len(values) != len(members):
            raise InputError(f"conditions has {len(values)} rows of {name} for {len(members)} images; give one each")
    return found


@torch.no_grad()
def sample(
    model: nn.Module,
    indices: Sequence[int],
    image_shape: tuple[int, ...],
    *,
    config: DiffusionConfig,
    sampler: str = "ddpm",
    steps: int | None = None,
    seed: int = 0,
    eta: float = 0.0,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], object] | None = None,
    conditions: Conditions | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Draw synthetic images by number: image i of a seed is always the same image.

    Images are made in fixed blocks, block b holding the images b * batch_size to (b + 1) * batch_size - 1, because the
    last bits of a network's output depend on its batch. A block is computed as a whole even if only some of its images
    are requested; requesting whole blocks saves time.

    Args:
        model: the noise predictor, called as model(x, t, order_key=(seed, step number)) with x float32
            (B, *image_shape), t int64 (B,) and the step number an int64 scalar on their device, which is an input for
            compiled models and CUDA graphs. The model runs in eval mode; its mode is restored afterwards.
        indices: numbers of the images, each at least 0, in any order.
        image_shape: (C, H, W), for volumes (C, D, H, W).
        config: the process the model was trained for.
        sampler: "ddpm", ancestral sampling with the posterior variance; "ddim"; or "dpm-solver", of second
            order.
        steps: from 1 to config.timesteps, with ddim a divisor of it; all if None.
        seed: determines, with the index, an image.
        eta: DDIM's share of fresh noise, 0 (none) to 1 (as much as DDPM).
        batch_size: images per block.
        device: where to sample; by default the device of the model's parameters.
        progress: called as progress(done, total) after each step.
        conditions: called with the numbers of a block's images, returns their condition as tensors (B, ...) by the
            names of the model's arguments, such as {"labels": ...}. None samples without a condition.
        guidance: strength of the condition, see `guidance.guided`: 0 ignores it, bit for bit, 1 is the model with it,
            and more exaggerates it, with two passes of the model per step.

    Returns:
        float32 (len(indices), *image_shape) in [-1, 1], on `device`.

    Raises:
        InputError: if the sampler, steps, seed, eta, batch_size, indices or guidance are invalid; the message says how
            to fix it.
    """
    steps = config.timesteps if steps is None else steps
    make_scheduler(config, sampler, steps)  # raises InputError for bad steps
    if not 0 <= eta <= (1 if sampler == "ddim" else 0):
        raise InputError(f"eta is {eta}; it must be between 0 and 1 with ddim, and 0 with other samplers")
    check_batch("batch_size", batch_size)
    check_seed("seed", seed)
    check_guidance(guidance)
    if any(index < 0 for index in indices):
        raise InputError(f"indices holds {min(indices)}; images are numbered from 0")
    device = torch.device(device or next((p.device for p in model.parameters()), "cpu"))
    # DDIM recomputes the noise from the clipped image, so that the two still add up to x_t.
    options = {"eta": eta, "use_clipped_model_output": True} if sampler == "ddim" else {}
    blocks = sorted({index // batch_size for index in indices})
    total, numbers = len(blocks) * steps, torch.arange(steps, device=device)
    images: dict[int, Tensor] = {}
    with evaluating(model), keeping_freed_memory():
        for block_number, block in enumerate(blocks):
            scheduler = make_scheduler(config, sampler, steps)  # DPM-Solver remembers earlier steps
            members = range(block * batch_size, (block + 1) * batch_size)
            generators = [image_generator(seed, index) for index in members]
            x = torch.stack([torch.randn(image_shape, generator=g) for g in generators]).to(device)
            predict = guided(model, conditions_on(conditions, members, device), guidance)
            for number, t in enumerate(scheduler.timesteps.tolist()):
                batch_t = torch.full((batch_size,), t, device=device)
                predicted = predict(x, batch_t, order_key=(seed, numbers[number])).float()
                x = scheduler.step(predicted, t, x, generator=generators, **options).prev_sample
                if progress is not None:
                    progress(block_number * steps + number + 1, total)
            images.update(zip(members, x.clamp(-1, 1)))
    if not images:
        return torch.empty(0, *image_shape, device=device)
    return torch.stack([images[index] for index in indices])
