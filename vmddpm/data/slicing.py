"""Slices of a volume, oriented as in papers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np

from vmddpm.data.config import AXES, DataConfig, DataError
from vmddpm.data.transforms import choose_mode, display_range, narrowed

# Share of the normalised range below which a pixel is background; above the noise of air in MR.
FOREGROUND_LEVEL = 0.05
DIMENSION_OF_AXIS = dict(zip(AXES, (2, 1, 0)))


@dataclass(frozen=True)
class SliceInfo:
    """The origin of an image.

    Attributes:
        path: the file, or a name such as "volume 0" for a volume in memory.
        axis: "axial", "coronal" or "sagittal"; "stored" for a DICOM or raster image, used as stored; "volume" for a
            crop of a volume.
        index: position along the axis, counted from left, posterior or inferior; 0 for "stored"; the number of a crop.
        frame: frame of a 4-D volume, multi-frame DICOM file or multi-page TIFF.
        height, width: size in the file, in pixels; 0 if unknown, as in a store.
        aspect: row spacing divided by column spacing.
    """

    path: str
    axis: str
    index: int
    frame: int
    height: int = field(default=0, compare=False)
    width: int = field(default=0, compare=False)
    aspect: float = field(default=1.0, compare=False)


@dataclass(frozen=True)
class Plane:
    """A slice before cropping, float32 pixels (H, W) or (H, W, 3), or a crop of a volume, (D, H, W), and its display
    range.

    Attributes:
        pixels: row 0 is the top; values in the file's own units. float64 if float32 would round them too much.
        black, white: the values shown as black and white; black is larger than white in an inverted image.
        spacing: row spacing and column spacing in millimetres.
        axis, index, frame: as in `SliceInfo`.
        note: a decision of the reader, for the report.
    """

    pixels: np.ndarray
    black: float
    white: float
    spacing: tuple[float, float] = (1.0, 1.0)
    axis: str = "stored"
    index: int = 0
    frame: int = 0
    note: str = ""


def volume_planes(image: nib.spatialimages.SpatialImage, config: DataConfig) -> Iterator[Plane]:
    """The slices of a volume, by frame, then by axis in the order of `config.axes`, then by position.

    The axes are reordered and flipped to run as nearly as possible to right, anterior and superior (oblique scans are
    not resampled). Slices have the radiological orientation: axial with anterior up, coronal and sagittal with superior
    up; the patient's right is on the left of axial and coronal images, anterior is on the left of sagittal ones.
    The file's slope is applied to intensities; each 3-D frame is normalised separately.

    Args:
        image: 2-D to 4-D, real-valued or of 8-bit colours (fields R, G, B); further axes must have length 1. One frame
            is in memory at a time.

    Raises:
        DataError: on other shapes or voxels, or if the requested frame does not exist.
    """
    orientation = orientation_of(image)
    beyond = (0,) * (image.ndim - 4)  # further axes of length 1
    for frame in frames_of(image.shape[3] if image.ndim > 3 else 1, config):
        selection = (..., frame, *beyond) if image.ndim > 3 else (...,)
        yield from _frame_planes(np.asarray(image.dataobj[selection]), image.affine, orientation, frame, config)


def orientation_of(image: nib.spatialimages.SpatialImage) -> np.ndarray:
    """The direction of each axis of a volume, as in nibabel's `io_orientation`.

    Raises:
        DataError: if the affine does not define it, or the image is not a volume of real numbers or 8-bit colours with
            2 to 4 axes.
    """
    dtype, shape = image.get_data_dtype(), image.shape
    if dtype.kind not in "biuf" and not _is_colour(dtype):
        raise DataError(f"has {dtype} voxels; real numbers or 8-bit colours are needed, convert it first")
    if 0 in shape:
        raise DataError(f"is empty, of shape {shape}")
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 4:
        raise DataError(f"has shape {image.shape}; a volume has 3 axes, or 4 with time")
    orientation = nib.io_orientation(image.affine)
    if np.isnan(orientation).any():
        raise DataError("its affine gives no orientation: an axis has no length, or is not finite")
    return np.asarray(orientation)


def _is_colour(dtype: np.dtype[Any]) -> bool:
    return dtype.names is not None and dtype.names[:3] == ("R", "G", "B") and dtype["R"] == np.uint8


def frames_of(count: int, config: DataConfig) -> Iterable[int]:
    if count == 1 or config.frames == "all":
        return range(count)
    frame = 0 if config.frames == "first" else int(config.frames)
    if frame >= count:
        raise DataError(f"has {count} frames, counted from 0; frames is {frame}")
    return [frame]


def _frame_planes(
    stored: np.ndarray, affine: np.ndarray, orientation: np.ndarray, frame: int, config: DataConfig
) -> Iterator[Plane]:
    if stored.ndim == 2:
        stored = stored[..., None]
    colour = stored.dtype.names is not None
    if colour:
        stored = np.stack([stored[name] for name in ("R", "G", "B")], -1)
    # First axis to the right, second to anterior, third to superior.
    voxels = nib.apply_orientation(narrowed(stored, step=None if stored.dtype.kind == "f" else 1), orientation)
    del stored  # frees as much memory as the voxels take, or twice that
    sizes = np.empty(3)
    sizes[orientation[:, 0].astype(int)] = nib.affines.voxel_sizes(affine)
    depth = 255 if colour else None
    mode = choose_mode(config, has_window=False, has_depth=colour)
    black, white = display_range(voxels, mode, config, depth)
    for axis in config.axes:
        across, up = (i for i in range(3) if i != DIMENSION_OF_AXIS[axis])
        for index, plane in enumerate(np.moveaxis(voxels, DIMENSION_OF_AXIS[axis], 0)):
            # Row 0 is the most superior or anterior, column 0 the most right or anterior.
            pixels = np.swapaxes(plane[::-1, ::-1], 0, 1)
            yield Plane(pixels, black, white, (float(sizes[up]), float(sizes[across])), axis, index, frame)


def foreground_share(image: np.ndarray) -> float:
    """Share of pixels of a float image (C, H, W) in [-1, 1] that are above 5 % of the range in any channel."""
    return float((image.max(axis=0) > 2 * FOREGROUND_LEVEL - 1).mean())
