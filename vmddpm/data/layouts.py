"""Files and patients of the paper's three data sets as distributed, and of any other folder."""

import csv
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.files import find, open_regular
from vmddpm.data.limits import check_member
from vmddpm.data.remarks import Remark


@dataclass(frozen=True)
class Source:
    """An image file.

    Attributes:
        name: its path below the root, "archive/member" in an archive.
        patient: the patient; None to find it by `patients.patient_of`.
        path: the file, or the archive that contains it.
        content: the bytes of an archive member; None for other files.
        split: "train" or "test" if the data set defines a split.
    """

    name: str
    patient: str | None
    path: Path
    content: bytes | None = None
    split: str | None = None


@dataclass(frozen=True)
class Layout:
    """The files of a data set.

    Attributes:
        sources: the files in the order of the store.
        files: their number; None if only reading an archive would tell.
        paper: number of images in the paper; None for other data sets.
        left_out: files of the folder that are not read.
    """

    sources: Iterable[Source]
    files: int | None
    paper: int | None = None
    left_out: tuple[Remark, ...] = ()


# Default options of each data set, as in the presets of `vmddpm train`.
OPTIONS: dict[str, dict[str, Any]] = {
    "acdc": {"min_foreground": 0.0},
    "brats": {"min_foreground": 0.2},
    "chestxray": {"min_foreground": 0.0, "limit": 34_999},
    "folder": {},
}
MODALITIES = ("flair", "t1", "t1ce", "t2")
# Folder names of BraTS scans in all years. The scan number after the patient is not part of the patient.
BRATS = re.compile(
    r"(?P<patient>Brats1[78]_.+?|BraTS(?:19|20)_.+?|BraTS2021_\d+|BraTS-[A-Z]+-\d+)(?:_\d|-\d{3})?"
)
MODALITIES_2023 = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w"}


def acdc(root: Path, config: DataConfig, frames: str = "ed-es") -> Layout:
    """ACDC (Bernard et al., 2018): patient001/ ... with Info.cfg, patient001_4d.nii.gz and patient001_frame01.nii.gz.

    "1798 2D cardiac MRIs images from 3DMR scans" (IV-A) does not say which frames: `frames` selects the end-diastolic
    and end-systolic frames named in Info.cfg ("ed-es"), or all frames of the cine ("cine"). If the download has
    training/ and testing/, the training patients are used.
    """
    for inside in ("database", "training"):
        root = root / inside if (root / inside).is_dir() else root
    folders = _folders(root, r"patient\d+", "ACDC's training folder, with a folder patient001 and so on")
    sources = []
    for folder in folders:
        if frames == "cine":
            stems = [f"{folder.name}_4d"]
        else:
            info = _info(folder / "Info.cfg")
            stems = [f"{folder.name}_frame{info[phase]:02d}" for phase in sorted(("ED", "ES"), key=info.__getitem__)]
        sources += [_source(root, _nifti(folder, stem), folder.name) for stem in stems]
    return Layout(sources, len(sources), 1798)


def _info(path: Path) -> dict[str, int]:
    """The frame numbers of ED and ES in an Info.cfg, from 1."""
    try:
        found = dict(re.findall(r"^\s*(ED|ES)\s*:\s*(\d+)\s*$", _text(path), re.MULTILINE))
    except (DataError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); it says which frames are ED and ES") from error
    if set(found) != {"ED", "ES"}:
        raise DataError(f"{path}: has no lines `ED: <frame>` and `ES: <frame>`")
    return {phase: int(number) for phase, number in found.items()}


def _text(path: Path) -> str:
    """A text file, with or without a byte-order mark. Raises DataError or ValueError."""
    with open_regular(path) as file:
        return file.read().decode("utf-8-sig")


def brats(root: Path, config: DataConfig, modality: str = "flair") -> Layout:
    """BraTS (Menze et al., 2015) as released from 2017 to 2023: a folder for each scan, in HGG/ and LGG/ until 2019,
    with Brats18_..._1_flair.nii.gz, BraTS20_Training_001_flair.nii.gz, BraTS-GLI-00000-000-t2f.nii.gz and so on.

    The paper does not name the modality: "6528 2D brain images under a single modality" (IV-A, of BraTS 2018).
    """
    containers = [root, *(path for path in _folders_in(root) if "training" in path.name.lower())]
    scans = [
        (container, folder, match["patient"]) for container in containers
        for place in (container, container / "HGG", container / "LGG")
        for folder in _folders_in(place) if (match := BRATS.fullmatch(folder.name))
    ]  # fmt: skip
    if not scans:
        raise DataError(f"{root}: is not BraTS's training folder, with HGG and LGG or with a folder for each scan")
    sources = []
    for container, folder, patient in scans:
        ending = f"-{MODALITIES_2023[modality]}" if folder.name.startswith("BraTS-") else f"_{modality}"
        sources.append(_source(container, _nifti(folder, f"{folder.name}{ending}"), patient))
    paper = all(folder.name.startswith("Brats18_") for _, folder, _ in scans)
    return Layout(sources, len(sources), 6528 if paper else None)


def _folders_in(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def chestxray(root: Path, config: DataConfig, official_split: bool = False) -> Layout:
    """ChestX-ray14 (Wang et al., 2017): images_001.tar.gz ..., or the 00000001_000.png ... unpacked from them.

    "the first 34,999 images" (IV-A) are the first four archives. The patient is the column "Patient ID" of
    Data_Entry_2017.csv if that is present, otherwise the number at the start of a file name.

    Args:
        official_split: use the official split in train_val_list.txt and test_list.txt.
    """
    patients = _patients_of_table(root)
    splits = _official_splits(root) if official_split else None
    images = {path.name: path for path in root.rglob("*.png") if re.fullmatch(r"\d{8}_\d{3}\.png", path.name)}
    archives = sorted(root.rglob("images_*.tar.gz"))
    if images:
        sources = [replace(_source(root, images[name], _xray_patient(name, patients)), split=_split(name, splits))
                   for name in sorted(images)]  # fmt: skip
        reason = "archives next to PNG files; only the PNG files are read, so unpack all archives"
        names = [path.relative_to(root).as_posix() for path in archives]
        left_out = (Remark(names[0], "name", reason, files=len(names)),) if names else ()
        return Layout(sources, len(sources), 34_999, left_out)
    if not archives:
        raise DataError(f"{root}: holds neither images_001.tar.gz and so on, nor 00000001_000.png and so on")
    return Layout(_members(root, archives, patients, splits, config), None, 34_999)


def _official_splits(root: Path) -> dict[str, str]:
    splits: dict[str, str] = {}
    for name, split in (("train_val_list.txt", "train"), ("test_list.txt", "test")):
        found = sorted(root.rglob(name))
        if not found:
            raise DataError(f"{root}: holds no {name}, which the official split needs; download it next to the images")
        try:
            names = _text(found[0]).split()
        except ValueError as error:
            raise DataError(f"{found[0]}: cannot be read ({error}); download it again") from error
        if both := splits.keys() & set(names):
            raise DataError(f"{found[0]}: {min(both)} is in train_val_list.txt too; download both again")
        splits.update(dict.fromkeys(names, split))
    return splits


def _split(name: str, splits: dict[str, str] | None) -> str | None:
    if splits is None:
        return None
    if name not in splits:
        raise DataError(f"{name} is in neither train_val_list.txt nor test_list.txt; download both again")
    return splits[name]


def _members(
    root: Path, archives: list[Path], patients: dict[str, str], splits: dict[str, str] | None, config: DataConfig
) -> Iterator[Source]:
    for archive in archives:
        try:
            with open_regular(archive) as file, tarfile.open(fileobj=file, mode="r|gz") as stream:
                # Streamed from front to back, with one member in memory.
                for count, member in enumerate(stream, 1):
                    check_member(count, member.size, config)
                    name = member.name.rsplit("/")[-1]
                    if member.isfile() and name.endswith(".png") and (content := stream.extractfile(member)):
                        source = f"{archive.relative_to(root).as_posix()}/{member.name}"
                        patient = _xray_patient(name, patients)
                        yield Source(source, patient, archive, content.read(), _split(name, splits))
        except DataError as error:
            raise DataError(f"{archive}: {error}") from error
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise DataError(f"{archive}: the archive is damaged ({error}); download it again") from error


def _patients_of_table(root: Path) -> dict[str, str]:
    patients = {}
    for table in sorted(root.rglob("Data_Entry_2017*.csv"))[:1]:
        try:
            rows = list(csv.DictReader(_text(table).splitlines()))
            patients = {row["Image Index"].strip(): f"{int(row['Patient ID']):08d}" for row in rows}
        except KeyError:
            raise DataError(f"{table}: has no columns Image Index and Patient ID") from None
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            raise DataError(f"{table}: cannot be read ({error}); download it again") from error
    return patients


def _xray_patient(name: str, patients: dict[str, str]) -> str:
    return patients.get(name, name.split("_")[0])


def folder(root: Path, config: DataConfig, patient: str | None = None) -> Layout:
    """Any folder that `vmddpm train` reads.

    Args:
        patient: a regular expression searched for in the path below the root; its first group is the patient. By
            default see `patients.patient_of`.
    """
    finder = None if patient is None else patient_pattern(patient)
    sources = []
    found = find(config)
    for path in found.files:
        name = path.relative_to(root if root.is_dir() else root.parent).as_posix()
        owner = None
        if finder is not None:
            match = finder.search(name)
            if match is None or not match.groups() or match[1] is None:
                raise DataError(f"{path}: patient {patient!r} captures no group in it; an example is '(sub-[0-9]+)'")
            owner = match[1].strip()
        sources.append(Source(name, owner, path))
    return Layout(sources, len(sources), left_out=tuple(found.left_out))


def patient_pattern(text: str) -> re.Pattern[str]:
    """Compile the regular expression of a patient. Raises DataError if it is invalid."""
    try:
        return re.compile(text)
    except re.error as error:
        raise DataError(
            f"patient is {text!r}, which is not a regular expression ({error}); an example is '(sub-[0-9]+)'"
        ) from error


def _folders(root: Path, pattern: str, needed: str) -> list[Path]:
    found = sorted(p for p in root.iterdir() if p.is_dir() and re.fullmatch(pattern, p.name)) if root.is_dir() else []
    if not found:
        raise DataError(f"{root}: is not {needed}")
    return found


def _nifti(folder: Path, stem: str) -> Path:
    for suffix in (".nii.gz", ".nii"):
        if (folder / f"{stem}{suffix}").exists():
            return folder / f"{stem}{suffix}"
    raise DataError(f"{folder}: holds no {stem}.nii.gz; download it again")


def _source(root: Path, path: Path, patient: str) -> Source:
    return Source(path.relative_to(root).as_posix(), patient, path)
