"""From a volume to its slices, the way up they are shown in papers."""

from collections.abc import Iterator
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from vmddpm.data.config import AXES, DataConfig, DataError
from vmddpm.data.transforms import choose_mode, display_range

# Share of the normalised range under which a pixel counts as background: above the noise of air in MR.
FOREGROUND_LEVEL = 0.05
THROUGH = dict(zip(AXES, (2, 1, 0)))


@dataclass(frozen=True)
class SliceInfo:
    """Where an image comes from.

    Attributes:
        path: the file, or a name such as "volume 0" for one from memory.
        axis: "axial", "coronal" or "sagittal"; "stored" for a DICOM or raster image, taken as it was stored.
        index: place along the axis, counted from left, posterior or inferior; 0 for "stored".
        frame: frame of a 4-D volume, multi-frame DICOM file or multi-page TIFF.
    """

    path: str
    axis: str
    index: int
    frame: int


@dataclass(frozen=True)
class Plane:
    """One slice before cropping: float32 pixels (H, W) or (H, W, 3), and how to show them.

    Attributes:
        pixels: row 0 is the top; values in the file's own units.
        black, white: the values shown black and white; black is the larger in an inverted image.
        spacing: millimetres from row to row and from column to column.
        axis, index, frame: as in `SliceInfo`.
    """

    pixels: np.ndarray
    black: float
    white: float
    spacing: tuple[float, float] = (1.0, 1.0)
    axis: str = "stored"
    index: int = 0
    frame: int = 0


def volume_planes(image: nib.spatialimages.SpatialImage, config: DataConfig) -> Iterator[Plane]:
    """The slices of a volume, by frame, then by axis in the config's order, then by place.

    The voxels are put in the nearest order to right-anterior-superior (oblique scans are not resampled) and
    shown as radiologists see them: axial with anterior up, coronal and sagittal with superior up; the
    patient's right is on the left of axial and coronal images, anterior is on the left of sagittal ones.
    Intensities have the file's slope applied; each 3-D frame is normalised by itself.

    Args:
        image: 2-D to 4-D, real-valued; further axes must have length 1. One frame is in memory at a time.

    Raises:
        DataError: on other shapes, complex or colour voxels.
    """
    if image.get_data_dtype().kind not in "biuf":
        raise DataError(f"has {image.get_data_dtype()} voxels; real numbers are needed, convert it first")
    if 0 in image.shape:
        raise DataError(f"is empty, of shape {image.shape}")
    if image.ndim > 4:
        image = nib.squeeze_image(image)
    if not 2 <= image.ndim <= 4:
        raise DataError(f"has shape {image.shape}; a volume has 3 axes, or 4 with time")
    for frame in range(image.shape[3] if image.ndim == 4 and config.frames == "all" else 1):
        yield from _frame_planes(image.slicer[..., frame] if image.ndim == 4 else image, frame, config)


def _frame_planes(image: nib.spatialimages.SpatialImage, frame: int, config: DataConfig) -> Iterator[Plane]:
    if image.ndim == 2:
        image = nib.Nifti1Image(np.asarray(image.dataobj, np.float32)[..., None], image.affine)
    canonical = nib.as_closest_canonical(image)
    voxels = np.asarray(canonical.dataobj, np.float32)  # (right, anterior, superior)
    sizes = nib.affines.voxel_sizes(canonical.affine)
    mode = choose_mode(config, has_window=False, has_depth=False)
    black, white = display_range(voxels, mode, config)
    for axis in config.axes:
        across, up = (i for i in range(3) if i != THROUGH[axis])
        for index, plane in enumerate(np.moveaxis(voxels, THROUGH[axis], 0)):
            # Superior or anterior comes first down the rows, right or anterior first along the columns.
            pixels = plane[::-1, ::-1].T
            yield Plane(pixels, black, white, (float(sizes[up]), float(sizes[across])), axis, index, frame)


def foreground_share(image: np.ndarray) -> float:
    """Share of the pixels of a float image (C, H, W) in [-1, 1] above 5 % of the range in any channel."""
    return float((image.max(axis=0) > 2 * FOREGROUND_LEVEL - 1).mean())
