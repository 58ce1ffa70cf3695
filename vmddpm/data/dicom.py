"""DICOM files: frames in the units, the window and the polarity that the standard gives them."""

import math
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import BinaryIO, TypeAlias

import numpy as np
import pydicom
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    RTDoseStorage,
    SegmentationStorage,
)

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.limits import check_pixels, check_unpacked, check_voxels
from vmddpm.data.remarks import Excluded
from vmddpm.data.slicing import Plane
from vmddpm.data.transforms import choose_mode, display_range

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")  # Label Map Segmentation Storage, which pydicom 3.0 does not know
# Objects with pixel data that are results of an analysis, not pictures of a patient.
NO_PICTURES = frozenset({SegmentationStorage, LABEL_MAP, RTDoseStorage})
# Where enhanced multi-frame objects keep what others have at the top level.
FRAME_MACROS = ("PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence")
FRAME_KEYWORDS = (
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio",
)  # fmt: skip
DEFLATED = b"1.2.840.10008.1.2.1.99"
# Black and white by Series Instance UID.
Ranges: TypeAlias = Mapping[str, tuple[float, float]]
WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def read_dicom(file: BinaryIO, config: DataConfig, ranges: Ranges | None = None) -> Iterator[Plane]:
    """The frames of a DICOM file, with modality rescale, VOI window or table, and polarity applied.

    MONOCHROME1 is inverted after the VOI step (PS3.3 C.7.6.3.1.2). Pixels with the padding value are background.
    Colour is RGB whatever its encoding, and is shown over its full bit depth.

    Args:
        ranges: what is black and white in files without a window, by series; of other series, each file has its own.

    Raises:
        Excluded: if the object is no picture by its SOP class, or not of the modality, series or image type asked for.
        DataError: if the file is not DICOM, contradicts itself, is larger than the limits, or is compressed in a way
            that needs another decoder; the message names the attribute and the way out.
    """
    dataset, stored, notes = _decoded(file, config)
    if _photometric(dataset) == "PALETTE COLOR":
        yield from _colour_planes(dataset, *_palette_colours(dataset, stored), config, notes)
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
    """All pixels of a grey DICOM file (F, H, W) in the modality's units, NaN where they are padding; None in colour.
    Raises as `read_dicom`."""
    dataset, stored, _ = _decoded(file, config)
    if stored.ndim == 4 or _photometric(dataset) == "PALETTE COLOR":
        return None
    padding = _padding(dataset, stored)
    return np.stack([_rescaled(dataset, _of_frame(dataset, n), one, padding)[0] for n, one in enumerate(stored)])


def _decoded(file: BinaryIO, config: DataConfig) -> tuple[pydicom.FileDataset, np.ndarray, str]:
    """The data set, its pixels as they are stored, and a note."""
    _check_deflated(file, config)
    with warnings.catch_warnings():  # pydicom's are about what is mended or told here
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(file, force=True)
    _require_picture(dataset)
    _require_wanted(dataset, config)
    return dataset, *_stored_frames(dataset, _check_size(dataset, config))


def text_of(dataset: pydicom.Dataset, keyword: str) -> str:
    """An attribute as text without the blanks around it; empty if it is missing or empty."""
    value = dataset.get(keyword)
    if isinstance(value, MultiValue):
        return "\\".join(str(part).strip() for part in value)
    return "" if value is None else str(value).strip()


def _named(keyword: str) -> str:
    """An attribute as messages show it: Window Width (0028,1051)."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    return f"{dictionary_description(tag)} ({tag.group:04X},{tag.element:04X})"


def _numbers(dataset: pydicom.Dataset, keyword: str) -> list[float]:
    """The values of an attribute; none if it is missing or empty.

    Raises:
        ValueError: if a value is no finite number; the message names the attribute.
    """
    try:
        value = dataset.get(keyword)
        parts = list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]
        numbers = [float(part) for part in parts if part is not None and part != ""]
    except (ValueError, TypeError, OverflowError):
        raw = dataset.get_item(keyword)
        raise ValueError(f"{_named(keyword)} is {getattr(raw, 'value', raw)!r}, no number") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{_named(keyword)} is {numbers}, not finite")
    return numbers


def _integer(dataset: pydicom.Dataset, keyword: str, default: int | None = None) -> int:
    """Raises DataError, naming the attribute, if there is none and no default, or it is no number."""
    try:
        numbers = _numbers(dataset, keyword)
    except ValueError as error:
        raise DataError(f"{error}; correct it in the file") from None
    if numbers:
        return int(numbers[0])
    if default is None:
        raise DataError(f"{_named(keyword)} is missing or empty; the pixels cannot be read without it")
    return default


def _photometric(dataset: pydicom.Dataset) -> str:
    return text_of(dataset, "PhotometricInterpretation").upper()


def _check_deflated(file: BinaryIO, config: DataConfig) -> None:
    """pydicom inflates a deflated data set whole: whether it is too large is found out before."""
    head = file.read(1024)
    file.seek(0)
    if head[128:132] != b"DICM" or DEFLATED not in head:
        return
    meta_length = int.from_bytes(head[140:144], "little")
    file.seek(144 + meta_length)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    length, pending = 0, b""
    while block := pending or file.read(1 << 20):
        length += len(inflate.decompress(block, 1 << 24))
        check_unpacked(length, config)
        pending = inflate.unconsumed_tail
        if inflate.eof:
            break
    file.seek(0)


def _require_picture(dataset: pydicom.FileDataset) -> None:
    uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    name = UID(str(uid)).name if uid else "of no stated class"
    if uid in NO_PICTURES:
        raise Excluded(f"no picture by its SOP class, {name}")
    if any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        return
    if not uid and dataset.preamble is None:
        raise DataError("is not a DICOM file: it has neither the DICOM mark nor pixel data")
    if "Image Storage" in name:
        raise DataError(f"is an image by its SOP class, {name}, but holds no pixel data; fetch the whole object again")
    raise Excluded(f"no picture by its SOP class, {name}")


def _require_wanted(dataset: pydicom.Dataset, config: DataConfig) -> None:
    for option, keywords in (
        ("modality", ("Modality",)),
        ("series", ("SeriesDescription", "SeriesInstanceUID")),
        ("image_type", ("ImageType",)),
    ):
        pattern = getattr(config, option)
        if pattern is not None and not any(fnmatchcase(text_of(dataset, keyword), pattern) for keyword in keywords):
            raise Excluded(f"not of {option} {pattern}")


def _check_size(dataset: pydicom.Dataset, config: DataConfig) -> int:
    """The number of frames."""
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    frames = _integer(dataset, "NumberOfFrames", 1) or 1
    if min(rows, columns) < 1:
        raise DataError(f"{_named('Rows')} is {rows} and {_named('Columns')} is {columns}: there is no pixel")
    if frames < 0:
        raise DataError(f"{_named('NumberOfFrames')} is {frames}; correct it in the file")
    check_pixels((rows, columns), config)
    check_voxels((frames, rows, columns, _integer(dataset, "SamplesPerPixel", 1)), config)
    return frames


def _stored_frames(dataset: pydicom.FileDataset, frames: int) -> tuple[np.ndarray, str]:
    """The decoded pixels (F, H, W), or (F, H, W, 3) in colour, and what was odd about them."""
    samples = _integer(dataset, "SamplesPerPixel", 1)
    if samples not in (1, 3):
        raise DataError(f"has {samples} values a pixel; 1 (grey) or 3 (colour) are needed")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        # Without file meta information, data are in the standard's default syntax.
        little_endian = dataset.original_encoding[1]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
    shift = _value_shift(dataset)
    compressed = syntax is not None and syntax.is_compressed
    if shift and compressed and syntax != RLELossless:
        raise DataError(
            f"{_named('HighBit')} is {dataset.HighBit} with {dataset.BitsStored} bits stored and {syntax.name} pixels, "
            "which does not say where the values lie; decompress the file, such as by gdcmconv --raw"
        )
    dataset.BitsStored = dataset.BitsStored + shift  # pydicom drops what lies above them
    if compressed:
        _require_decoder(syntax)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = dataset.pixel_array
    except (RuntimeError, NotImplementedError) as error:
        if not compressed:
            raise
        raise DataError(
            f"its {syntax.name} pixels are damaged, or of a kind that no decoder here reads "
            f"({' '.join(str(error).split())})"
        ) from error
    dataset.BitsStored = dataset.BitsStored - shift
    if shift:
        stored = stored >> shift
    stored = stored.reshape(-1, *stored.shape[-2 if samples == 1 else -3 :])
    note = f"{_named('NumberOfFrames')} is smaller than the number of frames stored; the surplus is left out"
    return stored[:frames], note if len(stored) > frames else ""


def _value_shift(dataset: pydicom.Dataset) -> int:
    """How many bits below its values a pixel has: 0, but in files whose values are in the upper bits (PS3.5, 8.1.1)."""
    if "PixelData" not in dataset:
        dataset.BitsStored = _integer(dataset, "BitsAllocated", 32)
        return 0
    allocated = _integer(dataset, "BitsAllocated")
    bits = _integer(dataset, "BitsStored", allocated)
    high = _integer(dataset, "HighBit", bits - 1)
    if not 1 <= bits <= high + 1 <= allocated:
        raise DataError(
            f"{_named('BitsAllocated')} {allocated}, {_named('BitsStored')} {bits} and {_named('HighBit')} {high} "
            "contradict each other; correct them in the file"
        )
    dataset.BitsStored, dataset.HighBit = bits, high
    return high + 1 - bits


def _require_decoder(syntax: UID) -> None:
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            f"its pixels are compressed as {syntax.name}, which is not read; convert the file, a video to frames"
        ) from None
    if not decoder.is_available:
        raise DataError(
            f"its pixels are compressed as {syntax.name}, for which no decoder is installed; `pip install "
            "\".[dicom]\"` in the source tree brings one"
        )


def _colour_planes(
    dataset: pydicom.FileDataset, stored: np.ndarray, depth: int, config: DataConfig, note: str
) -> Iterator[Plane]:
    if stored.dtype.kind == "i":
        raise DataError(f"{_named('PixelRepresentation')} says that its colours are signed; they must not be")
    mode = choose_mode(config, has_window=False, has_depth=True)
    black, white = display_range(stored, mode, config, depth)
    for frame, pixels in enumerate(stored):
        yield Plane(pixels.astype(np.float32), black, white, _spacing(dataset), frame=frame, note=note)


def _palette_colours(dataset: pydicom.FileDataset, stored: np.ndarray) -> tuple[np.ndarray, int]:
    """(F, H, W, 3), and the largest value of the palette's bit depth."""
    if "RedPaletteColorLookupTableData" not in dataset:  # segmented
        colours = apply_color_lut(stored, dataset)[..., :3]
        return colours, int(np.iinfo(colours.dtype).max)
    signed, little = stored.dtype.kind == "i", dataset.original_encoding[1] is not False
    tables = [
        _table(dataset, f"{colour}PaletteColorLookupTableDescriptor", f"{colour}PaletteColorLookupTableData",
               signed=signed, little_endian=little)  # fmt: skip
        for colour in ("Red", "Green", "Blue")
    ]
    colours = np.stack([table.look_up(stored) for table in tables], -1)
    # Entries of 8 bits may lie in words of 16 (C.7.6.3.1.6).
    return colours, 255 if max(int(table.entries.max()) for table in tables) <= 255 else 65535


@dataclass(frozen=True)
class _Table:
    """A lookup table (C.11.1.1): the entry of `first` and below is the first, above the last it is the last."""

    entries: np.ndarray
    first: int
    bits: int

    def look_up(self, values: np.ndarray) -> np.ndarray:
        place = np.clip(values.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[place])


def _table(item: pydicom.Dataset, descriptor: str, data: str, *, signed: bool, little_endian: bool) -> _Table:
    """Raises DataError, naming the attribute, if the table contradicts itself.

    Args:
        signed: the values looked up may be negative. The descriptor is often written with the wrong one of the
            representations US and SS: the first value is taken modulo 2^16.
    """
    try:
        count, first, bits = (int(number) for number in _numbers(item, descriptor))
    except ValueError:
        raise DataError(f"{_named(descriptor)} is {item.get(descriptor)!r}, not three numbers") from None
    count = count % 2**16 or 2**16
    if first < 0 and not signed:
        first %= 2**16
    if first >= 2**15 and signed:
        first -= 2**16
    if not 8 <= bits <= 16:
        raise DataError(f"{_named(descriptor)} says {bits} bits an entry; 8 to 16 are allowed")
    value = item.get(data)
    if isinstance(value, bytes):
        packed = len(value) < 2 * count
        words = np.frombuffer(value, np.uint8 if packed else "<u2" if little_endian else ">u2")
    else:
        words = np.atleast_1d(np.asarray([] if value is None else value)).astype(np.int64) % 2**16
        if len(words) < count <= 2 * len(words) and bits == 8:  # two entries a word
            words = np.frombuffer(words.astype("<u2").tobytes(), np.uint8)
    if len(words) < count:
        raise DataError(f"{_named(data)} holds {len(words)} entries where {_named(descriptor)} says {count}")
    return _Table(words[:count].astype(np.uint16), first, bits)


def _grey_planes(
    dataset: pydicom.FileDataset, stored: np.ndarray, config: DataConfig, note: str, series: tuple[float, float] | None
) -> Iterator[Plane]:
    inverted = _photometric(dataset) == "MONOCHROME1"
    attributes = [_of_frame(dataset, frame) for frame in range(len(stored))]
    padding = _padding(dataset, stored)
    little_endian = dataset.original_encoding[1] is not False
    asks = config.normalize in ("auto", "window") and config.window is None  # the file about a window of its own
    # The range of all frames, which are rescaled once more where it is needed. A window is the same for all anyway.
    whole = None if config.window is not None else series
    for frame, own in enumerate(attributes):
        values, least = _rescaled(dataset, own, stored[frame], padding)
        voi = _voi(own, values, least, little_endian) if asks else _Voi(None)
        mode = choose_mode(config, has_window=voi.shown is not None, has_depth=False, why=voi.note)
        if voi.shown is not None:
            values, black, white = voi.shown
        else:
            if whole is None:
                everything = [_rescaled(dataset, *pair, padding)[0] for pair in zip(attributes, stored)]
                whole = display_range(np.stack(everything), mode, config)
            black, white = whole
        limits = (white, black) if inverted else (black, white)
        notes = "; ".join(filter(None, (note, voi.note)))
        yield Plane(values.astype(np.float32), *limits, _spacing(own), frame=frame, note=notes)


def _of_frame(dataset: pydicom.Dataset, frame: int) -> pydicom.Dataset:
    """The attributes of one frame, wherever they stand: in its own functional groups, the shared ones, or at the top.
    What another frame says is no part of it."""
    own = pydicom.Dataset()
    for keyword in FRAME_KEYWORDS:
        if keyword in dataset:
            own[keyword] = dataset[keyword]
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for groups in (*shared[:1], *per_frame[frame : frame + 1]):
        for macro in FRAME_MACROS:
            for item in groups.get(macro) or []:
                own.update(item)
    return own


def _padding(dataset: pydicom.Dataset, stored: np.ndarray) -> tuple[float, float] | None:
    """The smallest and largest stored value that mean no measurement."""
    if stored.dtype.kind == "f":
        keyword = "FloatPixelPaddingValue" if stored.dtype.itemsize == 4 else "DoubleFloatPixelPaddingValue"
    else:
        keyword = "PixelPaddingValue"
    limit = keyword.replace("Value", "RangeLimit")
    try:
        ends = [_numbers(dataset, keyword)[:1], _numbers(dataset, limit)[:1]]
    except ValueError as error:
        raise DataError(f"{error}; correct or remove it in the file") from None
    if not ends[0]:
        return None
    values = [end[0] for end in ends if end]
    if stored.dtype.kind != "f":
        # Their sign is that of the pixels, whichever of US and SS they were written with (C.7.5.1.1.2).
        values = [value % 2**16 for value in values]
        if stored.dtype.kind == "i":
            values = [value - 2**16 if value >= 2**15 else value for value in values]
    return min(values), max(values)


def _rescaled(
    dataset: pydicom.FileDataset, own: pydicom.Dataset, stored: np.ndarray, padding: tuple[float, float] | None
) -> tuple[np.ndarray, float]:
    """A frame in its modality's units, NaN where it is padding, and the least that any pixel could be."""
    signed = stored.dtype.kind == "i"
    least = -(2.0 ** (dataset.BitsStored - 1)) if signed else 0.0
    items: Sequence[pydicom.Dataset] = own.get("ModalityLUTSequence") or []
    if items:
        table = _table(items[0], "LUTDescriptor", "LUTData", signed=signed,
                       little_endian=dataset.original_encoding[1] is not False)  # fmt: skip
        values, least = table.look_up(stored).astype(np.float32), 0.0
    else:
        try:
            slope, intercept = (_numbers(own, keyword)[:1] for keyword in ("RescaleSlope", "RescaleIntercept"))
        except ValueError as error:
            raise DataError(f"{error}; correct it in the file") from None
        if slope == [0.0]:
            raise DataError(f"{_named('RescaleSlope')} is 0, which makes all pixels one; correct it in the file")
        factor, offset = slope[0] if slope else 1.0, intercept[0] if intercept else 0.0
        values = (stored.astype(np.float64) * factor + offset).astype(np.float32)
        least = least * factor + offset
    if padding is not None:
        values = np.where((stored >= padding[0]) & (stored <= padding[1]), np.float32(np.nan), values)
    return values, least


@dataclass(frozen=True)
class _Voi:
    """What the file says about its display.

    Attributes:
        shown: the values, and which of them are black and white; None if the file says nothing that can be used.
        note: what was wrong with it.
    """

    shown: tuple[np.ndarray, float, float] | None
    note: str = ""


def _voi(own: pydicom.Dataset, values: np.ndarray, least: float, little_endian: bool) -> _Voi:
    """The first VOI table or, without one, the first window (C.11.2)."""
    items: Sequence[pydicom.Dataset] = own.get("VOILUTSequence") or []
    if items and "LUTDescriptor" in items[0] and "LUTData" in items[0]:
        table = _table(items[0], "LUTDescriptor", "LUTData", signed=least < 0, little_endian=little_endian)
        padding = np.isnan(values)
        shown = table.look_up(np.rint(np.where(padding, 0, values))).astype(np.float32)
        return _Voi((np.where(padding, np.float32(np.nan), shown), 0.0, 2.0**table.bits - 1))
    try:
        centre, width = _numbers(own, "WindowCenter")[:1], _numbers(own, "WindowWidth")[:1]
    except ValueError as error:
        return _Voi(None, f"{error}: the window is left aside")
    if not centre or not width:
        return _Voi(None)
    return _windowed(values, centre[0], width[0], text_of(own, "VOILUTFunction").upper() or "LINEAR")


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> _Voi:
    if function not in WINDOW_FUNCTIONS:
        return _Voi(None, f"{_named('VOILUTFunction')} is {function!r}, none of the standard's: the window is left aside")
    if width <= 0:
        return _Voi(None, f"{_named('WindowWidth')} is {width:g}, not above 0: the window is left aside")
    if function == "SIGMOID":
        return _Voi((1 / (1 + np.exp(-4 * (values - centre) / width)), 0.0, 1.0))
    if function == "LINEAR" and width == 1:  # a step
        step = np.where(np.isnan(values), values, (values > centre - 0.5).astype(np.float32))
        return _Voi((step, 0.0, 1.0))
    if function == "LINEAR" and width > 1:
        return _Voi((values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2))
    note = ""
    if function == "LINEAR":
        note = f"{_named('WindowWidth')} is below 1, which LINEAR does not allow: the window is read as LINEAR_EXACT"
    return _Voi((values, centre - width / 2, centre + width / 2), note)


def _spacing(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Height and width of a pixel; only their ratio matters, so a file without either has square pixels."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        try:
            sizes = _numbers(dataset, keyword)
        except ValueError:
            continue
        if len(sizes) == 2 and min(sizes) > 0:
            return sizes[0], sizes[1]
    return 1.0, 1.0
