"""Which files of a folder the data set reads."""

import os
from fnmatch import fnmatchcase
from pathlib import Path

from vmddpm.data.config import DataConfig, DataError

# Only what is plainly not an image may be passed over without a word; any other name is read or reported.
NOT_IMAGES = tuple(
    """
    .txt .text .md .rst .pdf .doc .docx .rtf .csv .tsv .xls .xlsx .ods .json .jsonl .xml .yaml .yml .toml
    .ini .cfg .html .htm .css .js .log .py .pyc .ipynb .m .r .c .h .cpp .sh .bat .bval .bvec .sha256 .md5
    .db .sqlite .exe .zip .tar .tar.gz .tgz .tar.bz2 .tar.xz .7z .rar .pkl .pt .pth .ckpt .safetensors .onnx
    """.split()  # noqa: SIM905
)
NOT_IMAGE_NAMES = frozenset(
    """
    README LICENSE LICENCE COPYING NOTICE AUTHORS CHANGES CHANGELOG CITATION VERSION MANIFEST
    Makefile Dockerfile
    """.split()  # noqa: SIM905
)


def find_files(config: DataConfig) -> list[Path]:
    """The files that `config.root` and `config.pattern` name, in sorted order, as absolute paths.

    Files that are plainly not images by their name (text, tables, archives, README ...) and hidden ones are
    left out; whether the others are images is for the readers to find out, so that nothing is passed over
    silently.

    Raises:
        DataError: if root is empty or does not exist, a folder cannot be listed, or no file is left.
    """
    if not config.root:
        raise DataError("root is empty: name the folder of images, or one image file")
    root = Path(os.path.expanduser(config.root)).absolute()
    if root.is_file():
        if _plainly_not_an_image(root.name):
            raise DataError(f"{root}: is no image by its name; name an image or a folder of images")
        return [root]
    if not root.is_dir():
        raise DataError(f"{root}: no such file or folder; name an image or a folder of images")
    everything = _walk(root)
    images = [path for path in everything if not _plainly_not_an_image(path.name)]
    if not images:
        raise DataError(
            f"{root}: holds no NIfTI, DICOM, PNG, JPEG or TIFF file ({len(everything)} other files); "
            "name an image or a folder of images"
        )
    matching = [path for path in images if fnmatchcase(path.relative_to(root).as_posix(), config.pattern)]
    if not matching:
        raise DataError(f"{root}: none of its {len(images)} files matches pattern {config.pattern!r}")
    return matching


def _walk(root: Path) -> list[Path]:
    found, visited = [], {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_cannot_list):
        wanted = []
        for name in subfolders:
            target = os.path.realpath(os.path.join(folder, name))
            # A link to a folder above would be walked for ever.
            if not name.startswith(".") and target not in visited:
                visited.add(target)
                wanted.append(name)
        subfolders[:] = wanted
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _cannot_list(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder cannot be listed: {error.strerror}") from error


def _plainly_not_an_image(name: str) -> bool:
    return name in NOT_IMAGE_NAMES or name.lower().endswith(NOT_IMAGES)
