"""Reads the planes of a file with the reader for its kind, chosen by its name and its first bytes."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.crops import volume_crops
from vmddpm.data.dicom import Ranges, read_dicom
from vmddpm.data.dicom_volume import series_volume
from vmddpm.data.files import inflated, open_regular
from vmddpm.data.pictures import read_array, read_picture
from vmddpm.data.remarks import Excluded
from vmddpm.data.slicing import Plane
from vmddpm.data.tiff import read_tiff
from vmddpm.data.volumes import read_itk, read_mgh, read_nifti

SUFFIXES = {
    "DICOM": (".dcm", ".dicom", ".ima"),
    "NIfTI": (".nii", ".hdr"),
    "FreeSurfer": (".mgh", ".mgz"),
    "ITK": (".mha", ".nrrd"),
    "NumPy": (".npy",),
    "an image": (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm", ".pnm", ".ppm", ".webp", ".jp2", ".j2k",
                 ".gif"),
}  # fmt: skip
KINDS = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LFS = b"version https://git-lfs.github.com/spec/"


def read_file(
    path: Path, config: DataConfig, ranges: Ranges | None = None, members: Sequence[Path] = ()
) -> Iterator[Plane]:
    """The planes of one file, or the crops of its volume.

    Args:
        ranges: see `read_dicom`.
        members: files of the DICOM series that `path` belongs to, including `path`, for a volume; by default `path`
            alone.

    Raises:
        Excluded: if it is not a picture, or a filter of the configuration excludes it.
        DataError: if the file cannot be read as an image, with the reason; the caller adds the path.
    """
    with open_regular(path) as file, _convert_errors(kind := kind_of(file, path.name), str(path)):
        yield from _planes(file, kind, config, path, ranges, members)


def read_content(content: bytes, name: str, config: DataConfig) -> Iterator[Plane]:
    """The planes of a picture in memory. Raises DataError as `read_file`."""
    file = BytesIO(content)
    with _convert_errors(kind := kind_of(file, name), name):
        if kind != "an image":
            raise DataError(f"is {kind} inside an archive; unpack the archive")
        yield from _planes(file, kind, config, Path(name))


def kind_of(file: BinaryIO, name: str) -> str:
    """The kind of a file: a key of SUFFIXES, or "TIFF". The file is left at its start.

    Raises:
        DataError: if no reader supports it, or its content contradicts its name.
    """
    head = file.read(132)
    file.seek(0)
    if not head:
        raise DataError("is empty")
    if head.startswith(LFS):
        raise DataError("is a git-LFS pointer, not the file itself; fetch it with `git lfs pull`")
    suffix = Path(_without_gz(name)).suffix
    kind = KINDS.get(suffix)
    if head[:4] in TIFF and kind == "an image":
        return "TIFF"
    if head[128:] == b"DICM":
        if kind not in (None, "DICOM"):
            raise DataError(f"is a DICOM file with the suffix {suffix}; rename it to .dcm")
        return "DICOM"
    if suffix == ".img":
        raise DataError("holds voxels, but its .hdr is missing; fetch that too")
    if kind is not None:
        return kind
    # Archives often name DICOM files by a number or a UID, which ends in a dot and a number.
    if not suffix or re.fullmatch(r"\.\d+", suffix):
        return "DICOM"
    raise DataError(
        f"has the suffix {suffix}, which is not one of {' '.join(sorted(KINDS))}, and is not DICOM; convert it"
    )


def is_volume(path: Path) -> bool:
    """Whether the name of a file is that of a volume, rather than a picture or DICOM."""
    return KINDS.get(Path(_without_gz(path.name)).suffix) in ("NIfTI", "FreeSurfer", "ITK")


def stem_of(path: str) -> str:
    """A path without the suffixes of an image file: "a/b.nii.gz" -> "a/b". Other names are unchanged."""
    bare = path[: len(_without_gz(path))]
    return bare[: -len(Path(bare).suffix)] if Path(bare).suffix.lower() in KINDS else path


def _without_gz(name: str) -> str:
    return re.sub(r"\.gz$", "", name.lower())


def _planes(
    file: BinaryIO, kind: str, config: DataConfig, path: Path, ranges: Ranges | None = None,
    members: Sequence[Path] = (),
) -> Iterator[Plane]:  # fmt: skip
    if kind != "DICOM" and (config.modality or config.series or config.image_type):
        raise Excluded("not DICOM, and modality, series and image_type select DICOM files")
    if config.spatial_dims == 3 and kind not in ("DICOM", "NIfTI", "FreeSurfer", "ITK"):
        raise DataError(
            "is not a volume: spatial_dims 3 reads NIfTI, FreeSurfer, MetaImage, NRRD and DICOM series; exclude it "
            "with pattern, or set spatial_dims to 2"
        )
    if kind == "DICOM" and config.spatial_dims == 3:
        yield from volume_crops(series_volume(members or [path], config), config)
    elif kind == "DICOM":
        yield from read_dicom(inflated(file, config), config, ranges)
    elif kind == "NIfTI":
        pair = re.search(r"\.hdr(\.gz)?$", path.name, re.IGNORECASE)
        yield from read_nifti(file, config, path if pair else None)
    elif kind == "FreeSurfer":
        yield from read_mgh(file, config)
    elif kind == "ITK":
        yield from read_itk(file, config, path)
    elif kind == "NumPy":
        yield from read_array(file, config)
    elif kind == "TIFF":
        yield from read_tiff(file, config)
    else:
        yield from read_picture(file, config)


@contextmanager
def _convert_errors(kind: str, path: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # The libraries raise nearly every class of exception on damaged files.
        name = Path(path).name
        reason = re.sub(r"<_io\.[^>]*>", name, " ".join(str(error).replace(path, name).split()))
        raise DataError(f"cannot be read as {kind}: {reason or type(error).__name__}") from error
