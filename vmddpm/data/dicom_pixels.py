"""The stored pixels of a DICOM file: decoded, with their values shifted to the low bits."""

import warnings
import zlib
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.dicom_attributes import as_pixel, integer_of, named, numbers_of, photometric_of
from vmddpm.data.dicom_values import padding_of
from vmddpm.data.limits import check_pixels, check_unpacked, check_voxels
from vmddpm.data.streams import check_codestream, check_whole

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
COLOURS = (
    "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422",
)  # fmt: skip
DEFLATED = b"1.2.840.10008.1.2.1.99"


def check_deflated(file: BinaryIO, config: DataConfig) -> None:
    """Raise DataError if a deflated data set is too large; pydicom would inflate all of it at once."""
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


def check_size(dataset: pydicom.Dataset, config: DataConfig) -> int:
    """The number of frames. Raises DataError if the size is invalid or exceeds the limits."""
    rows, columns = integer_of(dataset, "Rows"), integer_of(dataset, "Columns")
    frames = integer_of(dataset, "NumberOfFrames", 1) or 1
    if min(rows, columns) < 1:
        raise DataError(f"{named('Rows')} is {rows} and {named('Columns')} is {columns}: the image has no pixels")
    if frames < 0:
        raise DataError(f"{named('NumberOfFrames')} is {frames}; correct it in the file")
    check_pixels((rows, columns), config)
    check_voxels((frames, rows, columns, integer_of(dataset, "SamplesPerPixel", 1)), config)
    return frames


def stored_frames(dataset: pydicom.FileDataset, frames: int, config: DataConfig) -> tuple[np.ndarray, str]:
    """The decoded pixels (F, H, W), or (F, H, W, 3) in colour, and a note, empty unless frames were dropped."""
    samples = integer_of(dataset, "SamplesPerPixel", 1)
    if samples not in (1, 3):
        raise DataError(f"has {samples} samples per pixel; 1 (grey) or 3 (colour) are supported")
    _require_attributes(dataset, samples)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        # Without file meta information, the standard's default syntax applies.
        little_endian = dataset.original_encoding[1]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
    if not (syntax and syntax.is_compressed) and _is_encapsulated(dataset):
        raise DataError(
            f"{named('TransferSyntaxUID')} is {syntax.name if syntax else 'missing'}, but its pixels are encapsulated, "
            "so their compression is unknown; set it in the file, or fetch the file again"
        )
    shift = _value_shift(dataset)
    compressed = syntax is not None and syntax.is_compressed
    as_words = not compressed or syntax == RLELossless  # pixels are whole words of BitsAllocated
    if shift and not as_words:
        raise DataError(
            f"{named('HighBit')} is {dataset.HighBit} with {dataset.BitsStored} bits stored and {syntax.name} pixels, "
            "so it is unclear which bits hold the values; decompress the file, for example with gdcmconv --raw"
        )
    bits = dataset.BitsStored
    # pydicom clears the bits above BitsStored, which would destroy a padding value that uses them.
    if shift:
        dataset.BitsStored = bits + shift
    elif as_words and not _holds_padding(dataset):
        dataset.BitsStored = dataset.BitsAllocated
    if compressed:
        _require_decoder(syntax)
        _check_streams(dataset, frames, config)
    else:
        _require_whole(dataset, frames, samples)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = dataset.pixel_array
    except Exception as error:  # pydicom and the decoders raise nearly every class
        kind = f"its {syntax.name} pixels" if compressed else "its pixels"
        raise DataError(
            f"{kind} are damaged, contradict its attributes, or have an encoding that no installed decoder reads "
            f"({' '.join(str(error).split())}); fetch the file again, or convert it"
        ) from error
    for keyword in PIXEL_KEYWORDS:  # frees as much memory as the decoded pixels take
        dataset.pop(keyword, None)
    dataset.BitsStored = bits
    if samples == 1 and not shift and stored.dtype.kind != "f":
        stored = _values_of_stored_bits(dataset, stored, as_words)
    if shift:
        _require_upper(dataset, stored, shift)
        stored = stored >> shift
    stored = stored.reshape(-1, *stored.shape[-2 if samples == 1 else -3 :])
    note = f"{named('NumberOfFrames')} is smaller than the number of frames stored; the rest are ignored"
    return stored[:frames], note if len(stored) > frames else ""


def _require_attributes(dataset: pydicom.Dataset, samples: int) -> None:
    """Raise DataError, with the remedy, if an attribute that pydicom needs is missing or not supported."""
    photometric = photometric_of(dataset)
    known = COLOURS if samples == 3 else tuple(PhotometricInterpretation)
    if photometric not in known:
        usual = "RGB" if samples == 3 else "MONOCHROME2, or MONOCHROME1 where 0 is white,"
        raise DataError(
            f"{named('PhotometricInterpretation')} is {photometric or 'missing or empty'}, which is not supported with "
            f"{samples} samples per pixel; convert the file, or set it to {usual} if that is right"
        )
    dataset.PhotometricInterpretation = photometric
    if "PixelData" in dataset and integer_of(dataset, "PixelRepresentation", -1) not in (0, 1):
        raise DataError(
            f"{named('PixelRepresentation')} is missing or wrong; set it to 0, or to 1 if the pixels are signed"
        )
    if samples == 3 and integer_of(dataset, "PlanarConfiguration", -1) not in (0, 1):
        raise DataError(
            f"{named('PlanarConfiguration')} is missing or wrong; set it to 0, or to 1 if colours are stored in planes"
        )
    if (allocated := integer_of(dataset, "BitsAllocated", 32)) != 1 and (allocated % 8 or not 8 <= allocated <= 64):
        raise DataError(f"{named('BitsAllocated')} is {allocated}, not supported; convert the file to 8, 16 or 32")


def _is_encapsulated(dataset: pydicom.Dataset) -> bool:
    """Whether the pixels are encapsulated in items (PS3.5, A.4): of undefined length, or one item after another."""
    if "PixelData" not in dataset:
        return False
    content, at = dataset.PixelData or b"", 0
    while content[at : at + 4] == b"\xfe\xff\x00\xe0":
        at += 8 + int.from_bytes(content[at + 4 : at + 8], "little")
    items = at > 0 and content[at : at + 4] in (b"", b"\xfe\xff\xdd\xe0")
    return items or bool(dataset["PixelData"].is_undefined_length)


def _value_shift(dataset: pydicom.Dataset) -> int:
    """Number of unused bits below a pixel's value: 0 unless the values are in the upper bits (PS3.5, 8.1.1)."""
    if "PixelData" not in dataset:
        dataset.BitsStored = integer_of(dataset, "BitsAllocated", 32)
        return 0
    allocated = integer_of(dataset, "BitsAllocated")
    bits = integer_of(dataset, "BitsStored", allocated)
    high = integer_of(dataset, "HighBit", bits - 1)
    if not 1 <= bits <= high + 1 <= allocated:
        raise DataError(
            f"{named('BitsAllocated')} {allocated}, {named('BitsStored')} {bits} and {named('HighBit')} {high} "
            "contradict each other; correct them in the file"
        )
    dataset.BitsStored, dataset.HighBit = bits, high
    return high + 1 - bits


def _holds_padding(dataset: pydicom.Dataset) -> bool:
    """Whether the padding value fits into the stored bits; True if there is none."""
    try:
        padding = numbers_of(dataset, "PixelPaddingValue")[:1]
    except ValueError:  # `padding_of` reports it
        return True
    signed = bool(dataset.get("PixelRepresentation"))
    top = 2 ** (int(dataset.BitsStored) - signed)
    return all(-top * signed <= as_pixel(value, signed) < top for value in padding)


def _values_of_stored_bits(dataset: pydicom.Dataset, stored: np.ndarray, as_words: bool) -> np.ndarray:
    """Pixels that were read with all their bits, reduced to the stored bits; padding keeps all bits."""
    unused, signed = 8 * stored.itemsize - int(dataset.BitsStored), stored.dtype.kind == "i"
    if unused <= 0 or (as_words and _holds_padding(dataset)) or not (as_words or signed):
        return stored
    padding = padding_of(dataset, stored)
    inside = np.ones(stored.shape, bool) if padding is None else (stored < padding[0]) | (stored > padding[1])
    values = stored[inside]
    if not as_words:
        # Some writers do not extend the sign into the upper bits, so values are too large. Values of lossy streams
        # may exceed the stored bits slightly and are kept.
        top = 2 ** int(dataset.BitsStored)
        if not values.size or values.min() < 0 or not top // 2 <= values.max() < top:
            return stored
    values = (values << unused) >> unused  # extends the sign of signed pixels
    stored = stored.copy()
    stored[inside] = values
    return stored


def _require_upper(dataset: pydicom.Dataset, stored: np.ndarray, shift: int) -> None:
    """Raise DataError if HighBit places the values in the upper bits but they are in the lower bits."""
    top = 2 ** (dataset.BitsStored - (stored.dtype.kind == "i"))
    if (stored & (2**shift - 1)).any() and stored.max() < top and stored.min() >= -top:
        raise DataError(
            f"{named('HighBit')} is {dataset.HighBit} with {dataset.BitsStored} bits stored, but the values are in the "
            f"lower bits; set it to {dataset.BitsStored - 1} in the file"
        )


def _require_whole(dataset: pydicom.Dataset, frames: int, samples: int) -> None:
    """Raise DataError if there are fewer pixels than the attributes state."""
    pixels = frames * int(dataset.Rows) * int(dataset.Columns) * samples
    if photometric_of(dataset) == "YBR_FULL_422":  # two pixels share their chrominance
        pixels = pixels * 2 // 3
    needed = pixels * integer_of(dataset, "BitsAllocated", 0) // 8
    found = len(dataset.get("PixelData") or b"")
    if "PixelData" in dataset and found < needed:
        raise DataError(f"is truncated: it has {found:,} bytes of pixels and needs {needed:,}; fetch the file again")


def _check_streams(dataset: pydicom.Dataset, frames: int, config: DataConfig) -> None:
    found = 0
    try:
        for found, content in enumerate(generate_frames(dataset.PixelData, number_of_frames=frames), 1):  # noqa: B007
            size = check_codestream(content, config)
            if size is not None and size != (int(dataset.Rows), int(dataset.Columns)):
                raise DataError(
                    f"{named('Rows')} is {dataset.Rows} and {named('Columns')} is {dataset.Columns}, but one of "
                    f"its compressed images has {size[0]} x {size[1]}; correct them in the file, or fetch it again"
                )
            check_whole(content)
    except DataError:
        raise
    except Exception:  # damaged encapsulation, which the decoder reports
        return
    if found < frames:
        raise DataError(
            f"is truncated: it holds {found} frames where {named('NumberOfFrames')} is {frames}; fetch the file again"
        )


def _require_decoder(syntax: UID) -> None:
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            f"its pixels are compressed as {syntax.name}, which is not supported; convert the file (a video to frames)"
        ) from None
    if not decoder.is_available:
        raise DataError(
            f"its pixels are compressed as {syntax.name}, for which no decoder is installed; `pip install "
            '".[dicom]"` in the source tree installs one'
        )
