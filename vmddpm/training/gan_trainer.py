"""How a GAN is trained: one function, read from top to bottom, of the same parts as the trainer of diffusion.

The order of images, flips, checkpoints, averaged weights and reports are those of `trainer`; a run that is continued
ends in the weights of one that was never stopped. Differences: two networks and optimisers take turns, and gradients
are not clipped, as in none of the three papers.
"""

import math
import time
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmddpm.baselines.layers import follow_spectral_norms
from vmddpm.baselines.losses import cutmix_loss, cutmix_mask, discriminator_loss, generator_loss
from vmddpm.baselines.networks import Generator, GeneratorConfig, build_discriminator, draw, latent
from vmddpm.data import DataError
from vmddpm.devices import choose_device
from vmddpm.evaluation.images import Images
from vmddpm.seeding import mix_seed
from vmddpm.training.batches import WEIGHTS, ahead, generator_of, images_at, numbers_at
from vmddpm.training.checkpoints import Stateful
from vmddpm.training.config import RunConfig
from vmddpm.training.data_identity import checksums
from vmddpm.training.errors import TrainingError
from vmddpm.training.interrupts import stop_requests
from vmddpm.training.pictures import grid, save_loss_curve, save_png
from vmddpm.training.ranks import rank_and_count
from vmddpm.training.report import Report
from vmddpm.training.run_folder import RunFolder
from vmddpm.training.trainer import AUTOCAST, GIVE_UP_AFTER, finished, learning_rate_at, refuse_other_data, update_ema

LATENTS, BOXES = 16, 17  # streams of random numbers, beside those of `batches`


class Inputs(NamedTuple):
    """What a step is made of, (B, ...) each, on the CPU."""

    real: Tensor
    first: Tensor  # latents for the discriminator's turn
    second: Tensor  # and for the generator's
    mask: Tensor | None  # of CutMix


def train_gan(config: RunConfig, dataset: Images, folder: RunFolder, *, progress: bool = True) -> Generator:
    """Trains the system `config.system` on `dataset` in `folder`, or continues the run that is there.

    Args, Returns and Raises: as `vmddpm.training.train`; what is returned is the averaged generator.
    """
    options = config.training
    _refuse_unusable(config, len(dataset))
    device, data = choose_device(options.device), checksums(dataset)
    with folder.training(config) as (checkpoints, saved), stop_requests() as stop_asked:
        refuse_other_data(dataset, data, saved["data"] if saved else data)
        torch.manual_seed(mix_seed(options.seed, WEIGHTS) & 0xFFFFFFFF)
        networks = generator_config(config)
        generator, ema = (Generator(networks).to(device) for _ in range(2))
        ema.load_state_dict(generator.train().state_dict())
        ema.eval().requires_grad_(False)
        discriminator = build_discriminator(networks).to(device).train()
        betas = config.gan.beta1, config.gan.beta2
        steppers = [torch.optim.Adam(n.parameters(), options.learning_rate, betas) for n in (discriminator, generator)]
        parts: dict[str, Stateful] = {
            "generator": generator, "discriminator": discriminator, "ema": ema,
            "discriminator_optimizer": steppers[0], "generator_optimizer": steppers[1],
        }  # fmt: skip
        step, seconds, skipped = 0, 0.0, 0
        if saved:
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            step, seconds, skipped = saved["step"], saved["seconds"], saved["skipped"]
        folder.begin(config, step)

        def save() -> None:
            state = {name: part.state_dict() for name, part in parts.items()}
            checkpoints.save(step, {**state, "seconds": seconds, "skipped": skipped, "data": data})
            folder.save_weights("raw", generator)
            folder.save_weights("ema", ema)

        skipped_in_a_row, stopped, clock = 0, False, time.perf_counter()
        with (
            closing(ahead(lambda at: inputs_at(dataset, at, config), step)) as batches,
            Report(folder, options, step, seconds, device, progress) as report,
        ):
            while not finished(options, step, seconds) and not stopped:
                try:
                    inputs = next(batches)
                except (DataError, OSError) as error:
                    save()
                    raise DataError(f"{error}; the run is saved at step {step}") from error
                inputs = Inputs._make(None if v is None else v.to(device, non_blocking=True) for v in inputs)
                rate = learning_rate_at(options, step, seconds)
                steppers[0].param_groups[0]["lr"] = rate * discriminator_rate(config)
                steppers[1].param_groups[0]["lr"] = rate
                with torch.autocast(device.type, AUTOCAST[options.precision], enabled=options.precision == "bf16"):
                    d_loss = _discriminator_turn(generator, discriminator, inputs, step, config)
                d_finite, _ = _step(steppers[0], discriminator, d_loss)
                with torch.autocast(device.type, AUTOCAST[options.precision], enabled=options.precision == "bf16"):
                    g_loss = _generator_turn(generator, discriminator, inputs, config)
                g_finite, norm = _step(steppers[1], generator, g_loss)
                if g_finite:
                    update_ema(ema, generator, options.ema_decay, step)
                    follow_spectral_norms(ema)
                skipped += not (d_finite and g_finite)
                skipped_in_a_row = 0 if d_finite and g_finite else skipped_in_a_row + 1
                if skipped_in_a_row == GIVE_UP_AFTER:
                    raise TrainingError(
                        f"a loss or its gradient was not finite for {GIVE_UP_AFTER} steps up to step {step}; lower "
                        f"training.learning_rate ({options.learning_rate:g}) or set training.precision to fp32"
                    )
                step += 1
                took = time.perf_counter() - clock
                clock += took
                seconds += took
                stopped = stop_asked()
                report.step(
                    step, seconds, {"loss": g_loss.item(), "discriminator_loss": d_loss.item(), "gradient_norm": norm,
                                    "learning_rate": rate, "skipped": skipped},
                )  # fmt: skip
                if options.sample_every and step % options.sample_every == 0:
                    images = draw(ema, range(options.sample_count), seed=options.seed)
                    save_png(grid(images), folder.path / "samples" / f"step-{step:08d}.png")
                    clock = time.perf_counter()
                if step % options.checkpoint_every == 0:
                    save()
                    clock = time.perf_counter()
            save()
            if stopped:
                report.say(f"stopped and saved at step {step}; run the same command again to go on")
        if stopped:
            raise KeyboardInterrupt
        save_loss_curve(folder.metrics(), folder.path / "loss.png")
        return ema


def generator_config(config: RunConfig) -> GeneratorConfig:
    return GeneratorConfig(config.system, config.data.channels, config.data.size, config.gan)


def discriminator_rate(config: RunConfig) -> float:
    """The discriminator's learning rate over the generator's."""
    return (config.gan.discriminator_learning_rate or config.training.learning_rate) / config.training.learning_rate


def inputs_at(dataset: Images, step: int, config: RunConfig) -> Inputs:
    """The inputs of a step; every random number belongs to one image of one step."""
    options = config.training
    numbers = numbers_at(step, options, None)
    sources = [generator_of(options.seed, LATENTS, number) for number in numbers]
    first, second = (torch.stack([latent(source, config.gan) for source in sources]) for _ in range(2))
    mask = None
    if config.system == "unetgan" and config.gan.cutmix:
        size = config.data.size
        mask = torch.cat([cutmix_mask(1, size, generator_of(options.seed, BOXES, number)) for number in numbers])
    return Inputs(images_at(dataset, step, options), first, second, mask)


def _discriminator_turn(
    generator: Generator, discriminator: nn.Module, inputs: Inputs, step: int, config: RunConfig
) -> Tensor:
    discriminator.requires_grad_(True)
    with torch.no_grad():
        images = generator(inputs.first)
    real, fake = discriminator(inputs.real), discriminator(images)
    loss = discriminator_loss(real, fake, config.gan)
    if inputs.mask is not None:
        mixed = discriminator(inputs.mask * inputs.real + (1 - inputs.mask) * images)
        weight = config.gan.cutmix * min(1.0, (step + 1) / max(config.gan.cutmix_warmup_steps, 1))
        loss = loss + weight * cutmix_loss(mixed, real, fake, inputs.mask, config.gan)
    return loss


def _generator_turn(generator: Generator, discriminator: nn.Module, inputs: Inputs, config: RunConfig) -> Tensor:
    discriminator.requires_grad_(False)
    return generator_loss(discriminator(generator(inputs.second)), config.gan)


def _step(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> tuple[bool, float]:
    """One step down the gradient, unless something is not finite: (whether it was taken, the gradient's norm)."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), math.inf).item()
    finite = math.isfinite(norm) and math.isfinite(loss.item())
    if finite:
        optimizer.step()
    return finite, norm


def _refuse_unusable(config: RunConfig, images: int) -> None:
    options = config.training
    if images == 0:
        raise TrainingError("the data set has no image")
    if rank_and_count()[1] > 1:
        raise TrainingError(f"{config.system} is trained by one process; start it without torchrun")
    for name, usable in (("micro_batch_size", (None,)), ("compile", ("no",)), ("precision", ("fp32", "bf16"))):
        if getattr(options, name) not in usable:
            raise TrainingError(
                f"training.{name} is {getattr(options, name)!r}; with {config.system} it must be "
                f"{' or '.join(map(repr, usable))}"
            )
