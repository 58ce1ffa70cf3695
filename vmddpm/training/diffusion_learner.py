"""A step of diffusion training: VM-DDPM, or the UNet of the DDPM and DDIM baselines."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vmddpm.devices import fast_in_bfloat16
from vmddpm.diffusion import diffusion_loss, sample
from vmddpm.evaluation.images import Images
from vmddpm.model import VMDDPM
from vmddpm.model.unet import UNet
from vmddpm.training.batches import inputs_at
from vmddpm.training.conditions import condition_names, conditions_to_draw
from vmddpm.training.config import RunConfig
from vmddpm.training.learner import Learner, Step, autocast, update_ema
from vmddpm.training.networks import build_network
from vmddpm.training.optimizers import make_optimizers
from vmddpm.training.ranks import Ranks

Inputs = tuple[Tensor, ...]  # images, diffusion steps, noise, and the parts of the condition, if any


class DiffusionLearner(Learner[Inputs]):
    """A network that predicts noise, trained on the mean loss with gradient clipping."""

    raw: VMDDPM | UNet
    ema: VMDDPM | UNet

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.raw = build_network(config).to(ranks.device).train()
        if isinstance(self.raw, VMDDPM):
            self.raw.recompute = config.training.activation_checkpointing
        self.ema = build_network(config).to(ranks.device).eval().requires_grad_(False)
        self.ema.load_state_dict(self.raw.state_dict())
        options = config.training
        optimizers = make_optimizers(self.raw, options, ranks.broadcast(fast_in_bfloat16(ranks.device)))
        self.optimizers = list(optimizers.values())
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.precision == "fp16")
        self.parts = {"model": self.raw, "ema": self.ema, **optimizers, "scaler": self.scaler}

    def inputs_at(self, dataset: Images, step: int, rows: range) -> Inputs:
        return inputs_at(dataset, step, self.config, rows)

    def start(self, inputs_at: Callable[[int], Inputs], step: int) -> None:
        mode = self.config.training.compile
        if mode != "no":
            self.raw.compile(mode=mode)
        self.data_parallel = self.ranks.data_parallel(self.raw)
        if self.ranks.world_size > 1:
            # Run one throwaway backward, after which DistributedDataParallel fixes its bucket order: resumed runs then
            # reduce in the same order.
            self._add_gradients(inputs_at(step), step)

    def step(self, inputs: Inputs, step: int, rate: float) -> Step:
        options = self.config.training
        self.raw.zero_grad(set_to_none=True)
        share = self._add_gradients(inputs, step)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate
            self.scaler.unscale_(optimizer)
        # On a GPU torch already uses the foreach kernels by default.
        foreach = True if self.ranks.device.type == "cpu" else None
        norm = nn.utils.clip_grad_norm_(self.raw.parameters(), options.gradient_clip, foreach=foreach)
        own_sums: list[float] = torch.stack([share, norm.to(share)]).tolist()
        loss, norm_here = *self.ranks.sum(own_sums[0]), own_sums[1]
        finite = math.isfinite(loss) and math.isfinite(norm_here)
        if finite:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            update_ema(self.ema, self.raw, options.ema_decay, step)
        self.scaler.update()
        return Step(finite, {"loss": loss, "gradient_norm": norm_here})

    def draw(self, dataset: Images, count: int) -> Tensor:
        """Draw `count` images by DDIM."""
        data, options = self.config.data, self.config.training
        return sample(
            self.ema, range(count), data.shape, config=self.config.diffusion,
            sampler="ddim", steps=options.sample_steps, seed=options.seed,
            conditions=conditions_to_draw(self.config.model, getattr(dataset, "condition_images", None)),
        )  # fmt: skip

    def _add_gradients(self, inputs: Inputs, step: int) -> Tensor:
        """Leave the scaled gradient of the batch's mean loss in the parameters of every process. Inputs go through the
        network `micro_batch_size` at a time.

        Returns:
            This process's share of the mean loss; the shares of all processes add up to it.
        """
        options, network = self.config.training, self.data_parallel
        device = self.ranks.device
        loss_here = torch.zeros((), device=device)
        order_key = options.seed, torch.full((), step, device=device)  # a tensor: an input of compiled code
        parts = list(zip(*(values.split(options.micro_batch_size or len(values)) for values in inputs)))
        for part in parts:
            x0, t, noise, *conditions = (values.to(device, non_blocking=True) for values in part)
            last = part is parts[-1]
            with network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext():
                with autocast(device, options.precision):
                    condition = dict(zip(condition_names(self.config.model), conditions))
                    loss = diffusion_loss(network, x0, t, noise, order_key, self.config.diffusion, condition)
                loss = loss * (len(x0) / options.batch_size)
                self.scaler.scale(loss * self.ranks.world_size).backward()  # DDP averages over processes
            loss_here += loss.detach()
        return loss_here
