"""The picture of the demo."""

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from vmddpm.files import atomic_write
from vmddpm.training.pictures import grid


def save_comparison(real: Tensor, synthetic: Tensor, path: Path, titles: tuple[str, str]) -> None:
    """Two grids of images (n, 1, size, size), or volumes, in [-1, 1], side by side, under their titles."""
    figure = Figure(figsize=(12, 6.4), layout="constrained", facecolor="white")
    for axes, images, title in zip(figure.subplots(1, 2), (real, synthetic), titles):
        axes.imshow(grid(images).squeeze(2), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title)
        axes.set_axis_off()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
