"""DICOM files: frames with the rescaling, window and polarity that the standard prescribes."""

import warnings
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import BinaryIO, TypeAlias

import numpy as np
import pydicom
from pydicom.uid import UID, RTDoseStorage, SegmentationStorage

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.dicom_attributes import named, photometric_of, text_of
from vmddpm.data.dicom_pixels import PIXEL_KEYWORDS, check_deflated, check_size, stored_frames
from vmddpm.data.dicom_values import Voi, of_frame, padding_of, palette_colours, rescaled, spacing_of, voi_of
from vmddpm.data.remarks import Excluded
from vmddpm.data.slicing import Plane
from vmddpm.data.transforms import choose_mode, display_range

LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")  # Label Map Segmentation Storage, which pydicom 3.0 does not know
# Objects whose pixel data are results of an analysis, not pictures of a patient.
NO_PICTURES = frozenset({SegmentationStorage, LABEL_MAP, RTDoseStorage})
# Black and white by Series Instance UID.
Ranges: TypeAlias = Mapping[str, tuple[float, float]]


def read_dicom(file: BinaryIO, config: DataConfig, ranges: Ranges | None = None) -> Iterator[Plane]:
    """The frames of a DICOM file, with modality rescale, VOI window or table, and polarity applied.

    MONOCHROME1 is inverted after the VOI step (PS3.3 C.7.6.3.1.2). Pixels with the padding value are background.
    Colour of any encoding becomes RGB over its full bit depth.

    Args:
        ranges: black and white for files without a window, by series; a file of any other series uses its own range.

    Raises:
        Excluded: if the SOP class is not a picture, or the modality, series or image type does not match `config`.
        DataError: if the file is not DICOM, is inconsistent, exceeds the limits, or needs a decoder that is not
            installed; the message names the attribute and the remedy.
    """
    dataset, stored, notes = decoded(file, config)
    if photometric_of(dataset) == "PALETTE COLOR":
        yield from _colour_planes(dataset, *palette_colours(dataset, stored), config, notes)
    elif stored.ndim == 4:
        yield from _colour_planes(dataset, stored, 2**dataset.BitsStored - 1, config, notes)
    else:
        series = (ranges or {}).get(text_of(dataset, "SeriesInstanceUID"))
        yield from _grey_planes(dataset, stored, config, notes, series)


def series_uid(file: BinaryIO) -> str | None:
    """The Series Instance UID of a DICOM file; None if it has none."""
    header = pydicom.dcmread(file, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True, force=True)
    return text_of(header, "SeriesInstanceUID") or None


def modality_values(file: BinaryIO, config: DataConfig) -> np.ndarray | None:
    """All pixels of a grey DICOM file, (F, H, W) in modality units, NaN at padding; None for colour. Raises as
    `read_dicom`."""
    dataset, stored, _ = decoded(file, config)
    if stored.ndim == 4 or photometric_of(dataset) == "PALETTE COLOR":
        return None
    return frame_values(dataset, stored)


def frame_values(dataset: pydicom.FileDataset, stored: np.ndarray) -> np.ndarray:
    """Grey pixels (F, H, W), stored values -> modality units, NaN at padding."""
    wide = stored.dtype.itemsize > 2 and stored.dtype != np.float32
    values, padding = np.empty(stored.shape, np.float64 if wide else np.float32), padding_of(dataset, stored)
    for frame, pixels in enumerate(stored):
        values[frame] = rescaled(dataset, of_frame(dataset, frame), pixels, padding)[0]
    return values


def decoded(file: BinaryIO, config: DataConfig) -> tuple[pydicom.FileDataset, np.ndarray, str]:
    """The data set, its stored pixels, and a note. Raises as `read_dicom`."""
    check_deflated(file, config)
    with warnings.catch_warnings():  # pydicom warns of faults that are corrected or reported here
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(file, force=True)
    _require_picture(dataset)
    _require_wanted(dataset, config)
    return dataset, *stored_frames(dataset, check_size(dataset, config), config)


def _require_picture(dataset: pydicom.FileDataset) -> None:
    uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    name = UID(str(uid)).name if uid else "not stated"
    if uid in NO_PICTURES:
        raise Excluded(f"not an image according to its SOP class, {name}")
    if any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        return
    if not uid and dataset.preamble is None:
        raise DataError("is not a DICOM file: it has neither the DICM prefix nor pixel data")
    if "Image Storage" in name:
        raise DataError(f"has the SOP class of an image, {name}, but no pixel data; fetch the whole object again")
    raise Excluded(f"not an image according to its SOP class, {name}")


def _require_wanted(dataset: pydicom.Dataset, config: DataConfig) -> None:
    for option, keywords in (
        ("modality", ("Modality",)),
        ("series", ("SeriesDescription", "SeriesInstanceUID")),
        ("image_type", ("ImageType",)),
    ):
        pattern = getattr(config, option)
        if pattern is not None and not any(fnmatchcase(text_of(dataset, keyword), pattern) for keyword in keywords):
            raise Excluded(f"{option} does not match {pattern}")


def _colour_planes(
    dataset: pydicom.FileDataset, stored: np.ndarray, depth: int, config: DataConfig, note: str
) -> Iterator[Plane]:
    if stored.dtype.kind == "i":
        raise DataError(f"{named('PixelRepresentation')} is 1, which makes its colours signed; set it to 0 in the file")
    mode = choose_mode(config, has_window=False, has_depth=True)
    black, white = display_range(stored, mode, config, depth)
    for frame, pixels in enumerate(stored):
        spacing = spacing_of(of_frame(dataset, frame))
        yield Plane(pixels.astype(np.float32), black, white, spacing, frame=frame, note=note)


def _grey_planes(
    dataset: pydicom.FileDataset, stored: np.ndarray, config: DataConfig, note: str, series: tuple[float, float] | None
) -> Iterator[Plane]:
    inverted = photometric_of(dataset) == "MONOCHROME1"
    padding = padding_of(dataset, stored)
    little_endian = dataset.original_encoding[1] is not False
    look_for_window = config.normalize in ("auto", "window") and config.window is None
    # The range over all frames. Computing it rescales every frame once more, so it is done only when needed.
    whole = None if config.window is not None else series
    for frame, pixels in enumerate(stored):
        own = of_frame(dataset, frame)
        values, least = rescaled(dataset, own, pixels, padding)
        voi = voi_of(own, values, least, little_endian) if look_for_window else Voi(None)
        mode = choose_mode(config, has_window=voi.shown is not None, has_depth=False, why=voi.note)
        if voi.shown is not None:
            values, black, white = voi.shown
        else:
            if whole is None:
                whole = display_range(frame_values(dataset, stored), mode, config)
            black, white = whole
        limits = (white, black) if inverted else (black, white)
        notes = "; ".join(filter(None, (note, voi.note)))
        yield Plane(values, *limits, spacing_of(own), frame=frame, note=notes)
