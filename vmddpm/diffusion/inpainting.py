"""Inpainting with a model that was not trained for it: RePaint (Lugmayr et al., 2022).

At every noise level, the region comes from the model and all other pixels from the image, noised to that level
(Algorithm 1, lines 4 to 8; its Eq. 8 noises with the standard deviation, but line 5 prints the variance). This alone is
the replacement method of Song et al. (2021), and its regions often do not fit their surroundings. Adding the noise of
`jump` steps and denoising again, `resamplings` times, harmonises the two (section 4.2).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from vmddpm.diffusion.config import DiffusionConfig, alphas_cumprod
from vmddpm.diffusion.guidance import Conditions, check_guidance, guided
from vmddpm.diffusion.sampling import (
    check_batch,
    conditions_on,
    evaluating,
    image_generator,
    make_scheduler,
)
from vmddpm.errors import InputError
from vmddpm.numbers import check_seed

MAX_RESAMPLINGS = 1000


def walk(steps: int, jump: int, resamplings: int) -> Iterator[tuple[int, int]]:
    """The path of an image through the noise levels, as pairs (from, to); level `steps` is pure noise, 0 the image. The
    path goes down one level at a time, and from each multiple of `jump` back up by `jump`, `resamplings` - 1 times
    (Fig. 9)."""
    left = dict.fromkeys(range(0, steps - jump, jump), resamplings - 1)
    level = steps
    while level > 0:
        yield level, level - 1
        level -= 1
        if left.get(level, 0) > 0:
            left[level] -= 1
            yield level, level + jump
            level += jump


@torch.no_grad()
def inpaint(
    model: nn.Module,
    images: Callable[[int], Tensor],
    regions: Callable[[int], Tensor],
    indices: Sequence[int],
    *,
    config: DiffusionConfig,
    sampler: str = "ddpm",
    steps: int | None = None,
    jump: int = 10,
    resamplings: int = 10,
    seed: int = 0,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], object] | None = None,
    conditions: Conditions | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Redraw a region of each image of a batch; all other pixels stay as they are.

    Args:
        model: as for `sampling.sample`.
        images: image i, float32 (C, H, W) in [-1, 1].
        regions: the region of image i that is drawn, bool (1, H, W).
        indices: numbers of the images, at most `batch_size` of them, each at least 0.
        config: the process the model was trained for.
        sampler: "ddpm", as in RePaint, or "ddim".
        steps: from 1 to config.timesteps, with ddim a divisor of it; by default 250, as in RePaint, or all if fewer.
        jump: steps that a resampling goes back; 10 in RePaint.
        resamplings: how often each stretch of `jump` steps is denoised; 10 in RePaint, 1 is the replacement method. The
            time grows with it.
        seed: determines, with the index, what is drawn.
        batch_size: size of the model's batch; fewer images are padded to it.
        device, progress, conditions, guidance: as for `sampling.sample`.

    Returns:
        float32 (len(indices), C, H, W) in [-1, 1], on `device`.

    Raises:
        InputError: if an option is invalid; the message says how to fix it.

    Example:
        >>> mask = torch.zeros(1, 64, 64, dtype=torch.bool)
        >>> mask[:, 20:40, 20:40] = True
        >>> filled = inpaint(model, lambda i: scans[i], lambda i: mask, range(4), config=process)  # doctest: +SKIP
    """
    steps = min(250, config.timesteps) if steps is None else steps
    check_inpainting(config, sampler, steps, jump, resamplings)
    check_batch("batch_size", batch_size)
    check_seed("seed", seed)
    check_guidance(guidance)
    if not 0 < len(indices) <= batch_size or min(indices) < 0:
        raise InputError(f"indices are {list(indices)!r:.80}; they must be 1 to {batch_size} numbers of at least 0")
    device = torch.device(device or next((p.device for p in model.parameters()), "cpu"))
    members = [*indices, *[indices[-1]] * (batch_size - len(indices))]
    originals = torch.stack([images(i) for i in members]).to(device)
    region = torch.stack([regions(i) for i in members]).to(device)
    generators = [image_generator(seed, i) for i in members]

    def noise() -> Tensor:
        return torch.stack([torch.randn(originals.shape[1:], generator=g) for g in generators]).to(device)

    scheduler = make_scheduler(config, sampler, steps)
    timesteps = scheduler.timesteps.tolist()
    # The share of the signal's variance at each level, from 0 (no noise) to `steps`.
    signal = torch.cat([torch.ones(1), alphas_cumprod(config, torch.device("cpu"))[timesteps].flip(0)]).to(device)
    options = {"use_clipped_model_output": True} if sampler == "ddim" else {}
    predict = guided(model, conditions_on(conditions, members, device), guidance)
    path = list(walk(steps, jump, resamplings))
    passes, done, x = sum(to < level for level, to in path), 0, noise()
    with evaluating(model):
        for level, to in path:
            if to > level:
                kept = signal[to] / signal[level]
                x = kept.sqrt() * x + (1 - kept).sqrt() * noise()
                continue
            t = timesteps[steps - level]
            order_key = seed, torch.full((), done, device=device)
            predicted = predict(x, torch.full((batch_size,), t, device=device), order_key=order_key).float()
            drawn = scheduler.step(predicted, t, x, generator=generators, **options).prev_sample
            x = torch.where(region, drawn, signal[to].sqrt() * originals + (1 - signal[to]).sqrt() * noise())
            done += 1
            if progress is not None:
                progress(done, passes)
    return x[: len(indices)].clamp(-1, 1)


def check_inpainting(config: DiffusionConfig, sampler: str, steps: int, jump: int, resamplings: int) -> None:
    """Raise InputError unless inpainting is possible with these options."""
    if sampler == "dpm-solver":
        raise InputError('sampler is "dpm-solver", a multistep solver that cannot go back; use ddpm or ddim')
    make_scheduler(config, sampler, steps)  # raises InputError for bad steps
    if not 1 <= resamplings <= MAX_RESAMPLINGS:
        raise InputError(f"resamplings is {resamplings}; it must be from 1 to {MAX_RESAMPLINGS}")
    if not 1 <= jump < max(steps, 2):
        raise InputError(f"jump is {jump}; it must be from 1 to below steps, {steps}")
