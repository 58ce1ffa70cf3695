"""Times a training step and a DDIM step of the paper's model: as a replayed CUDA graph, eager, and compiled. Appends a
line of JSON for each, so that an interrupted run keeps its results: `ms` on the GPU, `wall_ms` of a step in a loop, and
the images per second by `wall_ms`, with 50 DDIM steps for an image. Of vmddpm it needs only `vmddpm.model`."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import measure
from vmddpm.model import VMDDPM, ModelConfig

PAPER = ModelConfig()
TINY = ModelConfig(base_channels=8, channel_multipliers=(1, 2), sampling=(2, 2), norm_groups=4, d_state=4)
TRAINING, DDIM = "training step", "DDIM step"
DDIM_STEPS = 50  # for an image
LEVEL, NEXT_LEVEL = 0.6, 0.7  # alphas_cumprod at the step's noise level and at that of the next


@dataclass(frozen=True)
class ModelStep:
    step: str
    way: str
    shuffled: bool
    dtype: torch.dtype

    @property
    def name(self) -> str:
        order = "shuffled" if self.shuffled else "ordered"
        return f"{self.step}, {self.way}, {order}, {str(self.dtype).removeprefix('torch.')}"


def all_steps(device: str) -> Iterator[ModelStep]:
    """The most informative first: a graph with new visit orders at each replay, as programs would use it. There are no
    graphs without a GPU."""
    for dtype in (torch.bfloat16, torch.float32) if device == "cuda" else (torch.bfloat16,):
        for step in (TRAINING, DDIM):
            if device == "cuda":
                yield ModelStep(step, "graph", True, dtype)
                yield ModelStep(step, "graph", False, dtype)
            yield ModelStep(step, "eager", True, dtype)
        yield from (ModelStep(step, "eager", False, dtype) for step in (TRAINING, DDIM))


def compiled_steps() -> Iterator[ModelStep]:
    for dtype in (torch.bfloat16, torch.float32):
        yield from (ModelStep(step, "compiled", False, dtype) for step in (TRAINING, DDIM))


class Work:
    """The model, its optimiser, and one batch of images."""

    def __init__(self, case: ModelStep, config: ModelConfig, images: Tensor) -> None:
        torch.manual_seed(0)
        self.case, self.images, self.noise = case, images, torch.randn_like(images)
        self.t = torch.full(images.shape[:1], 500, device=images.device)
        self.taken = torch.zeros((), dtype=torch.int64, device=images.device)  # steps so far, for new orders in each
        shuffle = {"regeneration": case.shuffled}
        with images.device:  # drawing the weights there is faster
            self.model = VMDDPM(ModelConfig(**{**vars(config), **shuffle}))
        torch.nn.init.normal_(self.model.projection[-1].weight, std=0.1)  # zero at the start of training
        self.predict = torch.compile(self.model) if case.way == "compiled" else self.model
        on_gpu = images.device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=on_gpu, capturable=on_gpu)

    def noise_of(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.case.dtype, enabled=self.case.dtype != torch.float32):
            noise = self.predict(x, self.t, order_key=(0, self.taken))
        self.taken.add_(1)
        return noise

    def train(self) -> Tensor:
        noisy = LEVEL**0.5 * self.images + (1 - LEVEL) ** 0.5 * self.noise
        loss = F.mse_loss(self.noise_of(noisy).float(), self.noise)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def denoise(self) -> Tensor:
        noise = self.noise_of(self.images).float()
        clean = (self.images - (1 - LEVEL) ** 0.5 * noise) / LEVEL**0.5
        return NEXT_LEVEL**0.5 * clean.clamp(-1, 1) + (1 - NEXT_LEVEL) ** 0.5 * noise


def call_of(work: Work) -> Callable[[Any], Any]:
    """The call to time."""
    step = work.train if work.case.step == TRAINING else work.denoise
    if work.case.way != "graph":
        return lambda _: step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # tables, workspaces and the optimiser's state are made before the capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return lambda _: graph.replay()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=Path, help="where the lines of JSON go")
    parser.add_argument("--seconds", type=float, default=180, help="no step is begun after this")
    parser.add_argument("--compiled", action="store_true", help="time compiled steps instead")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    device = "cpu" if options.dry_run else "cuda"
    config, batch, size = (TINY, 2, 16) if options.dry_run else (PAPER, 16, 128)
    images = torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    for case in compiled_steps() if options.compiled else all_steps(device):
        if time.monotonic() > deadline:
            break
        begun = time.monotonic()
        try:
            result = measure(call_of(Work(case, config, images)), [images], device, 2 if options.dry_run else 10)
            seconds = 1e-3 * result["wall_ms"] * (DDIM_STEPS if case.step == DDIM else 1)
            record = {**result, "images_per_second": batch / seconds}
        except Exception as error:  # the other steps can still be timed
            record = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        record["seconds"] = round(time.monotonic() - begun, 1)
        with options.lines.open("a") as lines:
            lines.write(json.dumps({"case": case.name, "batch": batch, "size": size, **record}) + "\n")
        print(f"{case.name}: {record.get('ms', record.get('error'))}", flush=True)
        torch._dynamo.reset()


if __name__ == "__main__":
    main()
