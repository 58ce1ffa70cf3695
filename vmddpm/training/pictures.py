"""Grids of images and the loss curve, as PNG files."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image
from torch import Tensor

from vmddpm.files import atomic_write
from vmddpm.training.errors import RunError


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, C, ...) in [-1, 1] -> uint8 (B, ..., C), rounded to the nearest of 256 levels."""
    levels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
    return levels.byte().movedim(1, -1).numpy()


def grid(images: Tensor, margin: int = 2) -> np.ndarray:
    """Images (B, C, H, W) in [-1, 1] as a grid, as square as possible: uint8 (H, W, C). Volumes (B, C, D, H, W) are
    shown by their three middle planes."""
    return tiled(to_uint8(images), margin)


def three_planes(volumes: np.ndarray) -> np.ndarray:
    """uint8 (B, D, H, W, C) -> (B, side, 3 side, C): the axial, coronal and sagittal planes through the middle.

    Anterior or superior is up. The patient's right is on the left; in the sagittal plane, anterior is."""
    depth, height, width = volumes.shape[1:4]
    planes = (
        volumes[:, depth // 2],
        volumes[:, ::-1, height // 2],
        volumes[:, ::-1, :, width // 2],
    )
    side = max(depth, height, width)
    padded = [
        np.pad(plane, ((0, 0), *(((side - n) // 2, side - n - (side - n) // 2) for n in plane.shape[1:3]), (0, 0)))
        for plane in planes
    ]
    return np.concatenate(padded, axis=2)


def tiled(tiles: np.ndarray, margin: int = 2) -> np.ndarray:
    """uint8 (B, H, W, C) -> one picture, uint8 (H, W, C); volumes (B, D, H, W, C) are shown by three planes each."""
    if tiles.ndim == 5:
        tiles = three_planes(tiles)
    columns = math.ceil(math.sqrt(len(tiles) * tiles.shape[1] / tiles.shape[2]))
    rows = math.ceil(len(tiles) / columns)
    padded = np.pad(tiles, ((0, rows * columns - len(tiles)), (0, margin), (0, margin), (0, 0)))
    canvas: np.ndarray = rearrange(padded, "(rows columns) h w c -> (rows h) (columns w) c", rows=rows)
    return canvas[: canvas.shape[0] - margin, : canvas.shape[1] - margin]


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Save uint8 (H, W, 1 or 3)."""
    with atomic_write(path) as temporary:
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(temporary)


def load_png(path: Path) -> np.ndarray:
    """Load uint8 (H, W, 1 or 3). Raises RunError if the file is missing or damaged."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
        raise RunError(f"{path} cannot be read ({error}); remove it and run the `vmddpm sample` that made it "
                       "again") from error  # fmt: skip
    return pixels[..., None] if pixels.ndim == 2 else pixels


def save_loss_curve(metrics: list[dict[str, Any]], path: Path) -> None:
    """Plot every loss of the logged steps (at least one) and its running median."""
    from matplotlib.figure import Figure

    steps = np.array([line["step"] for line in metrics])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    names = [name for name in metrics[0] if name == "loss" or name.endswith("_loss")]
    lowest, window = 1.0, max(1, len(steps) // 30)
    for number, name in enumerate(names):
        losses = np.array([line[name] for line in metrics], float)
        lowest = min(lowest, losses.min())
        label = name.replace("_", " ")
        axes.plot(steps, losses, color=f"C{number}", alpha=0.3, linewidth=0.8, label=label)
        if window > 1:
            padded = np.pad(losses, (window // 2, window - 1 - window // 2), mode="edge")
            running = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)
            axes.plot(steps, running, color=f"C{number}", label=f"{label}, running median")
    if lowest > 0:
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="loss", title="Training loss")
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
