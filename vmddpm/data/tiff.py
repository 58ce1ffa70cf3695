"""TIFF files, read by tifffile: pages of every sample type and layout."""

import json
import math
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import tifffile

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.limits import check_pixels, check_stored, check_voxels
from vmddpm.data.pictures import composite_over_black, picture_plane
from vmddpm.data.slicing import Plane
from vmddpm.data.streams import check_codestream, check_whole

REDUCED, MASK = 1, 4  # bits of tag 254, NewSubfileType
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6  # values of tag 262, PhotometricInterpretation
# Values of tag 259, Compression, for which tifffile converts YCbCr to RGB: the JPEGs and Aperio's JPEG 2000.
TO_RGB = (6, 7, 33003, 33007, 34892)
ASSOCIATED_ALPHA, ALPHA = 1, 2  # values of tag 338, ExtraSamples
NONE, DEFLATES = 1, (8, 32946, 5)  # values of tag 259, Compression; LZW compresses no better than deflate
STREAM_HEADER = 1 << 16  # a stream's size is stated within so many bytes
# Values of tag 274, Orientation, with the transform that each needs.
TURNS = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: np.swapaxes(p, 0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.swapaxes(p[::-1, ::-1], 0, 1),
    8: lambda p: np.rot90(p),
}


def read_tiff(file: BinaryIO, config: DataConfig) -> Iterator[Plane]:
    """The pages of a TIFF file, and the slices of pages that are stacks; thumbnails and masks (tag 254) are left out.

    The orientation (tag 274) is applied, white-is-zero pixels are inverted, palettes become colour, and transparent
    pixels are composited over black. Unsigned pixels of up to 16 bits have the range of their bit depth; others have
    none.

    Raises:
        DataError: if a page is damaged, or is neither a grey nor an RGB picture.
    """
    stored = file.seek(0, 2)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        frame = 0
        for page in tiff.pages:
            page = page.aspage() if isinstance(page, tifffile.TiffFrame) else page
            if page.subfiletype & (REDUCED | MASK):
                continue
            _check(page, stored, config)
            _check_streams(tiff, page, config)
            for pixels in _pictures(tiff, page):
                yield _plane(page, pixels, config, frame)
                frame += 1
        _require_last(tiff)
        if not frame:
            raise DataError("holds only thumbnails and masks, according to NewSubfileType (254) of its pages")


def _require_last(tiff: tifffile.TiffFile) -> None:
    """Raise DataError if the last page points to another: tifffile stops silently at a page that it cannot read."""
    file, form = tiff.filehandle, tiff.tiff
    last = tiff.pages[-1].offset
    file.seek(last)
    (count,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    file.seek(last + form.tagnosize + count * form.tagsize)
    (following,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
    if following:
        raise DataError(f"is damaged or truncated: its page {len(tiff.pages)} is not followed by a page")


def _check(page: tifffile.TiffPage, stored: int, config: DataConfig) -> None:
    photometric = page.photometric
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR):
        name = getattr(photometric, "name", photometric)
        raise DataError(f"its PhotometricInterpretation (262) is {name}; convert it to grey or RGB")
    if photometric == YCBCR and page.compression not in TO_RGB:
        raise DataError("its PhotometricInterpretation (262) is YCBCR without JPEG compression; convert it to RGB")
    if page.dtype is None or page.dtype.kind not in "buif":
        raise DataError(f"its SampleFormat (339) {page.sampleformat} with {page.bitspersample} bits is not supported")
    check_pixels((page.imagelength, page.imagewidth), config)
    check_voxels((page.imagedepth, page.imagelength, page.imagewidth, page.samplesperpixel), config)
    if page.compression == NONE or page.compression in DEFLATES:
        needed = page.imagedepth * page.imagelength * page.imagewidth * page.samplesperpixel * page.bitspersample // 8
        check_stored(needed, stored, compressed=page.compression != NONE)


def _check_streams(tiff: tifffile.TiffFile, page: tifffile.TiffPage, config: DataConfig) -> None:
    """Check the strips and tiles that are JPEG or JPEG 2000 streams, which have headers with their own sizes."""
    if page.compression == NONE or page.compression in DEFLATES:
        return
    for offset, count in zip(page.dataoffsets, page.databytecounts):
        tiff.filehandle.seek(offset)
        content = tiff.filehandle.read(count)
        check_codestream(content[:STREAM_HEADER], config)
        check_whole(content, page.jpegtables)


def _pictures(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Iterator[np.ndarray]:
    """The pictures (H, W, samples) of a page: one, or each slice of a stack."""
    images = _images(tiff, page)
    if images > 1:
        if page.compression != NONE or len(page.dataoffsets) != 1:
            raise DataError(f"declares {images} images, but not where they are; save it again with one page per image")
        start, size = page.dataoffsets[0], page.nbytes
        check_stored(start + images * size, tiff.filehandle.size, compressed=False)
        for number in range(images):
            tiff.filehandle.seek(start + number * size)
            assert page.dtype is not None  # checked before
            array = np.frombuffer(tiff.filehandle.read(size), page.dtype.newbyteorder(tiff.byteorder))
            yield from _samples_last(array.reshape(page.shaped))
        return
    array = page.asarray().reshape(page.shaped)  # (separate samples, depth, height, width, joint samples)
    yield from _samples_last(array)


def _images(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> int:
    """The number of images stored after a page: ImageJ writes large stacks with a single page, as tifffile can."""
    if tiff.is_imagej and len(tiff.pages) == 1:
        return int((tiff.imagej_metadata or {}).get("images", 1))
    if (description := page.shaped_description) is not None and description.startswith("{"):  # not by old versions
        try:
            metadata = json.loads(description)
        except ValueError as error:
            raise DataError(f"its ImageDescription (270) is damaged ({error}); save it again") from error
        if metadata.get("truncated"):
            return max(math.prod(int(length) for length in metadata["shape"]) // page.size, 1)
    return 1


def _samples_last(array: np.ndarray) -> np.ndarray:
    """(S, D, H, W, 1) or (1, D, H, W, S) -> (D, H, W, S)."""
    return np.moveaxis(array, 0, -1)[..., 0, :] if array.shape[0] > 1 else np.asarray(array[0])


def _plane(page: tifffile.TiffPage, pixels: np.ndarray, config: DataConfig, frame: int) -> Plane:
    dtype = pixels.dtype
    depth = None
    if dtype.kind == "b":
        depth = 1
    elif dtype.kind == "u" and page.bitspersample <= 16:
        depth = 2**page.bitspersample - 1
    wide = dtype.kind != "b" and dtype.itemsize > 2 and dtype != np.float32
    values = pixels.astype(np.float64 if wide else np.float32)
    if page.photometric == PALETTE:
        if page.colormap is None:
            raise DataError("has palette pixels, but no ColorMap (320)")
        values, depth = np.moveaxis(page.colormap, 0, -1)[pixels[..., 0]].astype(np.float32), 65535
        if page.colormap.max() <= 255:  # 8-bit entries, contrary to the standard
            depth = 255
    else:
        values = _colours(page, values, depth)
    turn = TURNS.get(page.tags.valueof(274, 1))
    values = turn(values) if turn else values
    return picture_plane(values, depth, config, frame, inverted=page.photometric == WHITE_IS_ZERO)


def _colours(page: tifffile.TiffPage, values: np.ndarray, depth: float | None) -> np.ndarray:
    """Reduce all samples of a page, including extra samples, to (H, W) or (H, W, 3)."""
    main = 3 if page.photometric in (RGB, YCBCR) else 1
    extra = tuple(int(kind) for kind in page.extrasamples)
    alpha = extra in ((ALPHA,), (ASSOCIATED_ALPHA,))
    if values.shape[2] != main and not (values.shape[2] == main + 1 and (alpha or main == 3)):
        raise DataError(
            f"has {values.shape[2]} samples per pixel (277), but its PhotometricInterpretation (262) has {main}; "
            "convert it to one page per channel"
        )
    colours = values[..., :main]
    if extra == (ALPHA,) and values.shape[2] > main and depth is not None:
        colours = composite_over_black(colours, values[..., main], depth)
    return colours if main == 3 else colours[..., 0]
