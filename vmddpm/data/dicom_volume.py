"""A volume from the files of a DICOM series, with slices sorted by their position in the patient."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pydicom

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.dicom import decoded, frame_values
from vmddpm.data.dicom_attributes import named, numbers_of, photometric_of
from vmddpm.data.files import inflated, open_regular
from vmddpm.data.limits import check_voxels
from vmddpm.data.remarks import Excluded

RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from DICOM's axes to nibabel's
SPACING_TOLERANCE = 0.01  # relative tolerance of the distances between slices
TILT = 0.02  # largest sideways share of the step between slices: about one degree
# Attributes of a frame's position, each with its functional group in enhanced objects and its number of values.
PLACES = {
    "ImageOrientationPatient": ("PlaneOrientationSequence", 6),
    "ImagePositionPatient": ("PlanePositionSequence", 3),
    "PixelSpacing": ("PixelMeasuresSequence", 2),
}


class PlacedSlice(NamedTuple):
    """A slice in modality units, and its position in millimetres towards left, posterior and superior."""

    pixels: np.ndarray  # (H, W), NaN at padding
    across: np.ndarray  # (3,), from column to column
    down: np.ndarray  # (3,), from row to row
    corner: np.ndarray  # (3,), position of the first pixel
    thickness: float  # NaN if unknown


def series_volume(paths: Sequence[Path], config: DataConfig) -> nib.Nifti1Image:
    """The volume of the files of one series, without files that the configuration's filters leave out.

    Windows in the files apply to single slices and are ignored.

    Raises:
        Excluded: if the filters leave out every file.
        DataError: if slices have no position, different directions or sizes, unequal distances, the same position, or a
            tilt; as `read_dicom` if a file cannot be read.
    """
    slices: list[PlacedSlice] = []
    excluded: Excluded | None = None
    for path in paths:
        try:
            with open_regular(path) as file:
                slices += _placed(*decoded(inflated(file, config), config)[:2])
        except Excluded as error:
            excluded = error
        except DataError as error:
            raise error if len(paths) == 1 else DataError(f"its slice {path.name} {error}") from error
        check_voxels([sum(one.pixels.size for one in slices)], config)
    if not slices:
        raise excluded or DataError("holds no slice")
    first = slices[0]
    for other in slices:
        if other.pixels.shape != first.pixels.shape:
            raise DataError(
                f"its slices have {' x '.join(map(str, first.pixels.shape))} and "
                f"{' x '.join(map(str, other.pixels.shape))} pixels; select one kind with image_type or series"
            )
        if not (np.allclose(other.across, first.across, rtol=1e-3, atol=1e-4)
                and np.allclose(other.down, first.down, rtol=1e-3, atol=1e-4)):  # fmt: skip
            raise DataError(
                "its slices have several directions or pixel spacings, as in a localiser; select others "
                "with image_type or series"
            )
    normal = np.cross(first.across, first.down)
    normal /= np.linalg.norm(normal)
    slices.sort(key=lambda one: float(one.corner @ normal))
    affine = np.eye(4)
    affine[:3, :3] = np.stack([first.across, first.down, _step(slices, normal)], 1)
    affine[:3, 3] = slices[0].corner
    voxels = np.stack([one.pixels.T for one in slices], 2)
    return nib.Nifti1Image(voxels, RAS_OF_LPS @ affine)


def _step(slices: list[PlacedSlice], normal: np.ndarray) -> np.ndarray:
    """The vector (3,) from one slice to the next."""
    if len(slices) == 1:
        thickness = slices[0].thickness
        if not thickness > 0:
            raise DataError(f"is a single slice without {named('SliceThickness')}, not a volume; exclude it by pattern")
        return normal * thickness
    gaps = np.diff([float(one.corner @ normal) for one in slices])
    usual = float(np.median(gaps))
    if gaps.min() < SPACING_TOLERANCE * max(usual, 1e-3):
        raise DataError(
            "has several slices at one position, as with several echoes, times or reconstructions; select one kind "
            "with image_type or series, or split the series"
        )
    if np.abs(gaps - usual).max() > SPACING_TOLERANCE * usual:
        raise DataError(
            f"its slices lie {gaps.min():.4g} to {gaps.max():.4g} mm apart: slices are missing, or it needs "
            "resampling, for example with dcm2niix"
        )
    step = (slices[-1].corner - slices[0].corner) / (len(slices) - 1)
    if float(np.linalg.norm(step - (step @ normal) * normal)) > TILT * usual:
        raise DataError("its slices are sheared, as by a tilted gantry; resample it, for example with dcm2niix")
    return np.asarray(step)


def _placed(dataset: pydicom.FileDataset, stored: np.ndarray) -> list[PlacedSlice]:
    photometric = photometric_of(dataset)
    if stored.ndim == 4 or photometric != "MONOCHROME2":
        raise DataError(f"has {named('PhotometricInterpretation')} {photometric}; volumes need MONOCHROME2")
    slices = []
    for frame, pixels in enumerate(frame_values(dataset, stored)):
        orientation, corner, spacing = (_numbers(dataset, frame, keyword) for keyword in PLACES)
        across, down = orientation[:3], orientation[3:]
        lengths = np.linalg.norm(across), np.linalg.norm(down)
        if not (np.allclose(lengths, 1, atol=1e-2) and abs(across @ down) < 1e-2 and spacing.min() > 0):
            raise DataError(
                f"{named('ImageOrientationPatient')} {orientation.tolist()} or {named('PixelSpacing')} "
                f"{spacing.tolist()} is invalid; correct it in the file"
            )
        try:
            thickness = numbers_of(dataset, "SliceThickness")[:1]
        except ValueError:
            thickness = []
        slices.append(PlacedSlice(pixels, across * spacing[1], down * spacing[0], corner, (thickness or [np.nan])[0]))
    return slices


def _numbers(dataset: pydicom.Dataset, frame: int, keyword: str) -> np.ndarray:
    """The values of an attribute from the frame's own functional groups, the shared ones, or the top level."""
    macro, count = PLACES[keyword]
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    items = [item for groups in (*per_frame[frame : frame + 1], *shared[:1]) for item in groups.get(macro) or []]
    for holder in (*items, dataset):
        try:
            numbers = numbers_of(holder, keyword)
        except ValueError as error:
            raise DataError(f"{error}; correct it in the file") from None
        if numbers:
            if len(numbers) != count or not np.isfinite(numbers).all():
                raise DataError(f"{named(keyword)} is {numbers}, not {count} numbers; correct it in the file")
            return np.array(numbers, np.float64)
    raise DataError(f"{named(keyword)} is missing, so the position is unknown; exclude it with pattern")
