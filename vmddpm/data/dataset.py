"""The data set: all slices of a folder of medical images, ready for a network."""

import warnings
import zlib
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
from vmddpm.data.crops import parts_of
from vmddpm.data.files import find
from vmddpm.data.readers import read_file
from vmddpm.data.remarks import Excluded, Remark, counted, listed, summarize_skipped, summary
from vmddpm.data.series import series_ranges, volume_series, without_members
from vmddpm.data.slicing import Plane, SliceInfo
from vmddpm.data.store import ImageSubset, is_store, open_store
from vmddpm.data.tally import Tally


class SliceDataset(Dataset[Tensor]):
    """The slices of all images in a folder or a prepared store, as float32 tensors (channels, size, size) in [-1, 1].
    With `spatial_dims` 3 they are the crops of all volumes, (channels, depth, size, size).

    The first use decodes every file of a folder, one at a time, into a cache on disk; later uses read the cache.
    Slices are sorted by path, then frame, axis and position, so index i is the same image in every run.

    Args:
        config: selection and preprocessing.
        progress: show a bar while decoding.

    Attributes:
        config: as given.
        slices: the origin of each image.
        remarks: omissions, with counts and reasons, and decisions of the readers; `remarks.summary` formats them.
        skipped: "path: reason" for each file that could not be read (`on_error: skip`).
        seen: number of slices read, including those left out by `min_foreground`.

    Raises:
        DataError: if there is no file, a file cannot be read (`on_error: fail`), no slice is left, the cache cannot be
            written, or the store is damaged or does not match `config`.
    """

    def __init__(self, config: DataConfig, progress: bool = False) -> None:
        if is_store(config.root):
            self._take(config, open_store(config))
            return
        if config.split == "test":
            raise DataError(f"{config.root}: has no test split; `vmddpm prepare` makes stores that have one")
        found = find(config)
        folder, key = cache.cache_folder(config), cache.cache_key(config, found.files)
        slices = cache.load(folder, key) or _build(config, found.files, folder, key, progress)
        self._take(config, replace(slices, remarks=found.left_out + slices.remarks))

    def _take(self, config: DataConfig, found: cache.SliceSet) -> None:
        self.config, self._images = config, found.images
        self.slices, self.remarks, self.seen = found.slices, found.remarks, found.seen
        if skipped := summarize_skipped(self.remarks):
            warnings.warn(skipped, stacklevel=3)

    @property
    def skipped(self) -> list[str]:
        return [f"{remark.source}: {remark.reason}" for remark in self.remarks if remark.kind == "error"]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, i: int) -> Tensor:
        """float32 of `config.shape` in [-1, 1]. Raises IndexError, or DataError if the image can no longer be read."""
        return torch.from_numpy(cache.decode(self._images[i]))

    def checksums(self) -> np.ndarray:
        """int64 (n,): CRC-32 of each image's stored bytes, from the manifest of a store, or by reading all images.
        Raises DataError if one cannot be read."""
        if isinstance(self._images, ImageSubset):
            return self._images.checksums()
        return np.array([zlib.crc32(self._images[i].tobytes()) for i in range(len(self))], np.int64)


def held_out_images(config: DataConfig, root: str | None = None) -> "SliceDataset | None":
    """Images that a run of `config` has not seen: those in `root`, or the test split of its own store; None if there
    are none.

    Raises:
        DataError: as SliceDataset.
    """
    if root:
        return SliceDataset(replace(config, root=root, limit=None, split="all"), progress=True)
    if not is_store(config.root) or config.split == "all":
        return None
    try:
        return SliceDataset(replace(config, limit=None, split="test"))
    except DataError:  # a store need not have a test split
        return None


def from_volumes(volumes: Iterable[object], config: DataConfig | None = None) -> SliceDataset:
    """A data set from volumes in memory; nothing is read from or written to disk.

    Args:
        volumes: nibabel images, or arrays or CPU tensors (X, Y, Z) or (X, Y, Z, T) with X to the patient's
            right, Y to anterior, Z to superior, and cubic voxels. They are consumed one at a time, so a generator
            works.
        config: as for `SliceDataset`; `root`, `pattern` and `cache_dir` have no effect.

    Returns:
        A SliceDataset; its slices have the paths "volume 0", "volume 1" ...

    Raises:
        DataError: as SliceDataset, naming the volume.
    """
    config = config or DataConfig()
    images: list[np.ndarray] = []

    def truncate(count: int) -> None:
        del images[count:]

    sources = ((f"volume {n}", _planes(volume, config)) for n, volume in enumerate(volumes))
    slices, remarks, seen = _collect(sources, config, images.append, truncate)
    if not slices:
        raise DataError(_message_without_images("the volumes in memory", config, remarks, seen))
    dataset = SliceDataset.__new__(SliceDataset)
    dataset._take(config, cache.SliceSet(np.stack(images), slices, remarks, seen))
    return dataset


def _planes(volume: object, config: DataConfig) -> Iterator[Plane]:
    if not isinstance(volume, nib.spatialimages.SpatialImage):
        volume = nib.Nifti1Image(np.asarray(volume, np.float32), np.eye(4))
    return parts_of(volume, config)


def _build(config: DataConfig, files: list[Path], folder: Path, key: str, progress: bool) -> cache.SliceSet:
    try:
        ranges, series = series_ranges(files, config), volume_series(files, config)
        with (
            cache.CacheWriter(folder, key, config.shape) as writer,
            tqdm(without_members(files, series), "decoding", disable=not progress) as bar,
        ):
            sources = ((str(path), read_file(path, config, ranges, series.get(path, ()))) for path in bar)
            slices, remarks, seen = _collect(sources, config, writer.append, writer.truncate)
            if not slices:
                raise DataError(_message_without_images(config.root, config, remarks, seen))
            return writer.commit_entry(slices, remarks, seen)
    except OSError as error:
        raise DataError(
            f"{folder}: the cache cannot be written ({error.strerror}); make room there, or change cache_dir"
        ) from error


def _collect(
    sources: Iterable[tuple[str, Iterator[Plane]]],
    config: DataConfig,
    append: Callable[[np.ndarray], None],
    truncate: Callable[[int], None],
) -> tuple[list[SliceInfo], list[Remark], int]:
    """Prepare the planes of each named source and append those with enough foreground.

    Args:
        append: called with each encoded image.
        truncate: called with the number of images to keep, to drop the images of a source that fails half-way.

    Returns:
        (slices, remarks, seen) as in `SliceSet`.
    """
    slices: list[SliceInfo] = []
    remarks: list[Remark] = []
    seen = 0
    for name, planes in sources:
        kept_before, tally = len(slices), Tally(name, config)
        try:
            for plane, image in tally.kept(planes):
                append(cache.encode(image))
                height, width = plane.pixels.shape[:2]
                slices.append(SliceInfo(name, plane.axis, plane.index, plane.frame, height, width,
                                        plane.spacing[0] / plane.spacing[1]))  # fmt: skip
                if len(slices) == config.limit:
                    return slices, remarks + tally.remarks(), seen + tally.seen
        except DataError as error:
            excluded = isinstance(error, Excluded)
            if config.on_error == "fail" and not excluded:
                raise DataError(f"{name}: {error}. Repair or remove it, or set on_error to skip") from error
            truncate(kept_before)
            del slices[kept_before:]
            remarks.append(Remark(name, "class" if excluded else "error", str(error)))
        else:
            seen += tally.seen
            remarks += tally.remarks()
    return slices, remarks, seen


def _message_without_images(where: str, config: DataConfig, remarks: list[Remark], seen: int) -> str:
    if seen:
        return (
            f"{where}: none of the {seen} slices has at least {config.min_foreground:g} of its pixels in the "
            "foreground; lower min_foreground (0 keeps every slice), or change normalize"
        )
    if remarks:
        files = counted(sum(remark.files for remark in remarks), "file")
        return listed(f"{where}: no image is left of {files}:", summary(remarks))
    return f"{where}: there is nothing to read"
