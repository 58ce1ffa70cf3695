"""Conversion of stored DICOM pixels to modality units, and their display window."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.pixels.processing import apply_color_lut

from vmddpm.data.config import DataError
from vmddpm.data.dicom_attributes import as_pixel, named, numbers_of, text_of
from vmddpm.data.transforms import narrowed

# Functional groups in which enhanced multi-frame objects keep attributes that other objects have at the top level.
FRAME_MACROS = ("PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence")
FRAME_KEYWORDS = (
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "PixelAspectRatio",
)  # fmt: skip
VOI_KEYWORDS = ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class _Table:
    """A lookup table (C.11.1.1): values up to `first` map to the first entry, values beyond the end to the last."""

    entries: np.ndarray
    first: int
    bits: int

    def look_up(self, values: np.ndarray) -> np.ndarray:
        index = np.clip(values.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[index])


def _table(item: pydicom.Dataset, descriptor: str, data: str, *, signed: bool, little_endian: bool) -> _Table:
    """Read a table. Raises DataError, naming the attribute, if it is inconsistent.

    Args:
        signed: the values looked up may be negative. Many writers confuse the value representations US and SS in the
            descriptor, so the first value is taken modulo 2^16.
    """
    try:
        count, first, bits = (int(number) for number in numbers_of(item, descriptor))
    except ValueError:
        raise DataError(f"{named(descriptor)} is {item.get(descriptor)!r}, not three numbers") from None
    count = count % 2**16 or 2**16
    first = int(as_pixel(first, signed))
    if not 8 <= bits <= 16:
        raise DataError(f"{named(descriptor)} gives {bits} bits per entry; 8 to 16 are allowed")
    value = item.get(data)
    if isinstance(value, bytes):
        packed = len(value) < 2 * count
        words = np.frombuffer(value + b"\0" * (len(value) % 2), "<u2" if little_endian else ">u2")
        if packed:  # two entries per word, the first in the lower byte
            words = np.frombuffer(words.astype("<u2").tobytes(), np.uint8)
    else:
        words = np.atleast_1d(np.asarray([] if value is None else value)).astype(np.int64) % 2**16
        if len(words) < count <= 2 * len(words) and bits == 8:  # two entries per word
            words = np.frombuffer(words.astype("<u2").tobytes(), np.uint8)
    if len(words) < count:
        raise DataError(f"{named(data)} holds {len(words)} entries, but {named(descriptor)} gives {count}")
    return _Table(words[:count].astype(np.uint16), first, bits)


def of_frame(dataset: pydicom.Dataset, frame: int) -> pydicom.Dataset:
    """The attributes of one frame, from its own functional groups, the shared ones, and the top level, in this order of
    precedence."""
    own = pydicom.Dataset()
    for keyword in (*FRAME_KEYWORDS, *VOI_KEYWORDS):
        if keyword in dataset:
            own[keyword] = dataset[keyword]
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for groups in (*shared[:1], *per_frame[frame : frame + 1]):
        for macro in FRAME_MACROS:
            for item in groups.get(macro) or []:
                if any(keyword in item for keyword in VOI_KEYWORDS):  # a VOI is replaced as a whole, never mixed
                    for keyword in VOI_KEYWORDS:
                        own.pop(keyword, None)
                own.update(item)
    return own


def padding_of(dataset: pydicom.Dataset, stored: np.ndarray) -> tuple[float, float] | None:
    """The smallest and largest stored value that count as padding; None if there is no padding."""
    if stored.dtype.kind == "f":
        keyword = "FloatPixelPaddingValue" if stored.dtype.itemsize == 4 else "DoubleFloatPixelPaddingValue"
    else:
        keyword = "PixelPaddingValue"
    limit = keyword.replace("Value", "RangeLimit")
    try:
        ends = [numbers_of(dataset, keyword)[:1], numbers_of(dataset, limit)[:1]]
    except ValueError as error:
        raise DataError(f"{error}; correct or remove it in the file") from None
    if not ends[0]:
        return None
    values = [end[0] for end in ends if end]
    if stored.dtype.kind != "f":
        values = [as_pixel(value, stored.dtype.kind == "i") for value in values]  # C.7.5.1.1.2
    return min(values), max(values)


def rescaled(
    dataset: pydicom.FileDataset, own: pydicom.Dataset, stored: np.ndarray, padding: tuple[float, float] | None
) -> tuple[np.ndarray, float]:
    """A frame in modality units, NaN at padding, and the smallest possible value of a pixel."""
    signed = stored.dtype.kind == "i"
    span = 2.0**dataset.BitsStored
    least = -span / 2 if signed else 0.0
    items: Sequence[pydicom.Dataset] = own.get("ModalityLUTSequence") or []
    if items:
        little_endian = dataset.original_encoding[1] is not False
        table = _table(items[0], "LUTDescriptor", "LUTData", signed=signed, little_endian=little_endian)
        values, least = table.look_up(stored).astype(np.float32), 0.0
    else:
        try:
            slope, intercept = (numbers_of(own, keyword)[:1] for keyword in ("RescaleSlope", "RescaleIntercept"))
        except ValueError as error:
            raise DataError(f"{error}; correct it in the file") from None
        if slope == [0.0]:
            raise DataError(f"{named('RescaleSlope')} is 0, which makes all pixels equal; correct it in the file")
        factor, offset = slope[0] if slope else 1.0, intercept[0] if intercept else 0.0
        step = None if stored.dtype.kind == "f" else abs(factor)
        _check_range(stored, factor, offset, step)
        values = narrowed(stored.astype(np.float64) * factor + offset, step)
        least = (least if factor > 0 else least + span - 1) * factor + offset
    if padding is not None:
        values = np.where((stored >= padding[0]) & (stored <= padding[1]), np.float32(np.nan), values)
    return values, least


def _check_range(stored: np.ndarray, factor: float, offset: float, step: float | None) -> None:
    """Raise DataError, naming the attribute, if rescaled values would overflow floating point or all be equal."""
    least, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    ends = [float(end) for end in (stored.min(), stored.max()) if np.isfinite(end)]
    if abs(factor) < least or max((abs(end * factor) for end in ends), default=0) > largest:
        raise DataError(
            f"{named('RescaleSlope')} is {factor:g}, which takes the pixels out of the range of float32; "
            "correct it in the file"
        )
    if abs(offset) > (largest if step is None else min(largest, 2**53 * step)):
        raise DataError(
            f"{named('RescaleIntercept')} is {offset:g}, so large that pixel differences are lost; correct it "
            "in the file"
        )


@dataclass(frozen=True)
class Voi:
    """The display window of a file.

    Attributes:
        shown: the values, black and white; None if the file has no usable window.
        note: the fault of the window; empty if it has none.
    """

    shown: tuple[np.ndarray, float, float] | None
    note: str = ""


def voi_of(own: pydicom.Dataset, values: np.ndarray, least: float, little_endian: bool) -> Voi:
    """The first VOI table or, without one, the first window (C.11.2)."""
    items: Sequence[pydicom.Dataset] = own.get("VOILUTSequence") or []
    if items and "LUTDescriptor" in items[0] and "LUTData" in items[0]:
        table = _table(items[0], "LUTDescriptor", "LUTData", signed=least < 0, little_endian=little_endian)
        padding = np.isnan(values)
        shown = table.look_up(np.rint(np.where(padding, 0, values))).astype(np.float32)
        bits, note = _bits_of(table)
        return Voi((np.where(padding, np.float32(np.nan), shown), 0.0, 2.0**bits - 1), note)
    try:
        centre, width = numbers_of(own, "WindowCenter")[:1], numbers_of(own, "WindowWidth")[:1]
    except ValueError as error:
        return Voi(None, f"{error}: the window is ignored")
    if not centre or not width:
        return Voi(None)
    return _apply_window(values, centre[0], width[0], text_of(own, "VOILUTFunction").upper() or "LINEAR")


def _bits_of(table: _Table) -> tuple[int, str]:
    """The bit depth of a VOI table's entries, and a note. It is the descriptor's, unless the entries exceed it, or use
    at most 12 of 16 bits, which would look almost black (see `pictures.picture_plane`)."""
    needed = int(table.entries.max()).bit_length()
    if needed == 0 or (needed <= table.bits and (table.bits < 16 or needed > 12)):
        return table.bits, ""
    said = f"{named('LUTDescriptor')} gives {table.bits} bits per entry, but the VOI table's entries need {needed}"
    return needed, f"{said}: read as 0 ... {2**needed - 1}"


def _apply_window(values: np.ndarray, centre: float, width: float, function: str) -> Voi:
    if function not in WINDOW_FUNCTIONS:
        return Voi(None, f"{named('VOILUTFunction')} is {function!r}, not a standard one: the window is ignored")
    if width <= 0:
        return Voi(None, f"{named('WindowWidth')} is {width:g}, not above 0: the window is ignored")
    if function == "SIGMOID":
        return Voi((np.tanh(2 * (values - centre) / width), -1.0, 1.0))  # 1 / (1 + exp(-4 ...)) without overflow
    if function == "LINEAR" and width == 1:  # a step
        step = np.where(np.isnan(values), values, (values > centre - 0.5).astype(np.float32))
        return Voi((step, 0.0, 1.0))
    if function == "LINEAR" and width > 1:
        return Voi((values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2))
    note = ""
    if function == "LINEAR":
        note = f"{named('WindowWidth')} is below 1, which LINEAR does not allow: the window is read as LINEAR_EXACT"
    return Voi((values, centre - width / 2, centre + width / 2), note)


def spacing_of(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Height and width of a pixel, up to a common factor; (1, 1) if the file has no spacing or aspect ratio."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        try:
            sizes = numbers_of(dataset, keyword)
        except ValueError:
            continue
        if len(sizes) == 2 and min(sizes) > 0:
            return sizes[0], sizes[1]
    return 1.0, 1.0


def palette_colours(dataset: pydicom.FileDataset, stored: np.ndarray) -> tuple[np.ndarray, int]:
    """Colours (F, H, W, 3), and the largest value of the palette's bit depth."""
    if "RedPaletteColorLookupTableData" not in dataset:  # segmented
        colours = apply_color_lut(stored, dataset)[..., :3]
        return colours, int(np.iinfo(colours.dtype).max)
    signed, little = stored.dtype.kind == "i", dataset.original_encoding[1] is not False
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    tables = [
        _table(dataset, f"{name}Descriptor", f"{name}Data", signed=signed, little_endian=little) for name in names
    ]
    colours = np.empty((*stored.shape, 3), np.uint16)
    for frame, pixels in enumerate(stored):
        for channel, table in enumerate(tables):
            colours[frame, ..., channel] = table.look_up(pixels)
    # 8-bit entries may be stored in 16-bit words (C.7.6.3.1.6).
    return colours, 255 if max(int(table.entries.max()) for table in tables) <= 255 else 65535
