"""Many images of one size in one .npy file, written and read one at a time."""

import os
import weakref
import zlib
from pathlib import Path
from typing import TypeVar

import numpy as np

from vmddpm.data.config import DataError
from vmddpm.errors import InputError
from vmddpm.files import temporary_name

W = TypeVar("W", bound="ImageWriter")


class ImageWriter:
    """Writes uint16 images of one shape to an array (N, *shape) on disk. The file appears under its name at `commit`.

    A context manager: on exit it removes uncommitted data.

    Args:
        path: the .npy file.
        shape: shape of one image, (C, S, S) or (C, D, S, S).

    Raises:
        OSError: if the folder cannot be written.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._shape, self.count = path, shape, 0
        self._part = temporary_name(path)
        self._file = self._part.open("wb")
        self._write_header()
        self._start = self._file.tell()

    def __enter__(self: W) -> W:
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            self._file.close()
        finally:
            # On a full disk, closing fails too.
            self._part.unlink(missing_ok=True)

    def append(self, image: np.ndarray) -> None:
        """Write an image, uint16 of `shape`."""
        self._file.write(image.tobytes())
        self.count += 1

    def truncate(self, count: int) -> None:
        """Keep only the first `count` images."""
        self._file.seek(self._start + count * 2 * int(np.prod(self._shape)))
        self._file.truncate()
        self.count = count

    def commit(self) -> "ImageFile":
        """Rename the complete file to `path`."""
        self._file.seek(0)
        self._write_header()
        # Without fsync, a power cut could leave the name without the content.
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self.path)
        return ImageFile(self.path)

    def _write_header(self) -> None:
        # numpy pads the header so that the first axis can grow in place, to any number of digits.
        header = {"descr": "<u2", "fortran_order": False, "shape": (self.count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


class ImageFile:
    """A sequence of the images in a file of `ImageWriter`. They are read, not memory-mapped: with a map, a truncated
    file or a failing disk would kill the process without a message.

    Args:
        path: the .npy file.
        checksums: CRC-32 of each image, if known; every image read is checked against it.

    Raises:
        InputError, OSError: if the file is invalid or incomplete.
    """

    def __init__(self, path: Path, checksums: np.ndarray | None = None) -> None:
        self.path, self.checksums = path, checksums
        with open(path, "rb") as file:
            try:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            except Exception as error:  # numpy documents no closed set
                raise InputError(f"its header is not that of an .npy file: {error}") from error
            start, size = file.tell(), os.fstat(file.fileno()).st_size
        if dtype != np.uint16 or len(shape) not in (4, 5):
            raise InputError(f"{dtype} array of shape {shape}")
        self.shape, self._start, self._bytes = shape, start, 2 * int(np.prod(shape[1:]))
        if size != start + shape[0] * self._bytes:
            raise InputError(f"{size} bytes for an array of shape {shape}")
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, uint16. Raises IndexError, or DataError if the image is unreadable or damaged."""
        i = range(len(self))[i]
        try:
            content = os.pread(self._descriptor, self._bytes, self._start + i * self._bytes)
        except OSError as error:
            raise DataError(f"{self.path}: image {i} cannot be read any more ({error.strerror})") from error
        if len(content) < self._bytes:
            raise DataError(f"{self.path}: image {i} is missing: the file was truncated")
        if self.checksums is not None and zlib.crc32(content) != self.checksums[i]:
            raise DataError(f"{self.path}: image {i} is damaged: its checksum differs from the manifest's")
        return np.frombuffer(content, np.uint16).reshape(self.shape[1:])

    def __reduce__(self) -> tuple[type["ImageFile"], tuple[Path, np.ndarray | None]]:
        return ImageFile, (self.path, self.checksums)
