"""Images from a run folder to PNG files, block by block."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from vmddpm.baselines.config import GANS
from vmddpm.baselines.networks import draw
from vmddpm.diffusion import make_scheduler, sample
from vmddpm.files import sha256, write_text
from vmddpm.training.pictures import load_png, save_png, tiled, to_uint8
from vmddpm.training.ranks import choose_device
from vmddpm.training.run_folder import RunError, RunFolder


def generate(
    run: str | Path,
    out: str | Path,
    count: int,
    *,
    sampler: str = "ddpm",
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    weights: str = "ema",
    ordered: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Writes images 0 to count - 1 of a seed as `out`/000000.png ..., and the first 64 of them as `out`/grid.png.

    Image i depends on the weights, sampler, steps, seed and batch_size alone, so an interrupted call is continued by
    the same call: blocks whose images are all there are passed over. `out`/sampling.yaml records what they were made
    with. The generator of a GAN knows no sampler: it draws in one step.

    Args:
        ordered: scan in order, whatever the network was trained with (`regeneration_at_sampling` of its config).

    Raises:
        RunError: if the run has no such weights, or `out` holds anything else, or images made in another way.
        ValueError: on unusable options.
    """
    for name, value in (("num", count), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if weights not in ("ema", "raw"):
        raise ValueError(f'weights is {weights!r}; it must be "ema" or "raw"')
    folder, out = RunFolder(run), Path(out)
    config = folder.load_config()
    if config.system in GANS:
        sampler, steps = "none", 1
    else:
        steps = config.diffusion.timesteps if steps is None else steps
        make_scheduler(config.diffusion, sampler, steps)  # refuses bad options before anything is written
    if ordered and config.system != "vmddpm":
        raise ValueError(f"ordered is for vmddpm, not for {config.system}, which has no scans")
    model = folder.load_model(weights).to(choose_device(device))
    if ordered:
        model.config = replace(model.config, regeneration_at_sampling=False)
    digest = sha256(folder.weights(weights) / "model.safetensors")
    made_with = {"run": folder.path.resolve().name, "weights": weights, "weights_sha256": digest, "sampler": sampler,
                 "steps": steps, "seed": seed, "batch_size": batch_size}  # fmt: skip
    _take(out, {**made_with, "ordered": True} if ordered else made_with)
    shape = (config.data.channels, config.data.size, config.data.size)
    blocks = [range(first, min(first + batch_size, count)) for first in range(0, count, batch_size)]
    missing = [block for block in blocks if not all(_path(out, i).exists() for i in block)]
    with tqdm(total=len(missing) * steps, unit="step", disable=not progress, dynamic_ncols=True) as bar:
        for block in missing:
            bar.set_description(f"images {block.start}-{block.stop - 1}")
            if config.system in GANS:
                images = draw(model, block, seed=seed)
                bar.update()
            else:
                images = sample(
                    model, block, shape, config=config.diffusion, sampler=sampler, steps=steps, seed=seed,
                    batch_size=batch_size, progress=lambda done, _: bar.update(1),
                )  # fmt: skip
            for i, pixels in zip(block, to_uint8(images)):
                save_png(pixels, _path(out, i))
    save_png(tiled(np.stack([load_png(_path(out, i)) for i in range(min(count, 64))])), out / "grid.png")


def _path(out: Path, index: int) -> Path:
    return out / f"{index:06d}.png"


def _take(out: Path, made_with: dict[str, Any]) -> None:
    record = out / "sampling.yaml"
    if record.exists():
        there = yaml.safe_load(record.read_text(encoding="utf-8"))
        differences = [f"{k} was {there.get(k)!r} and is now {v!r}" for k, v in made_with.items() if there.get(k) != v]
        if differences:
            raise RunError(f"{out} holds images made in another way, choose another folder: {'; '.join(differences)}")
    elif out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty and holds no samples of this program; choose another folder")
    else:
        write_text(record, yaml.safe_dump(made_with, sort_keys=False))
