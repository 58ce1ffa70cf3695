"""Sets of 8-bit images for the metrics: their features, and downsampled versions for comparing pixels."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vmddpm.errors import InputError
from vmddpm.evaluation.extractor import Extractor
from vmddpm.nifti import read_nifti_voxels

PIXEL_SIDE = 32  # pixels are compared at 32 x 32, where noise matters little
VOXEL_SIDE = 10  # voxels are compared at 10 x 10 x 10


class Images(Protocol):
    """A sequence of images, each float32 (C, H, W) in [-1, 1], or volumes, each (C, D, H, W): a SliceDataset, a
    SampleFolder, or a tensor."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Tensor: ...


class SampleFolder:
    """The images in a folder of `vmddpm sample`: 000000.png, 000001.png ..., 000000.nii.gz ... for volumes, or blocks,
    images-00000000.npy.

    Args:
        path: the folder.
        limit: use only this many images, the first ones.

    Raises:
        InputError: if there are no images, or fewer than `limit`; on access, if an image is damaged or differs in
            shape.
    """

    def __init__(self, path: str | Path, limit: int | None = None) -> None:
        blocks = sorted(Path(path).glob("images-*.npy"))
        self.locations: list[tuple[Path, int | None]] = [  # the file, and the row in it
            (block, row) for block in blocks for row in range(len(_block(block)))
        ] or [
            (p, None) for suffix in (".png", ".nii.gz") for p in sorted(Path(path).glob(f"*{suffix}"))
            if p.name.removesuffix(suffix).isdigit()
        ]  # fmt: skip
        if not self.locations or len(self.locations) < (limit or 0):
            wanted = f"{limit} are needed" if limit else "nothing to evaluate"
            raise InputError(f"{path} holds {len(self.locations)} numbered images (000000.png ...): {wanted}; "
                             f"draw them with vmddpm sample --out {path}")  # fmt: skip
        self.locations = self.locations[:limit]
        self._shape: tuple[int, ...] | None = None  # shape of the first image read

    def __len__(self) -> int:
        return len(self.locations)

    def check_shapes(self, shape: tuple[int, ...]) -> None:
        """Check the headers of all files, a fast check before features are computed.

        Raises:
            InputError: naming the first file with images that are not 8-bit or not of this shape (C, H, W).
        """
        for path in dict.fromkeys(path for path, _ in self.locations):
            if path.suffix == ".npy":
                block = _block(path)
                kind, found = str(block.dtype), block.shape[-1:] + block.shape[1:-1]
            elif path.suffix == ".gz":
                kind, found = "uint8", (1, *read_nifti_voxels(path).shape)
            else:
                kind, found = _header(path)
            if kind != "uint8" or found != shape:
                raise InputError(
                    f"{path} holds {kind} images with channels and pixels {found}, the training images have {shape}; "
                    "give samples of the same run"
                )

    def __getitem__(self, i: int) -> Tensor:
        path, row = self.locations[i]
        pixels = _picture(path) if row is None else np.array(_block(path)[row])
        self._shape = self._shape or pixels.shape
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] not in (1, 3):
            raise InputError(f"{path}: {pixels.dtype} of shape {pixels.shape}; samples are 8-bit, grey or RGB")
        if pixels.shape != self._shape:
            raise InputError(f"{path}: has shape {pixels.shape}, other samples {self._shape}; all need the same")
        return torch.from_numpy(pixels).movedim(-1, 0).float() / 127.5 - 1


def _picture(path: Path) -> np.ndarray:
    """Read a PNG file of `vmddpm sample`, uint8 (H, W, C), or a NIfTI file, (D, H, W, C)."""
    if path.suffix == ".gz":
        return np.array(read_nifti_voxels(path)[..., None])
    try:
        with Image.open(path) as image:
            return np.atleast_3d(np.array(image))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all of these on damaged files
        raise InputError(f"{path} cannot be read ({error}); draw it again with vmddpm sample") from error


def _header(path: Path) -> tuple[str, tuple[int, ...]]:
    """The dtype and the shape (C, H, W) from the header of a PNG file."""
    try:
        with Image.open(path) as image:
            kind = "uint8" if image.mode in ("L", "RGB") else f"{image.mode} mode"
            return kind, (len(image.getbands()), image.height, image.width)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); draw it again with vmddpm sample") from error


def _block(path: Path) -> np.ndarray:
    """A memory-mapped block of images of `vmddpm sample`, uint8 (n, H, W, C) or (n, D, H, W, C)."""
    try:
        block = np.load(path, mmap_mode="r")
    except Exception as error:  # on damaged headers, numpy also raises its parser's errors
        raise InputError(f"{path} cannot be read ({error}); draw it again with vmddpm sample") from error
    return np.atleast_1d(block)


class ImageFeatures(NamedTuple):
    """The features of a set of n images; the tensors are memory-mapped files."""

    features: Tensor  # float32 (n, d)
    mirrored: Tensor | None  # float32 (n, d), features of the images mirrored left to right
    pixels: Tensor  # float32 (n, 32 * 32) or (n, 10 * 10 * 10), grey, in [0, 1]
    images_per_second: float


def quantised(image: Tensor) -> Tensor:
    """float (C, H, W) in [-1, 1] -> uint8, rounded to the nearest level."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().byte()


def small_pixels(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> float32 (B, 1024), or (B, C, D, H, W) -> (B, 1000)."""
    grey = images.float().mean(1, keepdim=True) / 255
    if images.dim() == 5:
        return F.adaptive_avg_pool3d(grey, VOXEL_SIDE).flatten(1)
    return F.interpolate(grey, (PIXEL_SIDE, PIXEL_SIDE), mode="bilinear", antialias=True).flatten(1)


def mirrored_pixels(pixels: Tensor) -> Tensor:
    """`small_pixels` of the images mirrored left to right."""
    sides = (PIXEL_SIDE,) * 2 if pixels.shape[1] == PIXEL_SIDE**2 else (VOXEL_SIDE,) * 3
    return torch.unflatten(pixels, 1, sides).flip(-1).flatten(1)


def describe_images(
    images: Images,
    extractor: Extractor,
    *,
    mirror: bool = False,
    batch_size: int = 32,
    progress: Callable[[int], object] | None = None,
) -> ImageFeatures:
    """Compute the features of all images in batches; memory does not grow with the number of images.

    Args:
        images: see `Images`.
        extractor: an extractor from `load_extractor`.
        mirror: also compute the features of the mirrored images.
        batch_size: images at a time.
        progress: called with the number of images done.
    """
    began, rows, stores = time.perf_counter(), len(images), {}
    for first in range(0, rows, batch_size):
        batch = torch.stack([quantised(images[i]) for i in range(first, min(first + batch_size, rows))])
        found = {"features": extractor(batch), "pixels": small_pixels(batch)}
        if mirror:
            found["mirrored"] = extractor(batch.flip(-1))
        for name, values in found.items():
            if name not in stores:
                stores[name] = _memory_mapped(rows, values.shape[1])
            stores[name][first : first + len(batch)] = values.cpu()
        if progress is not None:
            progress(first + len(batch))
    if not stores:
        raise InputError("there is no image to describe")
    speed = rows / (time.perf_counter() - began)
    return ImageFeatures(stores["features"], stores.get("mirrored"), stores["pixels"], speed)


def _memory_mapped(rows: int, columns: int) -> Tensor:
    """A float32 tensor (rows, columns) in a temporary file, which is removed with the tensor."""
    with tempfile.NamedTemporaryFile(prefix="vmddpm-features-") as file:
        file.truncate(4 * rows * columns)
        return torch.from_file(file.name, shared=True, size=rows * columns).view(rows, columns)
