"""A cache of decoded slices on disk, so that each file is decoded once.

An entry has two files named by a key: `<key>.npy`, the images as uint16 (N, C, S, S) or (N, C, D, S, S), see
`image_file`, and `<key>.json`, their description. The key is a hash of everything the images depend on, so a changed
file or option makes another entry. Both files are written under temporary names and renamed when complete, the .json
last: an interrupted run leaves no entry, and processes that build the same entry at once do not interfere.
"""

import hashlib
import importlib.metadata
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.files import parts_of
from vmddpm.data.image_file import ImageFile, ImageWriter
from vmddpm.data.remarks import Remark
from vmddpm.data.slicing import SliceInfo
from vmddpm.errors import InputError
from vmddpm.files import flush, remove_abandoned, write_text

# Increase it when a change to the code gives other images or remarks for the same files and options.
FORMAT = 5
# Part of the key, because a newly installed decoder may read files that were skipped before.
DECODERS = (
    "nibabel",
    "pydicom",
    "pillow",
    "tifffile",
    "imagecodecs",
    "SimpleITK",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pyjpegls",
    "python-gdcm",
)
LEVELS = 65535


class EncodedImages(Protocol):
    """A sequence of images, each uint16 (C, S, S) or (C, D, S, S): a file, a selection of its images, or an array."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> np.ndarray: ...


@dataclass
class SliceSet:
    """Images and their origins.

    Attributes:
        images: N images, uint16 (C, S, S) or (C, D, S, S), 0 for -1 and 65535 for 1.
        slices: the origins of the N images.
        remarks: omissions, and decisions of the readers.
        seen: number of slices read, including those left out as empty.
    """

    images: EncodedImages
    slices: list[SliceInfo]
    remarks: list[Remark]
    seen: int


def encode(image: np.ndarray) -> np.ndarray:
    """Map [-1, 1] to uint16, in steps of 2/65535: lossless for 8- and 16-bit files."""
    return np.rint((image + 1) * (LEVELS / 2)).astype(np.uint16)


def decode(image: np.ndarray) -> np.ndarray:
    """The inverse of `encode`: float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(LEVELS / 2) - 1


def cache_folder(config: DataConfig) -> Path:
    """`config.cache_dir`, or `vmddpm` in the user's cache folder (the XDG base directory specification).

    Raises:
        DataError: if `cache_dir` is not set and the user has no home folder.
    """
    if config.cache_dir:
        return Path(os.path.expanduser(config.cache_dir))
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmddpm"
    except RuntimeError as error:
        raise DataError("the user has no home folder for the cache; set cache_dir to a folder") from error


def cache_key(config: DataConfig, files: Iterable[Path]) -> str:
    """Hash of the options, the decoders' versions, and the path, size and modification time of every file."""
    # root and pattern count through the files they select; split applies only to stores.
    options = asdict(replace(config, root="", pattern="", cache_dir=None, split="train"))
    digest = hashlib.sha256(json.dumps([FORMAT, options, [_version(name) for name in DECODERS]]).encode())
    for path in (part for file in files for part in parts_of(file)):
        try:
            status = path.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError as error:
            state = str(error)
        digest.update(os.fsencode(path) + f"\0{state}\0".encode())
    return digest.hexdigest()[:32]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def load(folder: Path, key: str) -> SliceSet | None:
    """The entry of a key; None if it is missing, or, with a warning, damaged (unreadable, truncated, or with the wrong
    number of images).
    """
    manifest_path, images_path = folder / f"{key}.json", folder / f"{key}.npy"
    if not manifest_path.exists():
        return None
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        slices = [SliceInfo(**entry) for entry in manifest["slices"]]
        images = ImageFile(images_path)
        if len(images) != len(slices):
            raise InputError(f"{len(images)} images for {len(slices)} slices")
        remarks = [Remark(**entry) for entry in manifest["remarks"]]
        return SliceSet(images, slices, remarks, manifest["seen"])
    except Exception as error:
        # Damage can raise any exception, and the remedy is always to rebuild the entry.
        warnings.warn(f"{images_path}: the cache is damaged and is built again ({error})", stacklevel=2)
        return None


class CacheWriter(ImageWriter):
    """Writes an entry image by image.

    Args:
        shape: of one image, (C, S, S) or (C, D, S, S).

    Raises:
        OSError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, key: str, shape: tuple[int, ...]) -> None:
        remove_abandoned(folder.glob(".*.tmp.npy"))  # each may be as large as the data set
        super().__init__(folder / f"{key}.npy", shape)

    def commit_entry(self, slices: list[SliceInfo], remarks: list[Remark], seen: int) -> SliceSet:
        """Move the complete entry to its final names."""
        images = self.commit()
        flush(self.path.parent)  # the .npy must be on the disk before the .json
        entry = {
            "slices": [asdict(info) for info in slices],
            "remarks": [asdict(remark) for remark in remarks],
            "seen": seen,
        }
        write_text(self.path.with_suffix(".json"), json.dumps(entry))
        return SliceSet(images, slices, remarks, seen)
