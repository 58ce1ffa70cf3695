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

LARGEST_BATCH = 2**16  # images drawn together

SAMPLERS = ("ddpm", "ddim", "dpm-solver")


class Scheduler(Protocol):
    """What all schedulers of diffusers have; the options of `step` differ."""

    timesteps: Tensor

    def step(self, *arguments: Any, **options: Any) -> Any: ...


def make_scheduler(config: DiffusionConfig, sampler: str, steps: int) -> Scheduler:
    """The scheduler of diffusers for `steps` steps, with the predicted image clipped to [-1, 1].

    The steps are spaced so that the first is the noisiest one trained on ("trailing"), and the variance of
    DDPM is the posterior's ("fixed_small"). The paper states neither; both follow Ho et al. (2020).

    Raises:
        InputError: on an unknown sampler, or steps that it cannot take.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler  # here, as its import takes seconds
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    from vmddpm.diffusion.clipped_solver import ClippedDPMSolver

    if sampler not in SAMPLERS:
        raise InputError(f'sampler is {sampler!r}; it must be "ddpm", "ddim" or "dpm-solver"')
    total = config.timesteps
    if sampler == "ddim":
        # With other numbers DDIMScheduler lands at noise levels that the next step does not start from.
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
    # The schedulers' own "trailing" adds a step of -1 for some numbers, such as 61, by rounding: these are integers.
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
    """The source of all of image `index`'s noise, on the CPU.

    torch's CPU generator reads the low 32 bits of its seed. A hash of (seed, index) would meet itself
    there: among 50,000 images two would be twins in one run of four. Adding the index keeps all images of a
    seed apart.
    """
    return torch.Generator().manual_seed((mix_seed(seed) + index) & 0xFFFFFFFF)


def check_batch(name: str, size: int) -> None:
    """Raise InputError unless so many images can be drawn together."""
    if not 1 <= size <= LARGEST_BATCH:
        raise InputError(f"{name} is {shown(size)}; it must be from 1 to {LARGEST_BATCH:,}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every submodule's former mode after."""
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
    """Synthetic images by number: image i of a seed is always the same image.

    Images are made in fixed blocks, block b holding the images b * batch_size to (b + 1) * batch_size - 1,
    because the last bits of a network's output depend on the batch it runs in. A block is computed whole
    even if only some of its images are asked for; ask for whole blocks where time matters.

    Args:
        model: the noise predictor, called as model(x, t, order_key=(seed, step number)) with x float32
            (B, *image_shape), t int64 (B,) and the step number an int64 scalar on their device, which compiled models
            and CUDA graphs take for an input. It runs in eval mode and is handed back in the mode it came in.
        indices: numbers of the images, each at least 0, in any order.
        image_shape: (C, H, W), of volumes (C, D, H, W).
        config: the process the model was trained for.
        sampler: "ddpm", ancestral sampling with the posterior variance; "ddim"; or "dpm-solver", of second
            order.
        steps: from 1 to config.timesteps, with ddim a divisor of it; all if None.
        seed: with an index it determines an image.
        eta: DDIM's share of fresh noise, 0 (none) to 1 (as much as DDPM).
        batch_size: images per block.
        device: where to sample; where the model's parameters are if None.
        progress: called as progress(done, total) after each step.
        conditions: what the images are to be, called with the numbers of a block's images; it returns tensors (B, ...)
            by the names of the model's arguments, such as {"labels": ...}. None leaves the model without a condition.
        guidance: how strongly the condition counts, see `guidance.guided`: 0 leaves it out, bit for bit, 1 is the model
            with it, more exaggerates it and takes two passes of the model a step.

    Returns:
        float32 (len(indices), *image_shape) in [-1, 1], on `device`.

    Raises:
        InputError: on an unknown sampler, unusable steps, seed, eta, batch_size, indices or guidance, naming the way
            out.
    """
    steps = config.timesteps if steps is None else steps
    make_scheduler(config, sampler, steps)  # refuses what cannot be done
    if not 0 <= eta <= (1 if sampler == "ddim" else 0):
        raise InputError(f"eta is {eta}; it must be between 0 and 1 with ddim, and 0 with others")
    check_batch("batch_size", batch_size)
    check_seed("seed", seed)
    check_guidance(guidance)
    if any(index < 0 for index in indices):
        raise InputError(f"indices holds {min(indices)}; images are numbered from 0")
    device = torch.device(device or next((p.device for p in model.parameters()), "cpu"))
    # The noise that DDIM steps along is taken from the clipped image, so that the two still add up to x_t.
    options = {"eta": eta, "use_clipped_model_output": True} if sampler == "ddim" else {}
    blocks = sorted({index // batch_size for index in indices})
    total, numbers = len(blocks) * steps, torch.arange(steps, device=device)
    images: dict[int, Tensor] = {}
    with evaluating(model), keeping_freed_memory():
        for block_number, block in enumerate(blocks):
            scheduler = make_scheduler(config, sampler, steps)  # DPM-Solver remembers the steps before
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
