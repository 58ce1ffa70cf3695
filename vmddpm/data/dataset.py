"""The data set: every slice of a folder of medical images, ready for a network."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vmddpm.data import cache
from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.files import find_files
from vmddpm.data.readers import read_file
from vmddpm.data.slicing import Plane, SliceInfo, foreground_share, volume_planes
from vmddpm.data.store import is_store, open_store
from vmddpm.data.transforms import prepare

LISTED_FILES = 20


class SliceDataset(Dataset[Tensor]):
    """The slices of all images of a folder or a prepared store, as float32 tensors (channels, size, size) in [-1, 1].

    The first time, every file of a folder is decoded, one at a time, into a cache on disk; then the cache is read.
    Slices are sorted by path, then frame, axis and place, so index i is the same image in every run.

    Args:
        config: what to read, and how.
        progress: show a bar while decoding.

    Attributes:
        config: as given.
        slices: where each image comes from.
        skipped: "path: reason" of each file that could not be read (`on_error: skip`).
        seen: number of slices that were read, with those left out by `min_foreground`.

    Raises:
        DataError: if there is no file, a file cannot be read (`on_error: fail`), no slice is left, the cache cannot be
            written, or the store is damaged or of other images.
    """

    def __init__(self, config: DataConfig, progress: bool = False) -> None:
        if is_store(config.root):
            self._take(config, open_store(config))
            return
        if config.split == "test":
            raise DataError(f"{config.root}: has no test side; `vmddpm prepare` makes stores that have one")
        files = find_files(config)
        folder, key = cache.cache_folder(config), cache.cache_key(config, files)
        self._take(config, cache.load(folder, key) or _build(config, files, folder, key, progress))

    def _take(self, config: DataConfig, found: cache.SliceSet) -> None:
        self.config, self._images = config, found.images
        self.slices, self.skipped, self.seen = found.slices, found.skipped, found.seen
        if self.skipped:
            heading = f"{len(self.skipped)} files could not be read and were skipped:"
            warnings.warn(_listed(heading, self.skipped), stacklevel=3)

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, i: int) -> Tensor:
        """float32 (channels, size, size) in [-1, 1]. Raises IndexError, or DataError if it cannot be read any more."""
        return torch.from_numpy(cache.decode(self._images[i]))


def held_out_images(config: DataConfig, root: str | None = None) -> "SliceDataset | None":
    """Images that a run of `config` has not seen: those of another folder, or the test side of its own store; None if
    it has none.

    Raises:
        DataError: as SliceDataset.
    """
    if root:
        return SliceDataset(replace(config, root=root, limit=None, split="all"), progress=True)
    if not is_store(config.root) or config.split == "all":
        return None
    try:
        return SliceDataset(replace(config, limit=None, split="test"))
    except DataError:  # a store need not have a test side
        return None


def from_volumes(volumes: Iterable[object], config: DataConfig | None = None) -> SliceDataset:
    """The same data set from volumes in memory; nothing is read from or written to disk.

    Args:
        volumes: nibabel images, or arrays or CPU tensors (X, Y, Z) or (X, Y, Z, T) with X to the patient's
            right, Y to anterior, Z to superior, and cubic voxels. They are taken one at a time, so a
            generator will do.
        config: `root`, `pattern` and `cache_dir` have no effect.

    Returns:
        A SliceDataset whose slices have the paths "volume 0", "volume 1" ...

    Raises:
        DataError: as SliceDataset, naming the volume.
    """
    config = config or DataConfig()
    images: list[np.ndarray] = []

    def cut(count: int) -> None:
        del images[count:]

    sources = ((f"volume {n}", _planes(volume, config)) for n, volume in enumerate(volumes))
    slices, skipped, seen = _collect(sources, config, images.append, cut)
    if not slices:
        raise DataError(_nothing_left("the volumes in memory", config, skipped, seen))
    dataset = SliceDataset.__new__(SliceDataset)
    dataset._take(config, cache.SliceSet(np.stack(images), slices, skipped, seen))
    return dataset


def _planes(volume: object, config: DataConfig) -> Iterator[Plane]:
    if not isinstance(volume, nib.spatialimages.SpatialImage):
        volume = nib.Nifti1Image(np.asarray(volume, np.float32), np.eye(4))
    return volume_planes(volume, config)


def _build(config: DataConfig, files: list[Path], folder: Path, key: str, progress: bool) -> cache.SliceSet:
    shape = config.channels, config.size, config.size
    try:
        with cache.CacheWriter(folder, key, shape) as writer, tqdm(files, "decoding", disable=not progress) as bar:
            sources = ((str(path), read_file(path, config)) for path in bar)
            slices, skipped, seen = _collect(sources, config, writer.append, writer.cut)
            if not slices:
                raise DataError(_nothing_left(config.root, config, skipped, seen))
            return writer.commit_entry(slices, skipped, seen)
    except OSError as error:
        raise DataError(
            f"{folder}: the cache cannot be written ({error.strerror}); make room there, or change cache_dir"
        ) from error


def _collect(
    sources: Iterable[tuple[str, Iterator[Plane]]],
    config: DataConfig,
    append: Callable[[np.ndarray], None],
    cut: Callable[[int], None],
) -> tuple[list[SliceInfo], list[str], int]:
    """Prepares the planes of each named source and appends those with enough foreground.

    Args:
        append: takes an encoded image.
        cut: drops all but the first so many images: a source that fails half-way is taken back as a whole.

    Returns:
        (slices, skipped, seen) as in `SliceSet`.
    """
    slices: list[SliceInfo] = []
    skipped: list[str] = []
    seen = 0
    for name, planes in sources:
        kept_before, seen_before = len(slices), seen
        try:
            for plane in planes:
                image = prepare(plane.pixels, plane.black, plane.white, config, plane.spacing)
                seen += 1
                if foreground_share(image) >= config.min_foreground:
                    append(cache.encode(image))
                    slices.append(SliceInfo(name, plane.axis, plane.index, plane.frame))
                    if len(slices) == config.limit:
                        return slices, skipped, seen
        except DataError as error:
            reason = f"{name}: {error}"
            if config.on_error == "fail":
                raise DataError(f"{reason}. Repair or remove it, or set on_error to skip") from error
            cut(kept_before)
            del slices[kept_before:]
            seen = seen_before
            skipped.append(reason)
    return slices, skipped, seen


def _nothing_left(where: str, config: DataConfig, skipped: list[str], seen: int) -> str:
    if seen:
        return (
            f"{where}: none of the {seen} slices seen has {config.min_foreground:g} of its pixels in the "
            "foreground; lower min_foreground (0 keeps every slice), or change normalize"
        )
    if skipped:
        return _listed(f"{where}: no image is left, all of the {len(skipped)} files were skipped:", skipped)
    return f"{where}: there is nothing to read"


def _listed(heading: str, lines: list[str]) -> str:
    more = [f"... and {len(lines) - LISTED_FILES} more"] if len(lines) > LISTED_FILES else []
    return "\n  ".join([heading, *lines[:LISTED_FILES], *more])
