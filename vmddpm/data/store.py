"""A store: a data set prepared once, in one folder.

    images.npy        uint16 (N, C, S, S), or (N, C, D, S, S) for volumes, 0 for -1 and 65535 for 1
    manifest.jsonl    one line per image: source file, patient, split, slice, window, checksums
    store.json        options, omissions with reasons, counts, the SHA-256 of the manifest; written last

NumPy alone can read `images.npy`: `np.load("images.npy", mmap_mode="r")`.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vmddpm.data.cache import SliceSet
from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.image_file import ImageFile
from vmddpm.data.remarks import Remark
from vmddpm.data.slicing import SliceInfo
from vmddpm.errors import InputError
from vmddpm.files import atomic_write, is_temporary, remove_leftovers, sha256, write_text

FORMAT = 2


@dataclass(frozen=True)
class StoredSlice:
    """A line of the manifest.

    Attributes:
        source: path of the file below the prepared folder.
        patient: the patient.
        split: "train" or "test", the same for all images of a patient.
        axis, index, frame: as in `SliceInfo`.
        black, white: the file's values for -1 and 1.
        crc32: checksum of the image's bytes in images.npy.
        source_sha256: SHA-256 of the file; for a header with separate voxels, of both, concatenated.
    """

    source: str
    patient: str
    split: str
    axis: str
    index: int
    frame: int
    black: float
    white: float
    crc32: int
    source_sha256: str


def split_of(patient: str, test_share: float) -> str:
    """The split of a patient, "train" or "test". It depends on the name alone, not on the other patients."""
    fraction = int.from_bytes(hashlib.sha256(patient.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64
    return "test" if fraction < test_share else "train"


def is_store(root: str | Path) -> bool:
    return bool(root) and (Path(os.path.expanduser(root)) / "store.json").is_file()


@contextmanager
def new_store(folder: Path) -> Iterator[Path]:
    """Reserve a folder for a new store. Yields a temporary file, which `write_records` fills and which becomes
    store.json at the end. While it exists, other processes see that the folder is taken. Leftovers of a killed process
    are removed, with a warning.

    Raises:
        DataError: if the folder holds anything else, or another process is writing a store there.
    """
    if folder.exists():
        _clear(folder)
    with atomic_write(folder / "store.json") as temporary:
        temporary.touch()
        yield temporary


def _clear(folder: Path) -> None:
    """Empty the folder if it holds only leftovers of a killed process. Raises DataError if it holds anything else."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [""]
    parts = ("images.npy", "manifest.jsonl")
    leftovers = [name for name in names if any(is_temporary(name, of) for of in (*parts, "store.json"))]
    if set(names) - {*parts, *leftovers}:
        raise DataError(f"{folder} is not empty; choose another folder, or remove it")
    remove_leftovers(folder, shared=True)
    if any((folder / name).exists() for name in leftovers):
        raise DataError(
            f"another `vmddpm prepare` is using {folder}, on this or another machine; choose another folder, or "
            "remove it if none is running"
        )
    if names:
        warnings.warn(f"{folder}: the files of an interrupted prepare are removed; it starts again", stacklevel=5)
        for name in parts:
            (folder / name).unlink(missing_ok=True)


def write_records(folder: Path, slices: Sequence[StoredSlice], made: dict[str, Any], temporary: Path) -> None:
    """Write the manifest and the content of store.json; images.npy must be complete.

    Args:
        temporary: the file that becomes store.json; see `new_store`.
    """
    manifest = folder / "manifest.jsonl"
    write_text(manifest, "".join(json.dumps(asdict(info)) + "\n" for info in slices))
    record = {"format": FORMAT, **made, "images": len(slices), "manifest_sha256": sha256(manifest)}
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_store(folder: Path) -> tuple[ImageFile, list[StoredSlice], dict[str, Any]]:
    """Images, manifest and store.json. Raises DataError if they are missing, damaged or do not belong together."""
    if not is_store(folder):
        raise DataError(f"{folder}: is not a store: it has no store.json; `vmddpm prepare` makes stores")
    try:
        record = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            raise DataError(f"{folder}: a store of another version of vmddpm; prepare it again")
        if sha256(folder / "manifest.jsonl") != record["manifest_sha256"]:
            raise InputError("manifest.jsonl was changed")
        with open(folder / "manifest.jsonl", encoding="utf-8") as file:
            slices = [_stored_slice(json.loads(line)) for line in file]
        images = ImageFile(folder / "images.npy", np.array([info.crc32 for info in slices], np.uint32))
        if not len(images) == len(slices) == record["images"]:
            raise InputError(f"images.npy holds {len(images)} images, the manifest {len(slices)}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{folder}: the store is damaged ({error}); prepare it again") from error
    return images, slices, record


def _stored_slice(line: dict[str, Any]) -> StoredSlice:
    """Parse a line of the manifest. Raises InputError or TypeError if it is invalid or names a file outside the folder.
    """
    info = StoredSlice(**line)
    kinds: dict[Any, Any] = {int: int, float: (int, float), str: str}
    wrong = [field.name for field in fields(info) if not isinstance(getattr(info, field.name), kinds[field.type])]
    if wrong:
        raise InputError(f"{wrong[0]} cannot be {getattr(info, wrong[0])!r:.60}")
    source = PurePosixPath(info.source)
    if source.is_absolute() or ".." in source.parts:
        raise InputError(f"source {info.source!r:.80} is not a file below the prepared folder")
    return info


class ImageSubset:
    """A selection of the images of a store, by index."""

    def __init__(self, images: ImageFile, indices: list[int]) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.images[self.indices[i]]

    def checksums(self) -> np.ndarray:
        """int64 (n,): the CRC-32 of each image, from the manifest."""
        checksums = self.images.checksums
        assert checksums is not None  # `read_store` sets them
        return checksums[self.indices].astype(np.int64)


def open_store(config: DataConfig) -> SliceSet:
    """The configured split of the store `config.root`.

    Raises:
        DataError: if the store is damaged, its images have another size or number of channels, or the split is empty.
    """
    folder = Path(os.path.expanduser(config.root))
    images, slices, record = read_store(folder)
    channels, size = images.shape[1], images.shape[-1]
    if len(images.shape) == 4 and config.spatial_dims == 2 and (channels, size) != (config.channels, config.size):
        raise DataError(
            f"{folder}: its images have {channels} channels and {size} pixels a side, but channels is "
            f"{config.channels} and size {config.size}; set both to the store's, or prepare it again"
        )
    if images.shape[1:] != config.shape:
        stored, requested = (" x ".join(map(str, shape)) for shape in (images.shape[1:], config.shape))
        raise DataError(
            f"{folder}: it holds {stored} (channels, and voxels or pixels), but the options say {requested}; set "
            "spatial_dims, size and depth to the store's, or prepare it again"
        )
    if config.spatial_dims == 3 and (stored := record["options"].get("spacing")) != _as_json(config.spacing):
        raise DataError(f"{folder}: its volumes have spacing {stored}, but spacing is "
                        f"{config.spacing}; set it to {stored}")  # fmt: skip
    indices = [i for i, info in enumerate(slices) if config.split in ("all", info.split)][: config.limit]
    if not indices:
        raise DataError(f"{folder}: there is no image in its {config.split} split")
    chosen = [slices[i] for i in indices]
    infos = [SliceInfo(info.source, info.axis, info.index, info.frame) for info in chosen]
    return SliceSet(ImageSubset(images, indices), infos, remarks_of(record), record["seen"])


def _as_json(spacing: float | tuple[float, ...] | None) -> Any:
    """The value as read back from JSON."""
    return list(spacing) if isinstance(spacing, tuple) else spacing


def remarks_of(record: dict[str, Any]) -> list[Remark]:
    """The remarks in a store.json."""
    return [Remark(**entry) for entry in record["remarks"]]
