"""Limits on the decoded size of a file, checked by its header: a small file can claim terabytes."""

import math
from collections.abc import Sequence

from vmddpm.data.config import DataConfig, DataError

# Largest compression ratio of deflate, which gzip, PNG and most TIFF files use.
DEFLATE_RATIO = 1032
BYTES_A_VOXEL = 8


def check_pixels(shape: Sequence[int], config: DataConfig) -> None:
    """Raise DataError if a picture of this height and width has more than `max_pixels` pixels."""
    if math.prod(shape) > config.max_pixels:
        raise DataError(
            f"declares {' x '.join(map(str, shape))} pixels, more than max_pixels {config.max_pixels:,}; "
            "if that is right and memory allows, raise max_pixels"
        )


def check_voxels(shape: Sequence[int], config: DataConfig) -> None:
    """Raise DataError if an array of this shape, held in memory, has more than `max_voxels` values."""
    if math.prod(shape) > config.max_voxels:
        raise DataError(
            f"declares {' x '.join(map(str, shape))} values, more than max_voxels {config.max_voxels:,}; "
            "if that is right and memory allows, raise max_voxels"
        )


def check_unpacked(count: int, config: DataConfig) -> None:
    """Raise DataError if `count` decompressed bytes are more than any file within `max_voxels` needs."""
    if count > BYTES_A_VOXEL * config.max_voxels:
        raise DataError(f"unpacks to more than {BYTES_A_VOXEL} bytes for each of max_voxels {config.max_voxels:,}")


def check_member(count: int, size: int, config: DataConfig) -> None:
    """Raise DataError if an archive has more than `max_members` members, or one too large for a picture."""
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
    """Raise DataError if a file of `stored` bytes cannot hold the `needed` bytes that its header promises."""
    if needed > stored * (DEFLATE_RATIO if compressed else 1):
        raise DataError(f"is damaged or truncated: its header declares {needed:,} bytes, but the file has {stored:,}")
