"""Folders of synthetic images, written block by block by any number of processes.

    sampling.yaml          the options that the images were drawn with
    000000.png ...         the images; volumes are 000000.nii.gz ...; or, with the format "npy", a block in each file:
    images-00000000.npy    uint8 (n, H, W, C) or (n, D, H, W, C), named by the number of its first image
    manifest.json          when complete: number and shape of the images, and the SHA-256 of each block's file
    grid.png               the first images, or three planes of each of the first volumes
    labels.csv             for a run with classes: file and class of each image
    classes.csv            for a run with classes: number of training images and samples of each class
"""

import csv
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from torch import Tensor

from vmddpm.errors import InputError
from vmddpm.files import atomic_write, remove_leftovers, sha256, write_text
from vmddpm.nifti import nifti_bytes, read_nifti_voxels
from vmddpm.numbers import shown
from vmddpm.training.errors import RunError
from vmddpm.training.pictures import load_png, save_png, tiled
from vmddpm.training.run_folder import CLASSES, RunFolder

IN_GRID = 64
MAX_IMAGES = 10_000_000  # images in a folder
_RERUN = "run its `vmddpm sample` command again"
Format = Literal["png", "nifti", "npy"]
SUFFIXES = {"png": ".png", "nifti": ".nii.gz"}  # formats with one file per image


def check_count(name: str, count: int) -> None:
    """Raise InputError if a folder cannot hold `count` images."""
    if not 1 <= count <= MAX_IMAGES:
        more = "; draw more with another seed, to another folder" if count > MAX_IMAGES else ""
        raise InputError(f"{name} is {shown(count)}; it must be from 1 to {MAX_IMAGES:,}{more}")


class Samples:
    """A folder of images 0 to count - 1 in blocks of `batch_size`; the last block may be shorter. Files are written
    atomically, so processes can write different blocks without coordination, and existing blocks need not be drawn
    again.

    Args:
        folder: the folder; `create_or_resume` creates it.
        count: number of images; `create_or_resume` raises it to the number already in the folder.
        batch_size: images in a block.
        file_format: "png", "nifti" or "npy".
        spacing: voxel size in millimetres along depth, height and width, for "nifti".
    """

    def __init__(
        self, folder: Path, count: int, batch_size: int, file_format: Format,
        spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    ) -> None:  # fmt: skip
        self.folder, self.count, self.batch_size, self.file_format = folder, count, batch_size, file_format
        self.spacing = spacing

    @property
    def blocks(self) -> list[range]:
        size, count = self.batch_size, self.count
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def create_or_resume(self, made_with: dict[str, Any]) -> None:
        """Create the folder, or check that an existing one was made with the same options. Warns if it holds more than
        `count` images; they stay, and the manifest counts them.

        Raises:
            RunError: if the folder holds anything else, or images drawn with other options.
        """
        record = self.folder / "sampling.yaml"
        if record.exists():
            before = _made_with(self.folder)
            changes = [
                f"{key} was {before.get(key)!r} and is now {value!r}"
                for key, value in made_with.items() if before.get(key) != value
            ]  # fmt: skip
            if changes:
                raise RunError(
                    f"{self.folder} holds images drawn with other options, choose another folder: {'; '.join(changes)}"
                )
            if (stored := self._count_stored()) > self.count:
                warnings.warn(
                    f"{self.folder} already holds {stored} images; the first {self.count} are the requested ones, "
                    "and all are kept",
                    stacklevel=3,
                )
                self.count = stored
        elif self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise RunError(f"{self.folder} is not empty and holds no samples of vmddpm; choose another folder")
        else:
            write_text(record, yaml.safe_dump(made_with, sort_keys=False))

    def missing(self) -> list[range]:
        """The blocks that are missing or incomplete."""
        names = {path.name for path in self.folder.iterdir()}
        return [block for block in self.blocks if not self._is_whole(block, names)]

    def write(self, block: range, pixels: np.ndarray) -> None:
        """Write the n images of a block, uint8 (n, H, W, C) or (n, D, H, W, C). Raises RunError if that fails."""
        try:
            if self.file_format == "png":
                for index, image in zip(block, pixels):
                    save_png(image, self.folder / _file(index, self.file_format))
            elif self.file_format == "nifti":
                for index, volume in zip(block, pixels):
                    with atomic_write(self.folder / _file(index, self.file_format)) as temporary:
                        temporary.write_bytes(nifti_bytes(volume[..., 0], self.spacing))
            else:
                with atomic_write(self.folder / _npy(block)) as temporary:
                    np.save(temporary, pixels)
        except OSError as error:
            raise RunError(
                f"{self.folder}: images {block.start} to {block.stop - 1} cannot be written "
                f"({error.strerror or error}); make room there, then run the same command again to go on"
            ) from error

    def write_labels(self, classes: Sequence[str], rows: Tensor, separator: str, counts: Mapping[str, int]) -> None:
        """Write labels.csv, which `vmddpm train --condition.labels csv` can read, and classes.csv.

        Args:
            classes: names of the run's classes.
            rows: (n, K), 1 for each class; image i has row i modulo n.
            separator: text between several classes of one image.
            counts: number of training images of each class.
        """
        named = [separator.join(classes[k] for k in row.nonzero().flatten().tolist()) for row in rows]
        suffix = SUFFIXES.get(self.file_format, "")
        labels = [("file", "label"), *((f"{i:06d}{suffix}", named[i % len(named)]) for i in range(self.count))]
        drawn = rows[torch.arange(self.count) % len(rows)].sum(0).int().tolist()
        balance = [("class", "training_images", "samples"),
                   *((name, counts.get(name, ""), n) for name, n in zip(classes, drawn))]  # fmt: skip
        for path, table in (("labels.csv", labels), (CLASSES, balance)):
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(table)
            write_text(self.folder / path, text.getvalue())

    def finish(self) -> None:
        """Write the manifest and the grid. All blocks must be complete."""
        remove_leftovers(self.folder, shared=True)
        first = np.concatenate([self._read(block) for block in self.blocks[: 1 + IN_GRID // len(self.blocks[0])]])
        save_png(tiled(first[:IN_GRID]), self.folder / "grid.png")
        manifest: dict[str, Any] = {"images": self.count, "shape": list(first.shape[1:]), "format": self.file_format}
        if self.file_format == "npy":
            manifest["files"] = {_npy(block): sha256(self.folder / _npy(block)) for block in self.blocks}
        write_text(self.folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")

    def _count_stored(self) -> int:
        """Number of consecutive images in the folder, from the first one on."""
        names, count = {path.name for path in self.folder.iterdir()}, 0
        if self.file_format in SUFFIXES:
            while _file(count, self.file_format) in names:
                count += 1
            return count
        while self._is_whole(block := range(count, count + 1), names):
            rows = len(np.load(self.folder / _npy(block), mmap_mode="r"))
            count += rows
            if rows < self.batch_size:
                break
        return count

    def _is_whole(self, block: range, names: set[str]) -> bool:
        if self.file_format in SUFFIXES:
            return all(_file(index, self.file_format) in names for index in block)
        try:
            return _npy(block) in names and len(np.load(self.folder / _npy(block), mmap_mode="r")) >= len(block)
        except Exception:  # truncated or invalid; numpy documents no closed set of exceptions
            return False

    def _read(self, block: range) -> np.ndarray:
        if self.file_format in SUFFIXES:
            return np.stack([_load(self.folder / _file(index, self.file_format)) for index in block])
        images: np.ndarray = np.load(self.folder / _npy(block))
        return images[: len(block)]


def read_samples(folder: str | Path) -> Iterator[np.ndarray]:
    """The images of a finished folder in order, a block at a time: uint8 (n, H, W, C), or (n, D, H, W, C) for volumes.

    Raises:
        RunError: if images are missing, or a block is damaged.
    """
    folder = Path(folder)
    left, form, files = _manifest(folder)
    if files is None:
        for index in range(left):
            yield _load(folder / _file(index, form))[None]
        return
    for name, digest in files.items():
        try:
            intact = sha256(folder / name) == digest
            block = np.load(folder / name)[:left] if intact else np.empty(0)
        except (OSError, ValueError, IndexError) as error:
            raise RunError(f"{folder / name} cannot be read ({error}); {_RERUN}") from error
        if block.ndim not in (4, 5):
            raise RunError(f"{folder / name} is damaged; remove it and {_RERUN}")
        left -= len(block)
        yield block
    if left:
        raise RunError(f"{folder / 'manifest.json'} lists {left} fewer images than it counts; {_RERUN}")


def sample_labels(folder: str | Path, count: int, classes: Sequence[str], separator: str | None) -> Tensor:
    """float32 (count, K), 1 for each class of an image, from labels.csv in the folder.

    Raises:
        RunError: if labels.csv is missing, names other classes, or does not match the images.
    """
    path, labels = Path(folder) / "labels.csv", torch.zeros(count, len(classes))
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1:]
        texts = [text for _, text in rows]
        if [int(Path(name).stem) for name, _ in rows[:count]] != list(range(count)):
            raise RunError(f"{path} has no row for each of the {count} samples, in their order; {_RERUN}")
    except FileNotFoundError:
        raise RunError(f"{folder} has no labels.csv: its samples have no classes; draw them from a run with classes, "
                       "with guidance above 0") from None  # fmt: skip
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path} cannot be read ({error}); {_RERUN}") from error
    for i, text in enumerate(texts[:count]):
        for name in text.split(separator) if separator else [text]:
            if name not in classes:
                raise RunError(f"{path} has the class {name!r}, which the run does not have; its classes are "
                               f"{', '.join(map(repr, classes))}")  # fmt: skip
            labels[i, list(classes).index(name)] = 1
    return labels


def balance(folder: str | Path) -> list[tuple[str, str, str]]:
    """(class, training images, samples) for each class, from classes.csv in a finished folder; [] if it has no
    classes."""
    path = Path(folder) / CLASSES
    return [(a, b, c) for a, b, c in csv.reader(path.read_text("utf-8").splitlines())][1:] if path.exists() else []


def check_drawn(folder: str | Path, run: RunFolder) -> None:
    """Check that samples are complete and undamaged, and that the weights and the configuration of the run belong
    together. Folders that `vmddpm sample` did not write are not checked.

    Warns if the samples were drawn from other weights than the run has now.

    Raises:
        RunError: naming the missing or damaged file.
    """
    folder = Path(folder)
    if not (folder / "sampling.yaml").exists():
        return
    made_with = _made_with(folder)
    count, form, files = _manifest(folder)
    expected = {_file(index, form) for index in range(count)} if files is None else set(files)
    if others := sorted(_numbered_names(folder) ^ expected):
        raise RunError(f"{folder} does not hold the {count} images of its manifest.json: {others[0]} is the first "
                       f"of {len(others)} that are missing or extra; {_RERUN}, or draw to a new folder")  # fmt: skip
    for name, digest in (files or {}).items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise RunError(f"{folder / name} is damaged; remove it and {_RERUN}")
    kind = made_with.get("weights")
    if kind in ("ema", "raw") and run.has_weights(kind):
        run.check_weights(kind)
        if sha256(run.weights(kind) / "model.safetensors") != made_with.get("weights_sha256"):
            warnings.warn(f"{folder}: these samples were drawn with other {kind} weights than {run.path} has now",
                          stacklevel=2)  # fmt: skip


def _made_with(folder: Path) -> dict[str, Any]:
    record = folder / "sampling.yaml"
    try:
        return dict(yaml.safe_load(record.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{record} cannot be read ({' '.join(str(error).split())}); choose another folder") from error


def _manifest(folder: Path) -> tuple[int, Format, dict[str, str] | None]:
    """The number of images, their format, and the SHA-256 of each block's file (None if each image has a file)."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{folder} holds no finished samples; {_RERUN}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); {_RERUN}") from error
    known = manifest if isinstance(manifest, dict) else {}
    count, file_format, files = known.get("images"), known.get("format"), known.get("files")
    if type(count) is not int or count < 1 or file_format not in ("png", "nifti", "npy"):
        raise RunError(f"{path} does not say how many images there are, and in which format; {_RERUN}")
    if file_format in SUFFIXES:
        return count, file_format, None
    if not isinstance(files, dict) or not files:
        raise RunError(f"{path} names no files; {_RERUN}")
    for name, digest in files.items():
        # Only names of this pattern are written, and none of them leads out of the folder.
        if not re.fullmatch(r"images-[0-9]{8,12}\.npy", name) or not isinstance(digest, str):
            raise RunError(f"{path} names {name!r:.80}, which is not a file of samples; {_RERUN}")
    return count, file_format, files


def _numbered_names(folder: Path) -> set[str]:
    """The names of the image and block files in a folder."""
    return {path.name for path in folder.iterdir() if re.fullmatch(r"\d+\.(png|nii\.gz)|images-\d{8,}\.npy", path.name)}


def _file(index: int, form: Format) -> str:
    return f"{index:06d}{SUFFIXES[form]}"


def _load(path: Path) -> np.ndarray:
    """Read an image (H, W, C) or volume (D, H, W, C), uint8. Raises RunError if the file is missing or damaged."""
    if path.suffix == ".png":
        return load_png(path)
    try:
        return read_nifti_voxels(path)[..., None]
    except InputError as error:
        raise RunError(str(error)) from error


def _npy(block: range) -> str:
    return f"images-{block.start:08d}.npy"
