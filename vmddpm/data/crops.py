"""Crops of a volume, resampled to the configured voxel size, with axes in radiological order."""

from collections.abc import Iterator
from itertools import product

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.slicing import Plane, frames_of, orientation_of, volume_planes
from vmddpm.data.transforms import choose_mode, display_range, narrowed

SIZE_TOLERANCE = 1e-3  # relative difference up to which two voxel sizes count as equal


def parts_of(image: nib.spatialimages.SpatialImage, config: DataConfig) -> Iterator[Plane]:
    """The slices of a volume, or its crops if `spatial_dims` is 3."""
    return volume_crops(image, config) if config.spatial_dims == 3 else volume_planes(image, config)


def volume_crops(image: nib.spatialimages.SpatialImage, config: DataConfig) -> Iterator[Plane]:
    """The crops of a volume, by frame, then by position: `config.shape` voxels of `config.spacing` millimetres.

    The axes are reordered and flipped to run as nearly as possible towards (superior, posterior, left), as in ITK and
    DICOM; oblique scans are not rotated. The file's slope is applied to intensities, which are normalised by the range
    of the whole volume.

    Args:
        image: 2-D to 4-D and real-valued; further axes must have length 1.

    Yields:
        Planes with pixels (D, H, W), the axis "volume" and the number of the crop.

    Raises:
        DataError: on other shapes or voxels, on several frames without a choice, on a volume smaller than a crop, and
            if no spacing is set.
    """
    orientation = orientation_of(image)
    if image.get_data_dtype().names is not None:
        raise DataError("has colours, and volumes are grey (channels 1); convert it, or exclude it with pattern")
    count = image.shape[3] if image.ndim > 3 else 1
    if count > 1 and config.frames == "all":
        raise DataError(
            f"has {count} frames along its last axis, which would mix modalities or times; choose one, for example "
            "with frames 0"
        )
    sizes = np.empty(3)
    sizes[orientation[:, 0].astype(int)] = nib.affines.voxel_sizes(image.affine)
    sizes = sizes[::-1]  # along superior, posterior, left
    if config.spacing is None:
        raise DataError(
            f"has voxels of {' x '.join(f'{side:.3g}' for side in sizes)} mm (depth, height, width), but spacing is "
            f"not set; set it, for example to {min(sizes):.3g}"
        )
    beyond = (0,) * (image.ndim - 4)
    for frame in frames_of(count, config):
        selection = (..., frame, *beyond) if image.ndim > 3 else (...,)
        stored = np.asarray(image.dataobj[selection])
        while stored.ndim < 3:
            stored = stored[..., None]
        voxels = nib.apply_orientation(narrowed(stored, None if stored.dtype.kind == "f" else 1), orientation)
        del stored  # frees as much memory as the voxels take
        voxels = voxels.transpose(2, 1, 0)[:, ::-1, ::-1]
        black, white = display_range(voxels, choose_mode(config, has_window=False, has_depth=False), config)
        finite = np.isfinite(voxels)
        if not finite.all():
            voxels = np.where(finite, voxels, voxels.dtype.type(black))
        voxels = resample(voxels, tuple(sizes.tolist()), config.voxel_sizes)
        for number, corner in enumerate(corners(voxels.shape, config)):
            box = tuple(slice(at, at + extent) for at, extent in zip(corner, config.shape[1:]))
            yield Plane(voxels[box], black, white, axis="volume", index=number, frame=frame)


def resample(voxels: np.ndarray, sizes: tuple[float, ...], wanted: tuple[float, ...]) -> np.ndarray:
    """Antialiased linear interpolation along each axis, which stays within the range of its input.

    Args:
        voxels: floats (D, H, W), all finite.
        sizes: voxel size in millimetres along each axis.
        wanted: voxel size of the result. The first voxel of the result begins where that of `voxels` begins, and the
            last ends no later than that of `voxels`.

    Returns:
        An array of the same dtype; the unchanged voxels if their size is as wanted.

    Raises:
        DataError: if the volume is smaller than one voxel of the wanted size.
    """
    result = torch.from_numpy(np.ascontiguousarray(voxels))
    for axis, (size, wanted_size) in enumerate(zip(sizes, wanted)):
        if abs(size / wanted_size - 1) <= SIZE_TOLERANCE:
            continue
        extent, factor = voxels.shape[axis], size / wanted_size
        count = int(extent * factor + SIZE_TOLERANCE)  # rounding must not drop the last voxel
        if count < 1:
            name = ("depth", "height", "width")[axis]
            raise DataError(
                f"is {extent * size:.3g} mm along its {name}, less than a voxel of spacing {wanted_size:g} mm; set a "
                "finer spacing"
            )
        rows = result.movedim(axis, -1)
        # With a scale factor instead of a size, sampling positions are exact even if the result ends before the volume.
        exact = factor if int(extent * factor) == count else count / extent * (1 + 1e-12)
        flat = F.interpolate(
            rows.reshape(1, 1, -1, extent), scale_factor=(1.0, exact), recompute_scale_factor=False, mode="bilinear",
            antialias=True,
        )  # fmt: skip
        result = flat.reshape(*rows.shape[:-1], count).movedim(-1, axis)
    return np.asarray(result.numpy())


def corners(shape: tuple[int, ...], config: DataConfig) -> Iterator[tuple[int, ...]]:
    """First voxels of the crops of a volume (D, H, W): of the centred crop, or of a crop every `stride` voxels and at
    the ends.

    Raises:
        DataError: if the volume is smaller than a crop.
    """
    extents = config.shape[1:]
    if any(length < extent for length, extent in zip(shape, extents)):
        sides = " x ".join(f"{side:g}" for side in config.voxel_sizes)
        raise DataError(
            f"has {' x '.join(map(str, shape))} voxels of {sides} mm (depth, height, width), less than a crop of "
            f"{' x '.join(map(str, extents))}; lower size or depth, or set a finer spacing"
        )
    if config.stride is None:
        yield tuple((length - extent) // 2 for length, extent in zip(shape, extents))
        return
    ends = [length - extent for length, extent in zip(shape, extents)]
    yield from product(*(sorted({*range(0, end + 1, config.stride), end}) for end in ends))
