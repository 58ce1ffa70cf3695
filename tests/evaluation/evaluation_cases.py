"""Any number of real slices, and an extractor in a file."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from nilearn.datasets import load_mni152_template

from vmddpm.data import DataConfig, from_volumes
from vmddpm.evaluation import ExtractorConfig
from vmddpm.evaluation.extractor import random_convolutions


@lru_cache(maxsize=1)
def slices():
    """Slices (n, 1, 64, 64) in [-1, 1] of a real brain, in three directions."""
    config = DataConfig(size=64, axes=["axial", "coronal", "sagittal"], min_foreground=0.2)
    dataset = from_volumes([load_mni152_template(resolution=4)], config)
    return torch.stack([dataset[i] for i in range(len(dataset))])


def patients(count, seed):
    """`count` images of as many people: real slices, each with its own deformation, rotation and brightness."""
    generator = torch.Generator().manual_seed(seed)
    images = slices()[torch.randint(len(slices()), (count,), generator=generator)]
    angle, scale = torch.randn(count, generator=generator) * 0.3, 1 + torch.randn(count, generator=generator) * 0.1
    shift = torch.randn(count, 2, generator=generator) * 0.1
    theta = torch.stack(
        [torch.stack([scale * angle.cos(), -angle.sin(), shift[:, 0]], 1),
         torch.stack([angle.sin(), scale * angle.cos(), shift[:, 1]], 1)], 1
    )  # fmt: skip
    bend = torch.randn(count, 2, 4, 4, generator=generator) * 0.06
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    grid = grid + F.interpolate(bend, (64, 64), mode="bicubic").permute(0, 2, 3, 1)
    light = F.interpolate(torch.randn(count, 1, 3, 3, generator=generator) * 0.15 + 1, (64, 64), mode="bicubic")
    return (((F.grid_sample(images, grid, align_corners=False) + 1) * light) - 1).clamp(-1, 1)


def extractor_file(folder):
    """A TorchScript file of fixed random convolutions, and its configuration."""
    path = folder / "features.pt"
    torch.jit.script(random_convolutions()).save(str(path))
    return ExtractorConfig(path=str(path), size=64)
