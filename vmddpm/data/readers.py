"""From a file to its planes: one thin reader over nibabel, pydicom and Pillow each."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image, ImageOps
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.slicing import Plane, volume_planes
from vmddpm.data.transforms import choose_mode, display_range

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Where enhanced multi-frame objects keep what others have at the top level.
FRAME_MACROS = ("PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence")
WHITE_IS_ZERO = 0
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262


def read_file(path: Path, config: DataConfig) -> Iterator[Plane]:
    """The planes of one file, by the reader that its name, or else its content, asks for.

    Raises:
        DataError: if the file cannot be read as an image, with the reason; the caller adds the path.
    """
    kind, reader = _reader_for(path)
    with _named(kind, str(path)):
        yield from reader(path, config)


def read_content(content: bytes, config: DataConfig) -> Iterator[Plane]:
    """The planes of a PNG, JPEG or TIFF file that is in memory. Raises DataError as `read_file`."""
    with _named("an image", "<_io.BytesIO"):
        yield from read_raster(BytesIO(content), config)


@contextmanager
def _named(kind: str, path: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # The three libraries raise nearly every class of exception on damaged files.
        reason = " ".join(str(error).replace(path, "the file").split())
        raise DataError(f"cannot be read as {kind}: {reason or type(error).__name__}") from error


def _reader_for(path: Path) -> tuple[str, Callable[[Path, DataConfig], Iterator[Plane]]]:
    name = path.name.lower()
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}") from error
    if not head:
        raise DataError("is empty")
    if name.endswith((".nii", ".nii.gz")):
        return "NIfTI", read_nifti
    if name.endswith((".png", ".jpg", ".jpeg", ".tif", ".tiff")):
        return "an image", read_raster
    # Archives name DICOM files by a number or a UID, which ends in a dot and a number.
    nameless = not path.suffix or re.fullmatch(r"\.\d+", path.suffix)
    if head[128:] == b"DICM" or name.endswith((".dcm", ".dicom", ".ima")) or nameless:
        return "DICOM", read_dicom
    raise DataError(
        f"has the suffix {path.suffix}, which is none of .nii .nii.gz .dcm .png .jpg .jpeg .tif .tiff, "
        "and is not DICOM by content; convert it"
    )


def read_nifti(path: Path, config: DataConfig) -> Iterator[Plane]:
    """The slices of a NIfTI volume: `slicing.volume_planes`."""
    # The open file lets a compressed series be read once from front to back, frame by frame.
    image = nib.load(path, keep_file_open=True)
    if not isinstance(image, nib.spatialimages.SpatialImage):
        raise DataError("holds no volume of voxels (a CIFTI surface file?)")
    yield from volume_planes(image, config)


def read_dicom(path: Path, config: DataConfig) -> Iterator[Plane]:
    """The frames of a DICOM file, with modality rescale, VOI window or table, and polarity applied.

    MONOCHROME1 is inverted after the VOI step (PS3.3 C.7.6.3.1.2); pydicom leaves that to its caller. Pixels
    with the padding value are background. Colour is RGB whatever its encoding, and is shown over its full bit
    depth.

    Raises:
        DataError: if the file is not DICOM, holds no pixels, or is compressed in a way that needs another
            decoder.
    """
    dataset = pydicom.dcmread(path, force=True)
    _require_pixels(dataset)
    stored, depth = _stored_frames(dataset)
    if depth is None:
        yield from _grey_planes(dataset, stored, config)
    else:
        yield from _colour_planes(dataset, stored, depth, config)


def _colour_planes(
    dataset: pydicom.FileDataset, stored: np.ndarray, depth: int, config: DataConfig
) -> Iterator[Plane]:
    mode = choose_mode(config, has_window=False, has_depth=True)
    black, white = display_range(stored, mode, config, depth)
    for frame, pixels in enumerate(stored):
        yield Plane(pixels.astype(np.float32), black, white, _spacing(dataset), frame=frame)


def _grey_planes(dataset: pydicom.FileDataset, stored: np.ndarray, config: DataConfig) -> Iterator[Plane]:
    frames: Iterable[np.ndarray] = (_rescaled(dataset, pixels, frame) for frame, pixels in enumerate(stored))
    _promote_frame(dataset, 0)
    mode = choose_mode(config, _has_voi(dataset), has_depth=False)
    own_window = mode == "window" and config.window is None
    if not own_window:
        frames = list(frames)
        black, white = display_range(np.stack(frames), mode, config)
    for frame, values in enumerate(frames):
        if own_window:
            values, black, white = _voi(dataset, values)
        limits = (white, black) if dataset.PhotometricInterpretation == "MONOCHROME1" else (black, white)
        yield Plane(values.astype(np.float32), *limits, _spacing(dataset), frame=frame)


def _require_pixels(dataset: pydicom.FileDataset) -> None:
    if any(keyword in dataset for keyword in PIXEL_KEYWORDS):
        return
    if dataset.preamble is None and "SOPClassUID" not in dataset:
        raise DataError("is not a DICOM file: it has neither the DICOM mark nor pixel data")
    uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    kind = uid.name if uid else "of no stated class"
    raise DataError(f"is not an image: a DICOM file ({kind}) without pixel data")


def _stored_frames(dataset: pydicom.FileDataset) -> tuple[np.ndarray, int | None]:
    """The decoded pixels (F, H, W) and None, or (F, H, W, 3) and the largest value if they are in colour."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        # Without file meta information, data are in the standard's default syntax.
        little_endian = dataset.original_encoding[1]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
    try:
        stored = dataset.pixel_array
    except (RuntimeError, NotImplementedError) as error:
        if syntax is None or not syntax.is_compressed:
            raise
        raise DataError(
            f"its {syntax.name} pixels cannot be decoded; if the file is whole, `pip install pylibjpeg "
            f"pylibjpeg-libjpeg pylibjpeg-openjpeg` adds a decoder ({' '.join(str(error).split())})"
        ) from error
    depth = None
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        depth = np.iinfo(stored.dtype).max
    elif dataset.get("SamplesPerPixel", 1) > 1:
        depth = 2**dataset.BitsStored - 1
        if stored.shape[-1] != 3:
            raise DataError(f"has {stored.shape[-1]} values a pixel; 1 (grey) or 3 (colour) are needed")
    image_axes = 2 if depth is None else 3
    return stored.reshape(-1, *stored.shape[-image_axes:]), depth


def _promote_frame(dataset: pydicom.FileDataset, frame: int) -> None:
    """Puts the attributes of a frame of an enhanced object where single-frame objects have them."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for groups in (*shared[:1], *per_frame[frame : frame + 1]):
        for macro in FRAME_MACROS:
            for item in groups.get(macro) or []:
                dataset.update(item)


def _rescaled(dataset: pydicom.FileDataset, stored: np.ndarray, frame: int) -> np.ndarray:
    """A frame in its modality's units, NaN where it is padding."""
    _promote_frame(dataset, frame)
    values = np.asarray(apply_modality_lut(stored, dataset), np.float32)
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        low, high = sorted((padding, dataset.get("PixelPaddingRangeLimit", padding)))
        values = np.where((stored >= low) & (stored <= high), np.float32(np.nan), values)
    return values


def _voi_table(dataset: pydicom.FileDataset) -> pydicom.Dataset | None:
    items: Sequence[pydicom.Dataset] = dataset.get("VOILUTSequence") or []
    for item in items[:1]:
        if "LUTDescriptor" in item and "LUTData" in item:
            return item
    return None


def _has_voi(dataset: pydicom.FileDataset) -> bool:
    window = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    return None not in window or _voi_table(dataset) is not None


def _voi(dataset: pydicom.FileDataset, values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Values after the first VOI table or window, and the smallest and largest value the step can give."""
    table = _voi_table(dataset)
    if table is None:
        low, high = apply_windowing(np.array([-np.inf, np.inf]), dataset)
        return apply_windowing(values, dataset), float(low), float(high)
    padding = np.isnan(values)
    shown = apply_voi(np.rint(np.where(padding, 0, values)).astype(np.int64), dataset)
    return np.where(padding, np.nan, shown), 0.0, 2.0 ** table.LUTDescriptor[2] - 1


def _spacing(dataset: pydicom.FileDataset) -> tuple[float, float]:
    """Height and width of a pixel; only their ratio matters, so a file without either has square pixels."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        sizes = dataset.get(keyword)
        if sizes and len(sizes) == 2 and min(sizes) > 0:
            return float(sizes[0]), float(sizes[1])
    return 1.0, 1.0


def read_raster(path: Path | BytesIO, config: DataConfig) -> Iterator[Plane]:
    """A PNG or JPEG image, or the pages of a TIFF file.

    8 and 16 bits a pixel stay what they are (16-bit colour is 8 bits, as Pillow reads it); the EXIF
    orientation is applied; palettes become colour; transparent pixels are laid over black.
    """
    with Image.open(path) as image:
        for page in range(getattr(image, "n_frames", 1) if image.format == "TIFF" else 1):
            image.seek(page)
            tags = getattr(image, "tag_v2", {})
            bits = tags.get(TIFF_BITS, (16,))[0]
            # Pillow inverts white-is-zero pixels of 8 bits, but not of 16.
            inverted = image.mode.startswith("I;16") and tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
            pixels, depth = _raster_pixels(ImageOps.exif_transpose(image), bits)
            mode = choose_mode(config, has_window=False, has_depth=depth is not None)
            black, white = display_range(pixels, mode, config, depth)
            yield Plane(pixels, *((white, black) if inverted else (black, white)), frame=page)


def _raster_pixels(image: Image.Image, bits: int) -> tuple[np.ndarray, int | None]:
    """float32 (H, W) or (H, W, 3), and the largest value of their bit depth (None for 32-bit pixels)."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.float32), 2**bits - 1
    if image.mode in ("I", "F"):
        return np.asarray(image).astype(np.float32), None
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), coloured)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    return np.asarray(image).astype(np.float32), 255
