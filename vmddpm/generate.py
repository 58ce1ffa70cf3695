"""Draws images from a run folder, block by block, in one process or many."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn
from tqdm import tqdm

from vmddpm.baselines.config import GANS
from vmddpm.baselines.networks import Generator, draw
from vmddpm.data import SliceDataset
from vmddpm.data.pairs import condition_data
from vmddpm.devices import choose_device
from vmddpm.diffusion import make_scheduler, sample
from vmddpm.diffusion.guidance import check_guidance
from vmddpm.diffusion.sampling import check_batch
from vmddpm.errors import InputError
from vmddpm.files import sha256
from vmddpm.model import VMDDPM
from vmddpm.numbers import check_seed
from vmddpm.samples import Format, Samples, check_count
from vmddpm.training.conditions import (
    class_rows,
    condition_names,
    conditions_to_draw,
    refuse_other_classes,
    separator_of,
    split_classes,
)
from vmddpm.training.config import RunConfig
from vmddpm.training.pictures import to_uint8
from vmddpm.training.ranks import rank_and_count
from vmddpm.training.run_folder import RunFolder


def load_to_draw(folder: RunFolder, config: RunConfig, weights: str, device: str) -> nn.Module:
    """The network of a run with its "ema" or "raw" weights, on a device.

    Raises:
        RunError: if the weights are missing, damaged, or for classes that differ from the run's configuration.
        InputError: on an unknown kind of weights, or an unusable device.
    """
    if weights not in ("ema", "raw"):
        raise InputError(f"weights is {weights!r}; it must be one of ema, raw")
    model = folder.load_model(weights).to(choose_device(device, scans=config.system == "vmddpm"))
    if isinstance(model, VMDDPM):
        refuse_other_classes(config.model.classes, model.config.classes, str(folder.weights(weights)))
    return model


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
    file_format: Format | None = None,
    device: str = "auto",
    compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = "no",
    progress: bool = True,
    class_name: str | None = None,
    guidance: float = 1.0,
    condition_images: str | None = None,
) -> int:
    """Write images 0 to count - 1 of a seed to the folder `out`, see `samples`; return the number that this process
    drew.

    Image i depends on i and the sampling options, not on `count` or the number of processes, so repeating an
    interrupted call resumes it: complete blocks are skipped. Under `torchrun`, each of n processes draws every n-th
    block, if it is missing; processes do not wait for each other, and the last one finishes the folder. GANs ignore
    `sampler` and `steps`.

    Args:
        ordered: scan in order, however the network was trained (overrides `regeneration_at_sampling` of its config).
        file_format: "png" for images or "nifti" for volumes, with a file each, or "npy", with a file per block; by
            default a file each.
        compile: mode of torch.compile; "reduce-overhead" replays the GPU's work as CUDA graphs.
        class_name: class of the images, or several classes joined by the separator of the run's labels; None cycles
            through the classes of the run.
        guidance: guidance scale; 0 draws without the condition, bit for bit, and 1 with it.
        condition_images: folder of images to condition on, read like condition.image of the run. Image i is conditioned
            on the i-th of them, starting again with the first after the last.

    Raises:
        RunError: if the run lacks these weights, or `out` holds anything else, or images drawn with other options.
        InputError: on unusable options.
    """
    check_count("images", count)
    check_batch("batch_size", batch_size)
    check_seed("seed", seed)
    choices = {"weights": (weights, ("ema", "raw")), "format": (file_format, (None, "png", "nifti", "npy")),
               "compile": (compile, ("no", "default", "reduce-overhead", "max-autotune"))}  # fmt: skip
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; it must be one of {', '.join(filter(None, allowed))}")
    folder = RunFolder(run)
    config = folder.load_config()
    volumes = config.data.spatial_dims == 3
    file_format = file_format or ("nifti" if volumes else "png")
    if file_format == ("png" if volumes else "nifti"):
        drawn = "volumes; it must be nifti or npy" if volumes else "images; it must be png or npy"
        raise InputError(f"format is {file_format!r}, but {folder.path} draws {drawn}")
    if config.system in GANS:
        sampler, steps = "none", 1
    else:
        steps = config.diffusion.timesteps if steps is None else steps
        make_scheduler(config.diffusion, sampler, steps)  # refuses bad options before anything is written
    if ordered and config.system != "vmddpm":
        raise InputError(f"ordered is only for vmddpm; {config.system} has no scans")
    check_guidance(guidance)
    condition_kinds = condition_names(config.model)
    if not condition_kinds and (guidance != 1 or class_name is not None or condition_images is not None):
        raise InputError(f"{run} was trained without a condition; leave class, guidance and condition-images out")
    if guidance != 1 and config.condition.dropout == 0:
        raise InputError(f"guidance is {guidance:g}, but {run} has condition.dropout 0: it was not trained without its "
                         "condition, so guidance must be 1")  # fmt: skip
    classes = None if class_name is None else split_classes(class_name, config)
    paired_images = None if condition_images is None else SliceDataset(
        condition_data(replace(config.condition, image=condition_images), config.data), progress=progress
    )  # fmt: skip
    conditions = conditions_to_draw(config.model, paired_images, classes)
    model = load_to_draw(folder, config, weights, device)
    if ordered and isinstance(model, VMDDPM):
        model.config = replace(model.config, regeneration_at_sampling=False)
    if compile != "no":
        model.compile(mode=compile)
    spacing = config.data.voxel_sizes if volumes else ()
    samples = Samples(Path(out), count, batch_size, file_format, spacing)
    digest = sha256(folder.weights(weights) / "model.safetensors")
    made_with: dict[str, Any] = {"run": folder.path.resolve().name, "weights": weights, "weights_sha256": digest}
    made_with |= {"sampler": sampler, "steps": steps, "seed": seed, "batch_size": batch_size, "format": file_format}
    made_with |= {"compile": compile, "ordered": ordered}
    made_with |= {"spacing": list(spacing)} if volumes else {}
    if condition_kinds:
        made_with |= {"classes": list(config.model.classes), "class": class_name, "guidance": guidance}
    if paired_images is not None:
        made_with["condition_images_sha256"] = hashlib.sha256(paired_images.checksums().tobytes()).hexdigest()
    samples.create_or_resume(made_with)
    shape = config.data.shape
    rank, ranks = rank_and_count()
    own_blocks = [block for block in samples.missing() if block.start // batch_size % ranks == rank]
    with tqdm(total=len(own_blocks) * steps, unit="step", disable=not progress or rank > 0, dynamic_ncols=True) as bar:
        for block in own_blocks:
            bar.set_description(f"images {block.start}-{block.stop - 1} of {count}")
            if isinstance(model, Generator):
                images = draw(model, block, seed=seed)
                bar.update()
            else:
                images = sample(
                    model, block, shape, config=config.diffusion, sampler=sampler, steps=steps, seed=seed,
                    batch_size=batch_size, progress=lambda done, _: bar.update(1), conditions=conditions,
                    guidance=guidance,
                )  # fmt: skip
            samples.write(block, to_uint8(images))
    if not samples.missing():
        if config.model.classes and guidance > 0:
            rows = class_rows(config.model.classes, classes)
            samples.write_labels(config.model.classes, rows, separator_of(config) or "|", folder.class_counts())
        samples.finish()
    return sum(map(len, own_blocks))
