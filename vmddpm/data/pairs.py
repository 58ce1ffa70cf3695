"""Pairs each image with another, a mask or another modality, by name."""

import os
import re
from dataclasses import replace
from pathlib import Path

from vmddpm.data.conditions import ConditionConfig
from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.dataset import SliceDataset
from vmddpm.data.readers import stem_of
from vmddpm.data.slicing import SliceInfo
from vmddpm.data.store import is_store

ASPECT_TOLERANCE = 1e-3  # relative tolerance of pixel aspect ratios
Key = tuple[str, str, int, int]  # the text matched by a pattern's stars, axis, index, frame


def refuse_stores(config: ConditionConfig, data: DataConfig) -> None:
    """Raise DataError if either set of images is a store, which cannot be paired."""
    for root in (data.root, config.image or ""):
        if is_store(root):
            raise DataError(f"{root}: is a store, which does not keep the original image sizes that pairs need; give "
                            "the folder it was made from")  # fmt: skip


def condition_data(config: ConditionConfig, data: DataConfig) -> DataConfig:
    """The configuration for reading the paired images of `data`: all of them, in the same size."""
    return replace(
        data, root=config.image or "", pattern=config.image_pattern, channels=config.image_channels,
        normalize=config.image_normalize, window=config.image_window, split="train", limit=None, min_foreground=0.0,
        modality=None, series=None, image_type=None, on_error="fail",
    )  # fmt: skip


def pair(images: SliceDataset, condition_images: SliceDataset) -> list[int]:
    """The index in `condition_images` of the pair of each image in `images`.

    Raises:
        DataError: naming an image with no pair or two, or a pair of different heights, widths or aspect ratios.
    """
    index_of: dict[Key, int] = {}
    for index, info in enumerate(condition_images.slices):
        key = _key(info, condition_images.config)
        if (other := index_of.setdefault(key, index)) != index:
            first = condition_images.slices[other].path
            raise DataError(f"{first} and {info.path} are both the condition image of {key[0]}; "
                            "remove one, or narrow condition.image_pattern")  # fmt: skip
    keys = [_key(info, images.config) for info in images.slices]
    if missing := [i for i, key in enumerate(keys) if key not in index_of]:
        info, key = images.slices[missing[0]], keys[missing[0]]
        many = f"{len(missing):,} images have" if len(missing) > 1 else "an image has"
        raise DataError(
            f"{many} no condition image in {condition_images.config.root}: {_describe(info)} needs "
            f"the one that {condition_images.config.pattern} finds for {key[0]}; add it, or remove the image"
        )
    found = [index_of[key] for key in keys]
    for info, index in zip(images.slices, found):
        _compare(info, condition_images.slices[index])
    return found


def _compare(info: SliceInfo, other: SliceInfo) -> None:
    if (info.height, info.width) != (other.height, other.width):
        raise DataError(
            f"{_describe(other)} is {other.height} x {other.width} pixels, but its image, {_describe(info)}, is "
            f"{info.height} x {info.width}; resample one to the other's grid"
        )
    if abs(info.aspect / other.aspect - 1) > ASPECT_TOLERANCE:
        raise DataError(
            f"{_describe(other)} has a pixel aspect ratio of {other.aspect:.4g}, but its image, "
            f"{_describe(info)}, has {info.aspect:.4g}; correct the spacing in one of the files"
        )


def _key(info: SliceInfo, config: DataConfig) -> Key:
    path, root = Path(info.path), Path(os.path.expanduser(config.root)).absolute()
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else path.name
    return varying_part(name, config.pattern), info.axis, info.index, info.frame


def varying_part(name: str, pattern: str) -> str:
    """The text matched by the stars of a shell pattern in a name, without the suffixes of an image file.

    Example:
        >>> varying_part("HGG/case7/case7_flair.nii.gz", "*_flair.nii.gz")
        'HGG/case7/case7'
    """
    parts = pattern.split("*")
    if any(mark in pattern for mark in "?["):
        return stem_of(name)
    match = re.fullmatch("(.*)".join(map(re.escape, parts)), name, re.DOTALL)
    return stem_of("".join(match.groups())) if match and len(parts) > 1 else stem_of(name)


def _describe(info: SliceInfo) -> str:
    position = f", {info.axis} {info.index}" if info.axis != "stored" else ""
    return f"{info.path}{position}" + (f", frame {info.frame}" if info.frame else "")
