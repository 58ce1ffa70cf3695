"""Pictures (PNG, JPEG, BMP, PGM, WebP, JPEG 2000 and GIF), read by Pillow, and arrays, read by NumPy."""

import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.limits import check_pixels, check_stored, check_voxels
from vmddpm.data.slicing import Plane
from vmddpm.data.streams import JPEG, check_codestream, check_whole
from vmddpm.data.transforms import choose_mode, display_range

PNG = b"\x89PNG\r\n\x1a\n"
JPEG_2000_BOX = b"jP  "
STREAM_HEADER = 1 << 16  # the stream of a JPEG 2000 file begins within so many bytes
PNG_COLOUR = 2  # bits of a PNG's colour type
PNG_ALPHA = 4
# Formats in which every frame is a picture; further frames of other formats are previews.
ANIMATED = ("GIF", "WEBP", "PNG")


def picture_plane(pixels: np.ndarray, depth: float | None, config: DataConfig, frame: int = 0, *,
                  inverted: bool = False, significant: int | None = None) -> Plane:  # fmt: skip
    """A plane of (H, W) or (H, W, 3) with its values for black and white.

    12-bit values are often stored in 16 bits without scaling, and would look almost black: a 16-bit picture with all
    values below 4096, a sixteenth of the range, is read as 12-bit, with a note in the report.

    Args:
        depth: the largest value of the bit depth; None if there is no bit depth.
        inverted: 0 is white.
        significant: number of significant bits stated in the file (PNG's sBIT).
    """
    note = ""
    if depth == 65535 and config.normalize in ("auto", "full") and config.window is None:
        largest = float(pixels.max())
        bits = significant if significant is not None and largest < 2**significant else 12
        if 0 < largest < 2**bits and bits < 16:
            depth = 2.0**bits - 1
            note = f"16-bit file whose values fit into {bits} bits: read as 0 ... {depth:.0f}, not 0 ... 65535"
    mode = choose_mode(config, has_window=False, has_depth=depth is not None)
    black, white = display_range(pixels, mode, config, depth)
    return Plane(pixels, *((white, black) if inverted else (black, white)), frame=frame, note=note)


def composite_over_black(pixels: np.ndarray, alpha: np.ndarray, largest: float) -> np.ndarray:
    """Composite transparent pixels over black. If all pixels are transparent, the alpha channel was left empty, and is
    ignored.

    Args:
        pixels: (H, W) or (H, W, 3).
        alpha: (H, W), from 0 to `largest`.
    """
    if not alpha.any():
        return pixels
    return pixels * (alpha / np.float32(largest)).reshape(*alpha.shape, *(1,) * (pixels.ndim - 2))


def read_picture(file: BinaryIO, config: DataConfig) -> Iterator[Plane]:
    """The frames of a picture as Pillow reads it.

    8- and 16-bit pixels keep their values; the EXIF orientation is applied; palettes become colour; transparent pixels
    are composited over black.
    """
    head = file.read(33)
    file.seek(0)
    if head.startswith(PNG):
        _check_png(file)
    if head.startswith(PNG) and len(head) == 33 and head[24] == 16 and head[25] & (PNG_COLOUR | PNG_ALPHA):
        yield _deep_png(file, head, config)  # Pillow would reduce it to 8 bits
        return
    if head[4:8] == JPEG_2000_BOX:
        check_codestream(file.read(STREAM_HEADER), config)
        file.seek(0)
    elif head.startswith(JPEG):
        content = file.read()
        check_codestream(content, config)
        check_whole(content)
        file.seek(0)
    with _open_image(file) as image:
        check_pixels(image.size[::-1], config)
        for frame in range(getattr(image, "n_frames", 1) if image.format in ANIMATED else 1):
            image.seek(frame)
            pixels, depth = _pixels(ImageOps.exif_transpose(image), image.format == "PPM")
            significant = None
            if depth == 65535:  # Pillow scales the values of other formats to 16 bits
                significant = _significant_bits(file) if head.startswith(PNG) else 16
            yield picture_plane(pixels, depth, config, frame, significant=significant)


def _open_image(file: BinaryIO) -> Image.Image:
    """Open an image without Pillow's own size limit, which `max_pixels` replaces."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        raise DataError("cannot be read as an image: it is damaged, or in a format that Pillow does not read") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _pixels(image: Image.Image, scaled: bool) -> tuple[np.ndarray, int | None]:
    """float32 (H, W) or (H, W, 3), and the largest value of their bit depth (None for 32-bit pixels).

    Args:
        scaled: in mode I, Pillow has scaled the values to 16 bits.
    """
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.float32), 65535
    if image.mode in ("I", "F"):
        return np.asarray(image).astype(np.float32), 65535 if scaled and image.mode == "I" else None
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        if rgba[..., 3].any():
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    return np.asarray(image).astype(np.float32), 255


def _deep_png(file: BinaryIO, head: bytes, config: DataConfig) -> Plane:
    """A 16-bit PNG in colour or with transparency."""
    from imagecodecs import png_decode

    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    check_pixels((height, width), config)
    content = file.read()
    samples = (3 if head[25] & PNG_COLOUR else 1) + bool(head[25] & PNG_ALPHA)
    check_stored(width * height * samples * 2, len(content), compressed=True)
    pixels = png_decode(content).astype(np.float32).reshape(height, width, -1)
    if pixels.shape[2] in (2, 4):
        pixels = composite_over_black(pixels[..., :-1], pixels[..., -1], 65535)
    file.seek(0)
    return picture_plane(pixels if pixels.shape[2] == 3 else pixels[..., 0], 65535, config,
                         significant=_significant_bits(file))  # fmt: skip


def _check_png(file: BinaryIO) -> None:
    """Raise DataError if a chunk does not match its checksum. Pillow does not check the pixels' chunks."""
    file.seek(len(PNG))
    while len(start := file.read(8)) == 8:
        left, name = int.from_bytes(start[:4], "big"), start[4:]
        checksum = zlib.crc32(name)
        while left and (block := file.read(min(left, 1 << 20))):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        found = file.read(4)
        # The decoder reports a truncated file if pixels are missing.
        if len(found) == 4 and name[:1].isupper() and int.from_bytes(found, "big") != checksum:
            raise DataError(f"is damaged: the checksum of its chunk {name.decode('ascii', 'replace')} is "
                            "wrong; fetch it again")  # fmt: skip
        if name == b"IEND":
            break
    file.seek(0)


def _significant_bits(file: BinaryIO) -> int | None:
    """The number of significant bits in a PNG's sBIT chunk; None if it has none."""
    file.seek(len(PNG))
    while len(start := file.read(8)) == 8:
        length, name = int.from_bytes(start[:4], "big"), start[4:]
        if name == b"sBIT":
            content = file.read(min(length, 4))
            return max(content) if content and 0 < max(content) <= 16 else None
        if name in (b"IDAT", b"IEND"):
            return None
        file.seek(length + 4, 1)
    return None


def read_array(file: BinaryIO, config: DataConfig) -> Iterator[Plane]:
    """The frames of an .npy array: (H, W), (H, W, 3) in colour, or (N, H, W); bool, integers or floating point.

    bool, uint8 and uint16 have the range of their bit depth; other types have none.
    """
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.kind not in "buif" or not 2 <= len(shape) <= 3 or 0 in shape:
        raise DataError(
            f"holds {dtype} of shape {shape}; an image is (H, W), (H, W, 3) in colour or (N, H, W), of real numbers"
        )
    if len(shape) == 3 and shape[2] in (2, 4) and min(shape[:2]) > 4:
        raise DataError(
            f"has shape {shape}: its last axis may be pixels, or grey or colour with "
            "transparency; save (H, W), (H, W, 3) or (N, H, W)"
        )
    colour = len(shape) == 3 and shape[2] == 3
    check_pixels(shape[:2] if colour else shape[-2:], config)
    check_voxels(shape, config)
    check_stored(int(np.prod(shape, dtype=object)) * dtype.itemsize, file.seek(0, 2), compressed=False)
    file.seek(0)
    array = np.load(file, allow_pickle=False)
    depth = {"b": 1, "u": np.iinfo(dtype).max if dtype.kind == "u" and dtype.itemsize < 4 else None}.get(dtype.kind)
    for frame, pixels in enumerate(array[None] if colour or array.ndim == 2 else array):
        yield picture_plane(pixels.astype(np.float64 if dtype.itemsize > 2 else np.float32), depth, config, frame)
