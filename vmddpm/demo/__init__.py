"""The demo: a small VM-DDPM learns a real brain in a few minutes and samples new slices or volumes of it."""

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
    FINISHING_SHARE,
    MAX_SAMPLER_STEPS,
    SLICES,
    VOLUMES,
    Budget,
    Drawing,
    Milestones,
    Plan,
    Speed,
    as_minutes,
    choose_drawing,
    make_plan,
)
from vmddpm.demo.speed import measure_speed
from vmddpm.demo.threads import IdleThreads
from vmddpm.devices import choose_device
from vmddpm.diffusion import DiffusionConfig, make_scheduler, sample
from vmddpm.errors import InputError
from vmddpm.evaluation import Merit, figures_of_merit
from vmddpm.evaluation.images import Images
from vmddpm.evaluation.memorisation import copies_by_pixels
from vmddpm.files import atomic_write, write_text
from vmddpm.model import ModelConfig
from vmddpm.nifti import nifti_bytes
from vmddpm.training import RunConfig, RunFolder, TrainingConfig, train
from vmddpm.training.checkpoints import Checkpoints
from vmddpm.training.pictures import to_uint8

__all__ = [
    "PRESETS", "demo", "demo_config", "draw_images", "halves", "mni152_crops", "mni152_slices", "progress", "titles",
]  # fmt: skip

PRESETS = {"demo": 64, "demo-3d": 12}  # the most images in the picture

logger = logging.getLogger(__name__)


def demo_config(minutes: float, preset: str = "demo") -> RunConfig:
    """The preset `demo`, or `demo-3d`, with a time budget for training."""
    plain = yaml.safe_load((files("vmddpm.presets") / f"{preset}.yaml").read_text(encoding="utf-8"))
    return RunConfig(
        model=ModelConfig(**plain["model"]),
        diffusion=DiffusionConfig(**plain["diffusion"]),
        data=DataConfig(**plain["data"]),
        training=TrainingConfig(**{**plain["training"], "minutes": minutes}),
    )


def mni152_slices(config: DataConfig) -> SliceDataset:
    """Slices, 3 mm apart, of the MNI152 T1 template (an average of 152 adult brains)."""
    return from_volumes([mni152_template(resolution=3)], config)


def mni152_crops(config: DataConfig) -> SliceDataset:
    """Crops of the same template as a volume."""
    return from_volumes([mni152_template(resolution=2)], config)


def demo(
    out: Path,
    *,
    minutes: float = 6.0,
    images: int | None = None,
    preset: str = "demo",
    started: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Train, then write `out`/demo.png with real and synthetic slices, within `minutes` in all. The preset `demo-3d`
    uses volumes: the picture shows three planes of each, and the synthetic ones are also NIfTI files in `out`/volumes.

    A plan from measured times is logged first. An existing demo run is continued for another `minutes`.

    Args:
        out: the run folder.
        minutes: time from `started` to the return; if the machine slows down, fewer images are drawn.
        images: most images of each kind in the picture; by default that of `PRESETS`.
        preset: "demo" or "demo-3d".
        started: when the command started, by `clock`; now if None.
        clock: the time in seconds.

    Returns:
        The contents of `out`/demo.json: steps, images, the number of images close to copies of real ones, and the
        figures of merit of the synthetic slices and, for scale, of as many real slices, both against the remaining real
        slices.

    Raises:
        RunError: if `out` holds anything but a demo run.
        InputError: if `minutes`, `images` or `preset` is invalid.
    """
    budget = Budget(60 * minutes, clock() if started is None else started, clock)
    if preset not in PRESETS:
        raise InputError(f"preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
    folder, config = RunFolder(out), demo_config(minutes, preset)
    volumes = config.data.spatial_dims == 3
    images, milestones = images or PRESETS[preset], VOLUMES if volumes else SLICES
    config = replace(config, training=replace(config.training, sample_every=0))
    folder.check(config)
    dataset = (mni152_crops if volumes else mni152_slices)(config.data)
    if not 2 <= images <= len(dataset) - 2:
        raise InputError(f"images is {images}; it must be from 2 to {len(dataset) - 2}")
    sides, kind = " x ".join(map(str, config.data.shape[1:])), "crops" if volumes else "slices"
    logger.info("%d %s of the MNI152 template at %s; timing a step ...", len(dataset), kind, sides)
    with IdleThreads() as threads:
        make_scheduler(config.diffusion, "ddim", 50)  # imports diffusers, which takes seconds, before time is planned
        threads.follow()
        speed = measure_speed(config, dataset, clock, limit=0.1 * budget.left())
        steps_done, seconds = progress(folder)
        plan = make_plan(budget, speed, images, steps_done, milestones)
        logger.info("%s", plan)

        with BudgetBar(budget) as bar:
            bar.show("training")
            step = steps_done
            config = replace(config, training=replace(config.training, minutes=(seconds + plan.training_seconds) / 60))

            def after_step(number: int, metrics: dict[str, Any]) -> None:
                nonlocal step
                step = number
                threads.follow()
                bar.show(f"training, step {step}, loss {metrics['loss']:.3f}")

            before = budget.spent()
            model = train(config, dataset, folder, progress=False, after_step=after_step)
            now = _speed_now(speed, (budget.spent() - before) / (step - steps_done)) if step > steps_done else speed
            synthetic, drawing = _draw(model, config, plan, now, bar, threads)
            bar.show("writing the picture")
            result = _write(folder, config.data, dataset, synthetic, drawing, step, milestones)
    logger.info("%s", _closing_message(folder, result, budget, milestones))
    return result


def progress(folder: RunFolder) -> tuple[int, float]:
    """Steps of the run so far, and the seconds they took."""
    state = Checkpoints(folder.path / "checkpoints").newest()
    return (state["step"], state["seconds"]) if state else (0, 0.0)


def _speed_now(planned: Speed, training_step: float) -> Speed:
    """The present speed; drawing is assumed to have changed by the same factor as training."""
    return Speed(training_step, planned.drawing_step * training_step / planned.training_step)


def _draw(
    model: nn.Module, config: RunConfig, plan: Plan, speed: Speed, bar: BudgetBar, threads: IdleThreads
) -> tuple[Tensor, Drawing]:  # fmt: skip
    """Sample images (n, C, size, size) by DDIM, on the CPU: as many as planned, or as time allows, at least a batch."""
    budget = plan.budget
    end = FINISHING_SHARE / 2 * budget.seconds  # time to keep; the other half absorbs overtime of training
    drawing = choose_drawing(budget.left() - end, speed, plan.drawing.images, plan.drawing.steps)
    model = model.to(choose_device(config.training.device, scans=True))
    shape = config.data.shape
    blocks: list[Tensor] = []
    for first in range(0, drawing.images, drawing.batch):
        before = budget.spent()
        numbers = range(first, min(first + drawing.batch, drawing.images))

        def progress(step: int, steps: int, last: int = numbers[-1]) -> None:
            threads.follow()
            bar.show(f"drawing image {last + 1} of {drawing.images}, step {step} of {steps}")

        blocks.append(
            sample(model, numbers, shape, config=config.diffusion, sampler="ddim", steps=drawing.steps,
                   seed=config.training.seed, batch_size=drawing.batch, progress=progress).cpu()
        )  # fmt: skip
        if budget.spent() - before > budget.left() - end:  # no time for another block
            break
    images = torch.cat(blocks)
    return images, replace(drawing, images=len(images))


def _write(
    folder: RunFolder, data: DataConfig, dataset: SliceDataset, synthetic: Tensor, drawing: Drawing, step: int,
    milestones: Milestones,
) -> dict[str, Any]:  # fmt: skip
    real, others = halves(dataset, len(synthetic))
    result = {
        "steps": step, "images": len(synthetic), "sampler_steps": drawing.steps,
        "copies": int(copies_by_pixels(synthetic, torch.cat([real, others])).sum()),
        "figures_of_merit": "spectrum in dB, texture and structure as Fréchet distances (not FID); less is better",
        "synthetic": asdict(figures_of_merit(_as_slices(synthetic), _as_slices(others))),
        "real": asdict(figures_of_merit(_as_slices(real), _as_slices(others))),
    }  # fmt: skip
    write_text(folder.path / "demo.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if data.spatial_dims == 3:
        for number, volume in enumerate(to_uint8(synthetic)):
            with atomic_write(folder.path / "volumes" / f"{number:06d}.nii.gz") as temporary:
                temporary.write_bytes(nifti_bytes(volume[..., 0], data.voxel_sizes))
    save_comparison(real, synthetic, folder.path / "demo.png", titles(step, milestones))
    return result


def halves(dataset: Images, count: int) -> tuple[Tensor, Tensor]:
    """`count` real slices, and the remaining ones, which they and the synthetic slices are compared with."""
    slices = torch.stack([dataset[i] for i in range(len(dataset))])
    order = torch.randperm(len(slices), generator=torch.Generator().manual_seed(0))
    return slices[order[:count]], slices[order[count:]]


def titles(step: int, milestones: Milestones = SLICES) -> tuple[str, str]:
    """Titles of the real and the synthetic images after `step` steps."""
    short = "" if step >= milestones.brains else f"; brains take about {milestones.brains}"
    return "real (MNI152)", f"synthetic (VM-DDPM after {step:,} steps{short})"


def draw_images(model: nn.Module, config: RunConfig, count: int) -> Tensor:
    """Sample images 0 to count - 1 with the run's seed, (count, *config.data.shape) in [-1, 1] on the CPU, as the demo
    does when time allows the most steps."""
    blocks = -(-count // BLOCK)
    return sample(
        model, range(count), config.data.shape, config=config.diffusion, sampler="ddim",
        steps=MAX_SAMPLER_STEPS, seed=config.training.seed, batch_size=-(-count // blocks),
    ).cpu()  # fmt: skip


def _as_slices(images: Tensor) -> Tensor:
    """Images (n, C, H, W) unchanged; volumes (n, C, D, H, W) as their axial slices, without constant ones."""
    if images.dim() == 4:
        return images
    slices = images.transpose(1, 2).flatten(0, 1)
    values = slices.flatten(1)
    return slices[values.amax(1) > values.amin(1)]


def _closing_message(folder: RunFolder, result: dict[str, Any], budget: Budget, milestones: Milestones) -> str:
    step = result["steps"]
    seen = f"{milestones(step)}, on the right of"
    if step < milestones.brains:
        more = f"brains take about {milestones.brains} steps: the same command again goes on from step {step}"
    else:
        more = f"the same command again goes on from step {step} and makes them finer"
    message = f"{step} steps, {as_minutes(budget.spent())}: {seen} {folder.path / 'demo.png'}; {more}"
    if result["copies"]:
        message += (
            f"\n{result['copies']} of the {result['images']} are close to copies of training images, as usual for so "
            "few; `vmddpm evaluate` finds the copies of a run"
        )
    synthetic, real = (Merit(**result[name]) for name in ("synthetic", "real"))
    return f"{message}\ndistance from other real slices: {synthetic}; as many real slices have {real}"
