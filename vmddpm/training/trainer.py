"""Training: one function, read from top to bottom.

Nothing random depends on anything but the seed and the number of the step: not on how often the run was stopped, not
on what else draws random numbers. A run that is continued ends in the weights of one that was never stopped.
"""

import math
import time
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vmddpm.data import random_flip
from vmddpm.diffusion import diffusion_loss, draw_steps_and_noise, sample
from vmddpm.model import VMDDPM
from vmddpm.seeding import mix_seed
from vmddpm.training.config import RunConfig, TrainingConfig
from vmddpm.training.pictures import grid, save_loss_curve, save_png
from vmddpm.training.run_folder import RunFolder

# Streams of random numbers, told apart by their place in the seed.
WEIGHTS, ORDER, FLIPS, NOISE = range(4)
GIVE_UP_AFTER = 50  # steps in a row without a finite gradient


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


def train(config: RunConfig, dataset: Dataset, folder: RunFolder, *, progress: bool = True) -> VMDDPM:
    """Trains a model on `dataset` in `folder`, or continues the run that is there.

    Args:
        config: the run.
        dataset: float32 (C, size, size) images in [-1, 1]; its length and order must not change between runs.
        folder: see `run_folder`.
        progress: show a bar with the loss, images per second and time left.

    Returns:
        The model with its averaged (EMA) weights.

    Raises:
        RunError: if the folder cannot be used, before anything is written to it.
        TrainingError: if the data set is empty or the loss stays infinite.
    """
    options = config.training
    if len(dataset) == 0:
        raise TrainingError("the data set has no image")
    device = choose_device(options.device)
    checkpoint = folder.start(config)

    torch.manual_seed(mix_seed(options.seed, WEIGHTS) & 0xFFFFFFFF)
    model = VMDDPM(config.model).to(device).train()
    ema = VMDDPM(config.model).to(device).eval().requires_grad_(False)
    ema.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    step, seconds, skipped = 0, 0.0, 0  # seconds of training, without samples and checkpoints
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        ema.load_state_dict(checkpoint["ema"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        step, seconds, skipped = checkpoint["step"], checkpoint["seconds"], checkpoint["skipped"]

    def save() -> None:
        state = {"model": model.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
        folder.save_checkpoint({**state, "step": step, "seconds": seconds, "skipped": skipped})
        folder.save_weights("raw", model)
        folder.save_weights("ema", ema)

    board = SummaryWriter(str(folder.path / "tensorboard"), purge_step=step)
    bar = tqdm(total=options.steps, initial=step, unit="step", disable=not progress, dynamic_ncols=True)
    logged_step, logged_seconds, skipped_in_a_row = step, seconds, 0
    try:
        while not finished(options, step, seconds):
            began = time.perf_counter()
            x0, t, noise = (v.to(device) for v in inputs_at(dataset, step, config))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(options, step, seconds)
            with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
                loss = diffusion_loss(model, x0, t, noise, (options.seed, step), config.diffusion)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), options.gradient_clip).item()
            finite = math.isfinite(norm) and math.isfinite(loss.item())
            if finite:
                optimizer.step()
                update_ema(ema, model, options.ema_decay, step)
            skipped += not finite
            skipped_in_a_row = 0 if finite else skipped_in_a_row + 1
            if skipped_in_a_row == GIVE_UP_AFTER:
                raise TrainingError(
                    f"the loss or its gradient was not finite for {GIVE_UP_AFTER} steps up to step {step}; lower "
                    f"training.learning_rate ({options.learning_rate:g}) or set training.precision to fp32"
                )
            step += 1
            seconds += time.perf_counter() - began

            if step % options.log_every == 0:
                speed = (step - logged_step) * options.batch_size / (seconds - logged_seconds)
                logged_step, logged_seconds = step, seconds
                metrics: dict[str, Any] = {"step": step, "loss": loss.item(), "gradient_norm": norm}
                metrics |= {"learning_rate": optimizer.param_groups[0]["lr"], "images_per_second": round(speed, 2)}
                metrics |= {"seconds": round(seconds, 2), "skipped": skipped}
                folder.log(metrics)
                for name in ("loss", "gradient_norm", "images_per_second"):
                    board.add_scalar(name, metrics[name], step)
                if options.minutes and seconds > 0:  # the time will run out first: show the steps there is time for
                    bar.total = min(options.steps, round(step * 60 * options.minutes / seconds))
                bar.set_postfix(loss=f"{loss.item():.4f}", images_per_s=f"{speed:.1f}", refresh=False)
            bar.update()
            if options.sample_every and step % options.sample_every == 0:
                save_samples(ema, config, folder, step)
            if step % options.checkpoint_every == 0:
                save()
    except KeyboardInterrupt:
        save()
        bar.write(f"stopped and saved at step {step}; run the same command again to go on")
        raise
    finally:
        bar.close()
        board.close()
    save()
    save_loss_curve(folder.metrics(), folder.path / "loss.png")
    return ema


def finished(options: TrainingConfig, step: int, seconds: float) -> bool:
    return step >= options.steps or (options.minutes is not None and seconds >= 60 * options.minutes)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of all images in one epoch."""
    return torch.randperm(count, generator=generator_of(seed, ORDER, epoch)).tolist()


def generator_of(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix_seed(*key))


def inputs_at(dataset: Dataset, step: int, config: RunConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, C, size, size), diffusion steps (B,) and noise of one training step, on the CPU."""
    options = config.training
    places = range(step * options.batch_size, (step + 1) * options.batch_size)
    epochs = (divmod(place, len(dataset)) for place in places)
    x0 = torch.stack([dataset[epoch_order(len(dataset), options.seed, epoch)[i]] for epoch, i in epochs])
    if options.flip:
        x0 = random_flip(x0, generator_of(options.seed, FLIPS, step))
    t, noise = draw_steps_and_noise(x0.shape, config.diffusion, generator_of(options.seed, NOISE, step))
    return x0.contiguous(memory_format=torch.channels_last), t, noise


def learning_rate_at(options: TrainingConfig, step: int, seconds: float) -> float:
    """Linear warm-up, constant, and a linear fall to a tenth over the last `cooldown` of the run."""
    done = step / max(options.steps, 1)
    if options.minutes:
        done = max(done, seconds / (60 * options.minutes))
    left = min(1.0, (1 - done) / options.cooldown) if options.cooldown else 1.0
    warm = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    return options.learning_rate * warm * (0.1 + 0.9 * max(left, 0.0))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """ema <- decay ema + (1 - decay) model, over parameters and buffers."""
    decay = min(decay, (1 + step) / (10 + step))
    pairs = zip(ema.state_dict().values(), model.state_dict().values())
    for average, value in pairs:
        average.lerp_(value, 1 - decay)


def save_samples(model: VMDDPM, config: RunConfig, folder: RunFolder, step: int) -> None:
    """The same images at every step of a run, by DDIM."""
    images = sample(
        model, range(config.training.sample_count), (config.model.image_channels, *[config.data.size] * 2),
        config=config.diffusion, sampler="ddim", steps=config.training.sample_steps, seed=config.training.seed,
    )  # fmt: skip
    save_png(grid(images), folder.path / "samples" / f"step-{step:08d}.png")
