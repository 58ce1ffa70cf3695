"""Limits on what a file may unpack to, checked by its header: a small file can claim terabytes."""

import math
from collections.abc import Sequence

from vmddpm.data.config import DataConfig, DataError

# Deflate, the compression of gzip, PNG and most TIFF files, makes at most so many bytes of one.
DEFLATE_RATIO = 1032
BYTES_A_VOXEL = 8
JPEG_2000 = b"\xff\x4f\xff\x51"  # start of a codestream, and of its sizes
JPEG = b"\xff\xd8"
SCAN, END = b"\xff\xda", b"\xff\xd9"  # markers, which compressed data cannot contain
# Markers of a frame header, of JPEG (not those of tables) and of JPEG-LS.
FRAME_HEADERS = (*(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC)), 0xF7)


def check_pixels(shape: Sequence[int], config: DataConfig) -> None:
    """Raises DataError if a picture of that height and width is larger than `max_pixels`."""
    if math.prod(shape) > config.max_pixels:
        raise DataError(
            f"says that it has {' x '.join(map(str, shape))} pixels, more than max_pixels {config.max_pixels:,}; "
            "if that is true, and memory suffices, raise max_pixels"
        )


def check_voxels(shape: Sequence[int], config: DataConfig) -> None:
    """Raises DataError if so many values, which are in memory together, are more than `max_voxels`."""
    if math.prod(shape) > config.max_voxels:
        raise DataError(
            f"says that it has {' x '.join(map(str, shape))} values, more than max_voxels {config.max_voxels:,}; "
            "if that is true, and memory suffices, raise max_voxels"
        )


def check_unpacked(count: int, config: DataConfig) -> None:
    """Raises DataError if so many unpacked bytes are more than any file within `max_voxels` needs."""
    if count > BYTES_A_VOXEL * config.max_voxels:
        raise DataError(f"unpacks to more than {BYTES_A_VOXEL} bytes for each of max_voxels {config.max_voxels:,}")


def check_member(count: int, size: int, config: DataConfig) -> None:
    """Raises DataError if the archive has more members than `max_members`, or one that is larger than a picture is."""
    if count > config.max_members:
        raise DataError(
            f"holds more than max_members {config.max_members:,} files; if that is right, raise max_members"
        )
    if size > BYTES_A_VOXEL * config.max_pixels:
        raise DataError(
            f"holds a file of {size:,} bytes, more than {BYTES_A_VOXEL} for each of max_pixels {config.max_pixels:,}; "
            "if that is right, raise max_pixels"
        )


def check_stored(needed: int, stored: int, *, compressed: bool) -> None:
    """Raises DataError if a file of `stored` bytes cannot hold the `needed` bytes that its header promises."""
    if needed > stored * (DEFLATE_RATIO if compressed else 1):
        raise DataError(f"is damaged or cut short: its header promises {needed:,} bytes, and the file has {stored:,}")


def check_codestream(content: bytes, config: DataConfig) -> tuple[int, int] | None:
    """Height and width of a JPEG, JPEG-LS or JPEG 2000 stream inside a file; None if it is none of them.

    Raises:
        DataError: if the stream is larger than `max_pixels` by its own header, whatever the file says: decoders believe
            the stream.
    """
    size = _jpeg_size(content) if content.startswith(JPEG) else _jpeg_2000_size(content)
    if size is not None:
        check_pixels(size, config)
    return size


def check_ended(content: bytes) -> None:
    """Raises DataError if a JPEG or JPEG-LS stream is cut short: decoders fill the rest of the picture with what they
    like. JPEG 2000 is left to its decoder, which refuses such a stream."""
    if content.startswith(JPEG) and content.rfind(END) < max(content.rfind(SCAN), len(JPEG)):
        raise DataError("is damaged or cut short: a JPEG stream in it lacks its end marker (FFD9); fetch it again")


def _jpeg_2000_size(content: bytes) -> tuple[int, int] | None:
    """Height and width (ISO/IEC 15444-1, A.5.1)."""
    start = content.find(JPEG_2000, 0, 1 << 16)
    fields = content[start + 8 : start + 24]
    if start < 0 or len(fields) < 16:
        return None
    right, bottom, left, top = (int.from_bytes(fields[n : n + 4], "big") for n in range(0, 16, 4))
    return max(bottom - top, 0), max(right - left, 0)


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Height and width (ISO/IEC 10918-1, B.2.2)."""
    at = 2
    while content.startswith(JPEG) and at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in FRAME_HEADERS:
            return int.from_bytes(content[at + 5 : at + 7], "big"), int.from_bytes(content[at + 7 : at + 9], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return None
