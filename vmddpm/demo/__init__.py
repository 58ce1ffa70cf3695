"""The demo: a small VM-DDPM learns a real brain in a few minutes and draws new slices of it."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from vmddpm.data import DataConfig, SliceDataset, from_volumes
from vmddpm.data.mni152 import mni152_template
from vmddpm.demo.bar import BudgetBar
from vmddpm.demo.picture import save_comparison
from vmddpm.demo.plan import (
    BLOCK,
    BRAINS,
    FINISHING,
    MOST_STEPS,
    Budget,
    Drawing,
    Plan,
    Speed,
    as_minutes,
    choose_drawing,
    make_plan,
    what_is_seen,
)
from vmddpm.demo.speed import measure_speed
from vmddpm.devices import choose_device
from vmddpm.diffusion import DiffusionConfig, make_scheduler, sample
from vmddpm.errors import InputError
from vmddpm.evaluation import Merit, figures_of_merit
from vmddpm.evaluation.images import Images
from vmddpm.files import write_text
from vmddpm.model import ModelConfig
from vmddpm.training import RunConfig, RunFolder, TrainingConfig, train
from vmddpm.training.checkpoints import Checkpoints

__all__ = ["demo", "demo_config", "draw_images", "halves", "mni152_slices", "progress", "titles"]

logger = logging.getLogger(__name__)


def demo_config(minutes: float) -> RunConfig:
    """The preset `demo` with a time budget for training."""
    plain = yaml.safe_load((files("vmddpm.presets") / "demo.yaml").read_text(encoding="utf-8"))
    return RunConfig(
        model=ModelConfig(**plain["model"]),
        diffusion=DiffusionConfig(**plain["diffusion"]),
        data=DataConfig(**plain["data"]),
        training=TrainingConfig(**{**plain["training"], "minutes": minutes}),
    )


def mni152_slices(config: DataConfig) -> SliceDataset:
    """Slices, 3 mm apart, of the MNI152 T1 template (an average of 152 adult brains)."""
    return from_volumes([mni152_template(resolution=3)], config)


def demo(
    out: Path,
    *,
    minutes: float = 6.0,
    images: int = 64,
    started: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Trains, then writes `out`/demo.png with real and synthetic slices, in `minutes` all together.

    A plan from measured times is printed first. A demo run that is there is continued for another `minutes`.

    Args:
        out: the run folder.
        minutes: from `started` to the return; where the machine becomes slower meanwhile, fewer images are drawn.
        images: at most so many of each kind in the picture.
        started: when the command started, by `clock`; now if None.
        clock: the time in seconds.

    Returns:
        What `out`/demo.json holds too: steps, images, and the figures of merit of the synthetic slices and, for scale,
        of as many real ones, both against the other real ones.

    Raises:
        RunError: if `out` holds anything but a demo run.
        InputError: if `minutes` or `images` cannot be.
    """
    budget = Budget(60 * minutes, clock() if started is None else started, clock)
    folder, config = RunFolder(out), demo_config(minutes)
    config = replace(config, training=replace(config.training, sample_every=0))
    folder.check(config)
    dataset = mni152_slices(config.data)
    if not 2 <= images <= len(dataset) - 2:
        raise InputError(f"images is {images}; it must be from 2 to {len(dataset) - 2}")
    size = config.data.size
    logger.info("%d slices of the MNI152 template at %d x %d; timing a step ...", len(dataset), size, size)
    make_scheduler(config.diffusion, "ddim", 50)  # loads diffusers, which takes seconds, before time is planned
    speed = measure_speed(config, dataset, clock, limit=0.1 * budget.left())
    taken, seconds = progress(folder)
    plan = make_plan(budget, speed, images, taken)
    logger.info("%s", plan)

    with BudgetBar(budget) as bar:
        bar.show("training")
        step = taken
        config = replace(config, training=replace(config.training, minutes=(seconds + plan.training_seconds) / 60))

        def after_step(number: int, metrics: dict[str, Any]) -> None:
            nonlocal step
            step = number
            bar.show(f"training, step {step}, loss {metrics['loss']:.3f}")

        before = budget.spent()
        model = train(config, dataset, folder, progress=False, after_step=after_step)
        now = _speed_now(speed, (budget.spent() - before) / (step - taken)) if step > taken else speed
        synthetic, drawing = _draw(model, config, plan, now, bar)
        bar.show("writing the picture")
        result = _write(folder, dataset, synthetic, drawing, step)
    logger.info("%s", _closing(folder, result, budget))
    return result


def progress(folder: RunFolder) -> tuple[int, float]:
    """Steps of the run that is there, and the seconds they took."""
    state = Checkpoints(folder.path / "checkpoints").newest()
    return (state["step"], state["seconds"]) if state else (0, 0.0)


def _speed_now(planned: Speed, training_step: float) -> Speed:
    """Drawing has slowed down, or sped up, as training has."""
    return Speed(training_step, planned.drawing_step * training_step / planned.training_step)


def _draw(model: nn.Module, config: RunConfig, plan: Plan, speed: Speed, bar: BudgetBar) -> tuple[Tensor, Drawing]:
    """Images (n, C, size, size) by DDIM, on the CPU: those of the plan, or what there is time for, a batch at least."""
    budget = plan.budget
    end = FINISHING / 2 * budget.seconds  # what is to be left then; the rest is for what training took longer
    drawing = choose_drawing(budget.left() - end, speed, plan.drawing.images, plan.drawing.steps)
    model = model.to(choose_device(config.training.device, scans=True))
    shape = (config.data.channels, config.data.size, config.data.size)
    blocks: list[Tensor] = []
    for first in range(0, drawing.images, drawing.batch):
        before = budget.spent()
        numbers = range(first, min(first + drawing.batch, drawing.images))

        def progress(step: int, steps: int, last: int = numbers[-1]) -> None:
            bar.show(f"drawing image {last + 1} of {drawing.images}, step {step} of {steps}")

        blocks.append(
            sample(model, numbers, shape, config=config.diffusion, sampler="ddim", steps=drawing.steps,
                   seed=config.training.seed, batch_size=drawing.batch, progress=progress).cpu()
        )  # fmt: skip
        if budget.spent() - before > budget.left() - end:  # the next one would not end in time
            break
    images = torch.cat(blocks)
    return images, replace(drawing, images=len(images))


def _write(folder: RunFolder, dataset: SliceDataset, synthetic: Tensor, drawing: Drawing, step: int) -> dict[str, Any]:
    real, others = halves(dataset, len(synthetic))
    result = {
        "steps": step, "images": len(synthetic), "sampler_steps": drawing.steps,
        "figures_of_merit": "spectrum in dB, texture and structure as Fréchet distances (not FID); less is better",
        "synthetic": asdict(figures_of_merit(synthetic, others)),
        "real": asdict(figures_of_merit(real, others)),
    }  # fmt: skip
    write_text(folder.path / "demo.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    save_comparison(real, synthetic, folder.path / "demo.png", titles(step))
    return result


def halves(dataset: Images, count: int) -> tuple[Tensor, Tensor]:
    """`count` real slices, and all others, which these and the synthetic ones are compared with."""
    slices = torch.stack([dataset[i] for i in range(len(dataset))])
    order = torch.randperm(len(slices), generator=torch.Generator().manual_seed(0))
    return slices[order[:count]], slices[order[count:]]


def titles(step: int) -> tuple[str, str]:
    """Over the real and the synthetic slices, after so many steps."""
    short = "" if step >= BRAINS else f"; brains take about {BRAINS}"
    return "real (MNI152)", f"synthetic (VM-DDPM after {step:,} steps{short})"


def draw_images(model: nn.Module, config: RunConfig, count: int) -> Tensor:
    """Images 0 to count - 1 of the run's seed, (count, C, size, size) in [-1, 1] on the CPU, as the demo draws them
    where there is time for the most steps."""
    data, blocks = config.data, -(-count // BLOCK)
    return sample(
        model, range(count), (data.channels, data.size, data.size), config=config.diffusion, sampler="ddim",
        steps=MOST_STEPS, seed=config.training.seed, batch_size=-(-count // blocks),
    ).cpu()  # fmt: skip


def _closing(folder: RunFolder, result: dict[str, Any], budget: Budget) -> str:
    step = result["steps"]
    seen = f"{what_is_seen(step)}, on the right of"
    if step < BRAINS:
        more = f"brains take about {BRAINS} steps: the same command again goes on from step {step}"
    else:
        more = f"the same command again goes on from step {step} and makes them finer"
    told = f"{step} steps, {as_minutes(budget.spent())}: {seen} {folder.path / 'demo.png'}; {more}"
    synthetic, real = (Merit(**result[name]) for name in ("synthetic", "real"))
    return f"{told}\ndistance from other real slices: {synthetic}; as many real slices have {real}"
