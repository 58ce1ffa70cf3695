"""Decoded slices on disk, so that a file is decoded once.

An entry is two files named by a key: `<key>.npy`, the images as uint16 (N, C, S, S) or (N, C, D, S, S), see
`image_file`, and `<key>.json`, what they are. The key is a hash of everything the images depend on, so a changed file
or option makes another entry. Both are written under other names and renamed when they are whole, the .json last: an
interrupted run leaves no entry, and processes that build the same entry at once do not disturb each other.
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

# Raised when the same files and options give other images or remarks.
FORMAT = 5
# A decoder that is installed later can read a file that had to be skipped before.
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
    """Images by number, each uint16 (C, S, S) or (C, D, S, S): a file, some of its images, an array."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> np.ndarray: ...


@dataclass
class SliceSet:
    """Images and where they come from.

    Attributes:
        images: N of uint16 (C, S, S) or (C, D, S, S), 0 for -1 and 65535 for 1.
        slices: N of them.
        remarks: what was left out, and what the readers had to decide.
        seen: number of slices that were read, with those left out as empty.
    """

    images: EncodedImages
    slices: list[SliceInfo]
    remarks: list[Remark]
    seen: int


def encode(image: np.ndarray) -> np.ndarray:
    """[-1, 1] to uint16, in steps of 2/65535: 8- and 16-bit files lose nothing."""
    return np.rint((image + 1) * (LEVELS / 2)).astype(np.uint16)


def decode(image: np.ndarray) -> np.ndarray:
    """The inverse of `encode`: float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(LEVELS / 2) - 1


def cache_folder(config: DataConfig) -> Path:
    """`config.cache_dir`, or `vmddpm` in the user's cache folder (the XDG base directory specification).

    Raises:
        DataError: if neither is known.
    """
    if config.cache_dir:
        return Path(os.path.expanduser(config.cache_dir))
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmddpm"
    except RuntimeError as error:
        raise DataError("the user has no home folder for the cache; set cache_dir to a folder") from error


def cache_key(config: DataConfig, files: Iterable[Path]) -> str:
    """Hash of the options, the decoders' versions, and the path, size and modification time of every file."""
    # root and pattern act through the files they name, split in stores only.
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
    """The entry of that key; None if there is none.

    A damaged entry (unreadable, cut short, or of another number of images) is none either, with a warning.
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
        # Damage can be of any kind, and the cure is the same for all.
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
        remove_abandoned(folder.glob(".*.tmp.npy"))  # as large as the data set
        super().__init__(folder / f"{key}.npy", shape)

    def commit_entry(self, slices: list[SliceInfo], remarks: list[Remark], seen: int) -> SliceSet:
        """Puts the entry in its place."""
        images = self.commit()
        flush(self.path.parent)  # its name, before that of the entry
        entry = {
            "slices": [asdict(info) for info in slices],
            "remarks": [asdict(remark) for remark in remarks],
            "seen": seen,
        }
        write_text(self.path.with_suffix(".json"), json.dumps(entry))
        return SliceSet(images, slices, remarks, seen)
