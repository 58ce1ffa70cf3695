"""The demo: a small VM-DDPM learns a real brain in a few minutes and draws new slices of it."""

import json
from importlib.resources import files
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from vmddpm.data import DataConfig, SliceDataset, from_volumes
from vmddpm.data.mni152 import mni152_template
from vmddpm.devices import choose_device
from vmddpm.diffusion import DiffusionConfig, sample
from vmddpm.errors import InputError
from vmddpm.evaluation import projected_frechet_distance
from vmddpm.files import write_text, written_whole
from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.training import RunConfig, RunFolder, TrainingConfig, train
from vmddpm.training.pictures import grid

_FIGURE_OF_MERIT = "Fréchet distance in a fixed random projection (not FID)"


def demo_config(minutes: float) -> RunConfig:
    """The preset `demo` with a time budget."""
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


def demo(out: Path, *, minutes: float = 6.0, count: int = 64) -> dict[str, float]:
    """Trains for `minutes`, then writes `out`/demo.png with `count` real and `count` synthetic slices.

    Returns (and writes to `out`/demo.json) the figure of merit before and after training, against all slices, and for
    scale that of `count` real slices against the other real ones.

    Raises:
        RunError: if `out` holds anything but a demo run; a demo run is continued.
        InputError: if `minutes` or `count` cannot be.
    """
    config = demo_config(minutes)
    dataset = mni152_slices(config.data)
    if not 2 <= count <= len(dataset) - 2:
        raise InputError(f"images is {count}; it must be from 2 to {len(dataset) - 2}")
    slices = torch.stack([dataset[i] for i in range(len(dataset))])
    order = torch.randperm(len(slices), generator=torch.Generator().manual_seed(0))
    print(f"{len(slices)} slices of the MNI152 template at {config.data.size} x {config.data.size}")

    torch.manual_seed(0)
    untrained = VMDDPM(config.model)
    before = _draw(untrained, config, count, "untrained model")
    model = train(config, dataset, RunFolder(out))
    after = _draw(model, config, count, "trained model")

    scores = {
        "before_training": projected_frechet_distance(slices, before),
        "after_training": projected_frechet_distance(slices, after),
        "real_against_real": projected_frechet_distance(slices[order[count:]], slices[order[:count]]),
    }
    scores["improvement"] = scores["before_training"] / scores["after_training"]
    write_text(out / "demo.json", json.dumps({"figure_of_merit": _FIGURE_OF_MERIT, **scores}, indent=2) + "\n")
    _draw_comparison(slices[order[:count]], after, out / "demo.png")
    print(f"{_FIGURE_OF_MERIT}: {scores['before_training']:.3f} before training, {scores['after_training']:.4f} after "
          f"({scores['improvement']:.0f} times less); real against real {scores['real_against_real']:.4f}")  # fmt: skip
    print(f"look at {out / 'demo.png'}")
    return scores


def _draw(model: nn.Module, config: RunConfig, count: int, title: str) -> Tensor:
    """`count` images (count, C, size, size) by DDIM, on the CPU."""
    model = model.to(choose_device(config.training.device, scans=True))
    shape = (config.model.image_channels, config.data.size, config.data.size)
    with tqdm(desc=f"sampling, {title}", unit="step", dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        images = sample(
            model, range(count), shape, config=config.diffusion, sampler="ddim",
            steps=config.training.sample_steps, seed=config.training.seed, progress=progress,
        )  # fmt: skip
    return images.cpu()


def _draw_comparison(real: Tensor, synthetic: Tensor, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.2), layout="constrained", facecolor="white")
    for axes, images, title in zip(figure.subplots(1, 2), (real, synthetic), ("real (MNI152)", "synthetic (VM-DDPM)")):
        axes.imshow(grid(images).squeeze(2), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title)
        axes.set_axis_off()
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110)
