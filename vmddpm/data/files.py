"""Selection of the files that the data set reads from a folder."""

import gzip
import os
import re
import stat
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.limits import check_unpacked
from vmddpm.data.remarks import Remark

GZIP = b"\x1f\x8b"
# Only names that clearly are not images are left out; any other file is read or refused.
NOT_IMAGES = tuple(
    """
    .txt .text .md .rst .pdf .doc .docx .rtf .csv .tsv .xls .xlsx .ods .json .jsonl .xml .yaml .yml .toml
    .ini .cfg .html .htm .css .js .log .py .pyc .ipynb .m .r .c .h .cpp .sh .bat .bval .bvec .sha256 .md5
    .inf .dll .ico .jar .so .dylib .lnk .chm .hlp .msi .cab .swf .class
    .db .sqlite .exe .zip .tar .tar.gz .tgz .tar.bz2 .tar.xz .7z .rar .pkl .pt .pth .ckpt .safetensors .onnx
    """.split()  # noqa: SIM905
)
NOT_IMAGE_NAMES = frozenset(
    """
    README LICENSE LICENCE COPYING NOTICE AUTHORS CHANGES CHANGELOG CITATION VERSION MANIFEST
    Makefile Dockerfile
    """.split()  # noqa: SIM905
)
# dcm2niix writes a series with a tilted gantry or unequal slice distances a second time, corrected.
TWIN = re.compile(r"(?P<of>.+?)(?P<straight>(?:_Tilt|_Eq)+)(?:_\d+)?(?P<suffix>\.nii(?:\.gz)?)", re.IGNORECASE)


@dataclass(frozen=True)
class FoundFiles:
    """Attributes:
    files: absolute paths, in sorted order.
    left_out: the other files of the folder, by reason.
    """

    files: list[Path]
    left_out: list[Remark]


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading without blocking, as opening a pipe or a device could hang the reader forever.

    Raises:
        DataError: if it is not a regular file, or cannot be opened.
    """
    try:
        file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(mode := os.fstat(file.fileno()).st_mode):
        file.close()
        raise DataError(f"is {_kind(mode)}, not a file; remove it")
    return file


def _open_nonblocking(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return kinds.get(stat.S_IFMT(mode), "a device")



def inflated(file: BinaryIO, config: DataConfig) -> BinaryIO:
    """A DICOM file, decompressed in memory if it is gzipped."""
    compressed = file.read(2) == GZIP
    file.seek(0)
    if not compressed:
        return file
    with gzip.GzipFile(fileobj=file) as unpacked:
        content = bytearray()
        while block := unpacked.read(1 << 20):
            content += block
            check_unpacked(len(content), config)
    return BytesIO(content)


def find_files(config: DataConfig) -> list[Path]:
    """The files of `find`, without the list of omissions."""
    return find(config).files


def find(config: DataConfig) -> FoundFiles:
    """The files selected by `config.root` and `config.pattern`, in sorted order, as absolute paths.

    It leaves out hidden files, files whose names clearly are not images (text, tables, archives, README ...), anything
    but regular files, non-DICOM files on a disc with a DICOMDIR, such as viewers, and the uncorrected one of two
    volumes that dcm2niix writes for one scan. The readers decide whether the others are images.

    Raises:
        DataError: if root is empty or does not exist, a folder cannot be listed, or no file is left.
    """
    if not config.root:
        raise DataError("root is empty: name the folder of images, or one image file")
    root = Path(os.path.expanduser(config.root)).absolute()
    if root.is_file():
        if _plainly_not_an_image(root.name):
            raise DataError(f"{root}: is not an image by its name; name an image or a folder of images")
        return FoundFiles([_header_of(root) or root], [])
    if not root.is_dir():
        if root.exists():
            raise DataError(f"{root}: is {_kind(root.stat().st_mode)}; name an image or a folder of images")
        raise DataError(f"{root}: no such file or folder; name an image or a folder of images")
    everything = _walk(root)
    left_out: dict[str, list[Path]] = defaultdict(list)
    images = []
    discs = {path.parent for path in everything if path.name.upper() == "DICOMDIR"}
    for path in everything:
        if reason := _reason_to_skip(path, discs):
            left_out[reason].append(path)
        elif _header_of(path) is None:
            images.append(path)
    if not images:
        raise DataError(
            f"{root}: holds no NIfTI, DICOM, PNG, JPEG or TIFF file ({len(everything)} other files); "
            "name an image or a folder of images"
        )
    matching = [path for path in images if fnmatchcase(path.relative_to(root).as_posix(), config.pattern)]
    if not matching:
        raise DataError(f"{root}: none of its {len(images)} files matches pattern {config.pattern!r}")
    twins = _crooked_twins(matching)
    left_out["another file has the same scan resampled by dcm2niix"] += [p for p in matching if p in twins]
    remarks = [
        Remark(paths[0].relative_to(root).as_posix(), "name", reason, files=len(paths))
        for reason, paths in left_out.items() if paths
    ]  # fmt: skip
    return FoundFiles([path for path in matching if path not in twins], remarks)


def _reason_to_skip(path: Path, discs: set[Path]) -> str | None:
    """The reason for leaving a file out; None if it is read."""
    if _plainly_not_an_image(path.name):
        return "not images by their names"
    try:
        mode = path.stat().st_mode
    except OSError:  # the reader reports it
        return None
    if not stat.S_ISREG(mode):
        return f"{_kind(mode)}, not a file"
    if path.name.upper() == "DICOMDIR":
        return "the index of a DICOM disc"
    if discs and not discs.isdisjoint(path.parents):
        try:
            with open_regular(path) as file:
                if file.read(132)[128:] != b"DICM":
                    return "not DICOM, on a DICOM disc"
        except DataError:
            return None
    return None


def _header_of(path: Path) -> Path | None:
    """The .hdr file that belongs to the .img file `path`; None if there is none."""
    if match := re.fullmatch(r"(.+)\.img(\.gz)?", path.name, re.IGNORECASE):
        for suffix in (".hdr", ".hdr.gz", ".HDR", ".HDR.GZ"):
            if (header := path.with_name(match[1] + suffix)).exists():
                return header
    return None


def voxels_of(header: Path) -> Path | None:
    """The .img file that belongs to the .hdr file `header`; None if there is none."""
    if match := re.fullmatch(r"(.+)\.hdr(\.gz)?", header.name, re.IGNORECASE):
        for suffix in (".img", ".img.gz", ".IMG", ".IMG.GZ"):
            if (voxels := header.with_name(match[1] + suffix)).exists():
                return voxels
    return None


def parts_of(path: Path) -> list[Path]:
    """All files that hold the images of `path`: the file, and the voxels that belong to a header."""
    voxels = voxels_of(path)
    return [path] if voxels is None else [path, voxels]


def _crooked_twins(paths: list[Path]) -> set[Path]:
    """The uncorrected files of scans that another file holds corrected."""
    present, twins = set(paths), set()
    for path in paths:
        if match := TWIN.fullmatch(path.name):
            # Keep only the last of a, a_Tilt and a_Tilt_Eq.
            names = [match["of"]] + ([match["of"] + "_Tilt"] if match["straight"].lower() == "_tilt_eq" else [])
            for name in names:
                for number in ("", "_1"):
                    for suffix in (".nii", ".nii.gz"):
                        if (twin := path.with_name(f"{name}{number}{suffix}")) in present and twin != path:
                            twins.add(twin)
    return twins


def _walk(root: Path) -> list[Path]:
    """All files below `root`, sorted. A folder is visited once, by its own path if that is below the root, else by the
    first link to it."""
    found: list[Path] = []
    visited: set[str] = set()  # links to parent folders would otherwise never end
    tops = [root]
    while tops:
        links = []
        for top in tops:
            for folder, subfolders, names in os.walk(top, onerror=_cannot_list):
                real = os.path.realpath(folder)
                subfolders[:] = [] if real in visited else [name for name in subfolders if not name.startswith(".")]
                if real in visited:
                    continue
                visited.add(real)
                links += [Path(folder, name) for name in subfolders if os.path.islink(os.path.join(folder, name))]
                found += [Path(folder, name) for name in names if not name.startswith(".")]
        tops = sorted(links)
    return sorted(found)


def _cannot_list(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder cannot be listed: {error.strerror}") from error


def _plainly_not_an_image(name: str) -> bool:
    return name in NOT_IMAGE_NAMES or name.lower().endswith(NOT_IMAGES)
