"""Redraws regions of real images with the model of a run, block by block, in one process or many."""

import csv
import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vmddpm.data import DataError, SliceDataset
from vmddpm.data.conditions import ConditionConfig
from vmddpm.data.pairs import condition_data, pair, refuse_stores
from vmddpm.diffusion import inpaint
from vmddpm.diffusion.guidance import check_guidance
from vmddpm.diffusion.inpainting import check_inpainting, walk
from vmddpm.diffusion.sampling import check_batch
from vmddpm.errors import InputError
from vmddpm.files import sha256, write_text
from vmddpm.generate import load_to_draw
from vmddpm.numbers import check_seed
from vmddpm.samples import Samples
from vmddpm.training.conditions import condition_names, conditions_to_draw, split_classes
from vmddpm.training.pictures import to_uint8
from vmddpm.training.ranks import rank_and_count
from vmddpm.training.run_folder import RunFolder

NONZERO_WINDOW = (0.5, 1.0)  # window of masks: 0 is black, 1 and above is white


def inpaint_images(
    run: str | Path,
    real: str,
    masks: str,
    out: str | Path,
    *,
    pattern: str = "*",
    mask_pattern: str = "*",
    sampler: str = "ddpm",
    steps: int | None = None,
    jump: int = 10,
    resamplings: int = 10,
    seed: int = 0,
    batch_size: int = 16,
    weights: str = "ema",
    device: str = "auto",
    class_name: str | None = None,
    guidance: float = 1.0,
    progress: bool = True,
) -> int:
    """Redraw the masked region of each image, without changing the rest; return the number of images.

    `out` becomes a folder like that of `vmddpm sample`, with sources.csv, which names the original of each image.
    Repeating an interrupted call resumes it, and processes share the work under `torchrun`.

    Args:
        run: folder of a run of vmddpm or unet, with or without classes, but without condition images.
        real: folder of images, read like the run's data, with all slices.
        masks: folder with a mask for each image, of the same name and size, see `ConditionConfig.image_pattern`.
            Nonzero pixels are redrawn. Slices with an empty mask are left out.
        pattern, mask_pattern: shell patterns of the files.
        sampler, steps, jump, resamplings: see `diffusion.inpaint`.
        seed, batch_size, weights, device: as for `generate`.
        class_name, guidance: class of the region, and guidance scale, as for `generate`.

    Raises:
        RunError: if the run lacks these weights, or `out` holds anything else.
        DataError: if an image has no mask or one of another size, or all masks are empty.
        InputError: on unusable options.
    """
    check_batch("batch_size", batch_size)
    check_seed("seed", seed)
    check_guidance(guidance)
    folder = RunFolder(run)
    config = folder.load_config()
    if config.system not in ("vmddpm", "unet"):
        raise InputError(f"{run} is a {config.system}; only diffusion models can redraw a region")
    if config.data.spatial_dims == 3:
        raise InputError(f"{run} draws volumes, but only regions of images can be redrawn; choose a run of images")
    if config.model.condition_channels:
        raise InputError(f"{run} was trained with condition images, which redrawing does not take; choose another run")
    if not condition_names(config.model) and (guidance != 1 or class_name is not None):
        raise InputError(f"{run} was trained without a condition; leave class and guidance out")
    steps = min(250, config.diffusion.timesteps) if steps is None else steps
    check_inpainting(config.diffusion, sampler, steps, jump, resamplings)
    conditions = None
    if config.model.classes and class_name is not None:
        conditions = conditions_to_draw(config.model, None, split_classes(class_name, config))
    data = replace(config.data, root=real, pattern=pattern, split="train", limit=None, min_foreground=0.0)
    masked = ConditionConfig(
        image=masks, image_pattern=mask_pattern, image_normalize="window", image_window=NONZERO_WINDOW
    )
    refuse_stores(masked, data)
    model = load_to_draw(folder, config, weights, device)
    originals = SliceDataset(data, progress=progress)
    mask_images = SliceDataset(condition_data(masked, data), progress=progress)
    indices = pair(originals, mask_images)
    marked = [(i, index) for i, index in enumerate(indices) if bool((mask_images[index] > 0).any())]
    if not marked:
        raise DataError(f"{masks}: all {len(indices)} masks are empty; mark the region to redraw with nonzero pixels")
    samples = Samples(Path(out), len(marked), batch_size, "png")
    made_with: dict[str, Any] = {
        "run": folder.path.resolve().name, "weights": weights,
        "weights_sha256": sha256(folder.weights(weights) / "model.safetensors"), "inpainting": "RePaint",
        "sampler": sampler, "steps": steps, "jump": jump, "resamplings": resamplings, "seed": seed,
        "batch_size": batch_size, "format": "png", "class": class_name, "guidance": guidance,
        "images_sha256": hashlib.sha256(originals.checksums().tobytes()).hexdigest(),
        "masks_sha256": hashlib.sha256(mask_images.checksums()[indices].tobytes()).hexdigest(),
    }  # fmt: skip
    samples.create_or_resume(made_with)
    text = io.StringIO()
    rows = ((f"{n:06d}.png", originals.slices[i]) for n, (i, _) in enumerate(marked))
    table = [(name, info.path, info.axis, info.index, info.frame) for name, info in rows]
    csv.writer(text, lineterminator="\n").writerows([("file", "source", "axis", "index", "frame"), *table])
    write_text(samples.folder / "sources.csv", text.getvalue().encode(errors="backslashreplace").decode())
    rank, ranks = rank_and_count()
    own_blocks = [block for block in samples.missing() if block.start // batch_size % ranks == rank]
    passes = sum(to < level for level, to in walk(steps, jump, resamplings))
    with tqdm(total=len(own_blocks) * passes, unit="step", disable=not progress or rank > 0, dynamic_ncols=True) as bar:
        for block in own_blocks:
            bar.set_description(f"images {block.start}-{block.stop - 1} of {len(marked)}")
            filled = inpaint(
                model, lambda n: originals[marked[n][0]],
                lambda n: (mask_images[marked[n][1]] > 0).any(0, keepdim=True), block,
                config=config.diffusion, sampler=sampler, steps=steps, jump=jump, resamplings=resamplings, seed=seed,
                batch_size=batch_size, progress=lambda done, _: bar.update(1), conditions=conditions, guidance=guidance,
            )  # fmt: skip
            samples.write(block, to_uint8(filled))
    if not samples.missing():
        samples.finish()
    return len(marked)
