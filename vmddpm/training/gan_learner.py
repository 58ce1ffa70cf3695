"""A training step of a GAN: one step of the discriminator, then one of the generator.

Gradients are not clipped, as in the three papers. Processes share each batch, including the statistics of batch
normalisation; micro-batches (`micro_batch_size`) have separate statistics.
"""

import math
from collections.abc import Callable
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmddpm.baselines.layers import follow_spectral_norms
from vmddpm.baselines.losses import cutmix_loss, cutmix_mask, discriminator_loss, generator_loss
from vmddpm.baselines.networks import Generator, GeneratorConfig, build_discriminator, draw, latent
from vmddpm.evaluation.images import Images
from vmddpm.training.batches import generator_of, images_at, numbers_at
from vmddpm.training.config import RunConfig
from vmddpm.training.errors import TrainingError
from vmddpm.training.learner import Learner, Step, autocast, update_ema
from vmddpm.training.optimizers import adam
from vmddpm.training.ranks import Ranks

LATENTS, BOXES = 16, 17  # streams of random numbers, in addition to those of `batches`


class Inputs(NamedTuple):
    """The inputs of a step, (B, ...) each."""

    real: Tensor
    first: Tensor  # latents for the discriminator's step
    second: Tensor  # latents for the generator's step
    mask: Tensor | None  # CutMix mask

    def parts(self, size: int | None, device: torch.device) -> list["Inputs"]:
        """Split into micro-batches of `size` images, on the device; one micro-batch if `size` is None."""
        moved = [None if v is None else v.to(device, non_blocking=True) for v in self]
        pieces = [repeat(None) if v is None else v.split(size or len(self.real)) for v in moved]
        return [Inputs(*piece) for piece in zip(*pieces)]


class GANLearner(Learner[Inputs]):
    """The generator and the discriminator of `config.system`, and the averaged generator."""

    raw: Generator
    ema: Generator

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        networks, options = generator_config(config), config.training
        self.raw, self.ema = (Generator(networks).to(ranks.device) for _ in range(2))
        self.ema.load_state_dict(self.raw.train().state_dict())
        self.ema.eval().requires_grad_(False)
        self.discriminator = build_discriminator(networks).to(ranks.device).train()
        betas = config.gan.beta1, config.gan.beta2
        self.discriminator_optimizer, self.generator_optimizer = (
            adam(n.parameters(), options.learning_rate, betas) for n in (self.discriminator, self.raw)
        )
        self.parts = {
            "generator": self.raw, "discriminator": self.discriminator, "ema": self.ema,
            "discriminator_optimizer": self.discriminator_optimizer, "generator_optimizer": self.generator_optimizer,
        }  # fmt: skip

    def inputs_at(self, dataset: Images, step: int, rows: range) -> Inputs:
        return inputs_at(dataset, step, self.config, rows)

    def start(self, inputs_at: Callable[[int], Inputs], step: int) -> None:
        pass

    def step(self, inputs: Inputs, step: int, rate: float) -> Step:
        self.discriminator_optimizer.param_groups[0]["lr"] = rate * discriminator_rate(self.config)
        self.generator_optimizer.param_groups[0]["lr"] = rate
        parts = inputs.parts(self.config.training.micro_batch_size, self.ranks.device)
        judged, d_loss, _ = self._step_network(
            self.discriminator, self.discriminator_optimizer, lambda part: self._discriminator_loss(part, step), parts
        )
        drawn, g_loss, norm = self._step_network(self.raw, self.generator_optimizer, self._generator_loss, parts)
        if drawn:
            update_ema(self.ema, self.raw, self.config.training.ema_decay, step)
            follow_spectral_norms(self.ema)
        return Step(judged and drawn, {"loss": g_loss, "discriminator_loss": d_loss, "gradient_norm": norm})

    def draw(self, dataset: Images, count: int) -> Tensor:
        return draw(self.ema, range(count), seed=self.config.training.seed)

    def _step_network(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[Inputs], Tensor],
        parts: list[Inputs],
    ) -> tuple[bool, float, float]:  # fmt: skip
        """One optimiser step of `network` on the mean loss of the batch, skipped if the loss or the gradient is not
        finite.

        Returns:
            (whether the step was taken, the loss, the norm of the gradient), the same in all processes.
        """
        options, device = self.config.training, self.ranks.device
        self.discriminator.requires_grad_(network is self.discriminator)
        optimizer.zero_grad(set_to_none=True)
        loss_here = torch.zeros((), device=device)
        for part in parts:
            with autocast(device, options.precision):
                loss = loss_of(part)
            loss = loss * (len(part.real) / options.batch_size)
            loss.backward()
            loss_here += loss.detach()
        self.ranks.add_gradients(network)
        norm = nn.utils.clip_grad_norm_(network.parameters(), math.inf).item()
        [loss_of_all] = self.ranks.sum(loss_here.item())
        finite = math.isfinite(norm) and math.isfinite(loss_of_all)
        if finite:
            optimizer.step()
        return finite, loss_of_all, norm

    def _discriminator_loss(self, part: Inputs, step: int) -> Tensor:
        gan = self.config.gan
        with torch.no_grad():
            images = self.raw(part.first)
        real, fake = self.discriminator(part.real), self.discriminator(images)
        loss = discriminator_loss(real, fake, gan)
        if part.mask is not None:
            mixed = self.discriminator(part.mask * part.real + (1 - part.mask) * images)
            weight = gan.cutmix * min(1.0, (step + 1) / max(gan.cutmix_warmup_steps, 1))
            loss = loss + weight * cutmix_loss(mixed, real, fake, part.mask, gan)
        return loss

    def _generator_loss(self, part: Inputs) -> Tensor:
        return generator_loss(self.discriminator(self.raw(part.second)), self.config.gan)


def generator_config(config: RunConfig) -> GeneratorConfig:
    return GeneratorConfig(config.system, config.data.channels, config.data.size, config.gan)


def discriminator_rate(config: RunConfig) -> float:
    """The ratio of the discriminator's learning rate to the generator's."""
    return (config.gan.discriminator_learning_rate or config.training.learning_rate) / config.training.learning_rate


def inputs_at(dataset: Images, step: int, config: RunConfig, rows: range | None = None) -> Inputs:
    """The inputs of a step, on the CPU; all rows if `rows` is None."""
    options = config.training
    numbers = numbers_at(step, options, rows)
    sources = [generator_of(options.seed, LATENTS, number) for number in numbers]
    first, second = (torch.stack([latent(source, config.gan) for source in sources]) for _ in range(2))
    mask = None
    if config.system == "unetgan" and config.gan.cutmix:
        size = config.data.size
        mask = torch.cat([cutmix_mask(1, size, generator_of(options.seed, BOXES, number)) for number in numbers])
    return Inputs(images_at(dataset, step, options, rows), first, second, mask)


def refuse_unusable(config: RunConfig, processes: int) -> None:
    """Raise TrainingError for options that GANs do not support."""
    options = config.training
    for name, usable in (("compile", ("no",)), ("precision", ("fp32", "bf16", "auto")), ("optimizer", ("adam",))):
        if getattr(options, name) not in usable:
            raise TrainingError(
                f"training.{name} is {getattr(options, name)!r}; with {config.system} it must be "
                f"{' or '.join(map(repr, usable))}"
            )
    if options.micro_batch_size is not None and options.batch_size % processes:
        raise TrainingError(
            f"training.batch_size is {options.batch_size}; with {config.system} and a micro_batch_size it must be a "
            f"multiple of the {processes} processes, which normalise their parts together"
        )
