"""The whole model: a prediction, a step of DDIM and a step of training, along ordered and shuffled routes, with the
scan in plain PyTorch, and by a UNet (diffusers' UNet2DModel) with as many parameters."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.demo_comparison import parameters, unet_of
from benchmarks.module_work import work_of
from vmddpm.demo import demo_config
from vmddpm.diffusion import DiffusionConfig, diffusion_loss
from vmddpm.diffusion.sampling import make_scheduler
from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.model.unet import UNet
from vmddpm.training import RunConfig
from vmddpm.training.learner import update_ema

FORWARD, DDIM, TRAINING = "forward", "ddim_step", "training_step"


@dataclass(frozen=True)
class ModelCase:
    name: str
    batch: int
    size: int
    config: ModelConfig

    def tiny(self) -> "ModelCase":
        return replace(self, batch=1, size=32)


@dataclass(frozen=True)
class Run:
    """A model, the average of its weights, and images, for one step of any kind."""

    model: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    backend: str
    leaves: list[Tensor]
    standard: Callable[[Tensor], Tensor] | None

    def call(self, direction: str) -> Tensor:
        (images,) = self.leaves
        t = torch.full(images.shape[:1], 500, device=images.device)
        with mock.patch.dict("os.environ", VMDDPM_BACKEND=self.backend):
            if direction == TRAINING:
                return self.train(images, t)
            with torch.inference_mode():
                predicted = self.model(images, t, order_key=(0, 0))
                return predicted if direction == FORWARD else SCHEDULER.step(predicted, 500, images).prev_sample

    def train(self, images: Tensor, t: Tensor) -> Tensor:
        noise = images.flip(0, 2)
        loss = diffusion_loss(self.model, images, t, noise, order_key=(0, 0), config=DIFFUSION)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        update_ema(self.ema, self.model, 0.9999, 0)
        return loss.detach()


DIFFUSION = DiffusionConfig()
SCHEDULER = make_scheduler(DIFFUSION, "ddim", 50)
QUICK = [ModelCase("demo 64x64 B4", 4, 64, demo_config(1).model)]
PAPER = [
    ModelCase("paper 128x128 B1", 1, 128, ModelConfig()),
    ModelCase("paper N1 128x128 B1", 1, 128, ModelConfig(d_state=1)),
]
CASES = {"quick": QUICK, "full": [*QUICK, *PAPER]}
DIRECTIONS = (FORWARD, DDIM, TRAINING)


def draw(case, device, seed):
    images = torch.randn(case.batch, 1, case.size, case.size, generator=torch.Generator().manual_seed(seed))
    return case, images.to(device)


def run_of(model, problem, backend, standard=None):
    _, images = problem
    model = model.to(images.device)
    return Run(model, copy.deepcopy(model), torch.optim.Adam(model.parameters()), backend, [images], standard)


def along(shuffled, backend=None):
    def make(problem, device, baselines):
        torch.manual_seed(0)
        model = VMDDPM(replace(problem[0].config, regeneration=shuffled))
        nn.init.normal_(model.projection[-1].weight, std=0.1)  # zero at the start of training
        return run_of(model, problem, backend or device, None if shuffled else Tensor.clone)

    return make


def unet(problem, device, baselines):
    return run_of(UNet(unet_of(parameters(RunConfig(model=problem[0].config)))), problem, device)


MODELS = {
    "ours": along(False),
    "ours shuffled": along(True),
    "reference": along(False, "reference"),
    "UNet2DModel": unet,
}
IMPLEMENTATIONS = tuple(MODELS)


def test_model(harness, case, direction, implementation, device):
    def work(name):
        if name == "UNet2DModel":
            return None
        _, images = problem = draw(case, device, 0)
        model = MODELS["ours"](problem, device, None).model
        t = torch.full(images.shape[:1], 500, device=device)
        return work_of(model, lambda: model(images, t), direction == TRAINING)

    harness(MODELS, case, direction, implementation, draw=draw, work=work)
