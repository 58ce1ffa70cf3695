"""The paper's three data sets as their owners ship them, and any other folder: which files, and whose they are."""

import csv
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.files import find_files


@dataclass(frozen=True)
class Source:
    """An image file.

    Attributes:
        name: its path below the root, "archive/member" in an archive.
        patient: whose it is; None if a DICOM file is to be asked.
        path: the file; of an archive, the archive.
        content: the bytes of a file out of an archive, None of any other.
    """

    name: str
    patient: str | None
    path: Path
    content: bytes | None = None


@dataclass(frozen=True)
class Layout:
    """Attributes:
    sources: the files in the order of the store.
    files: how many, None if an archive has to be read to know.
    options: fields of DataConfig that this data set is read with, unless the user says otherwise.
    paper: images in the paper, None for a folder that is not of the paper.
    """

    sources: Iterable[Source]
    files: int | None
    paper: int | None = None


# What the data sets are read with, unless the user says otherwise; the same as the presets of `vmddpm train`.
OPTIONS: dict[str, dict[str, Any]] = {
    "acdc": {"min_foreground": 0.0},
    "brats2018": {"min_foreground": 0.2},
    "chestxray": {"min_foreground": 0.0, "limit": 34_999},
    "folder": {},
}
MODALITIES = ("flair", "t1", "t1ce", "t2")


def acdc(root: Path, frames: str = "ed-es") -> Layout:
    """ACDC (Bernard et al., 2018): patient001/ ... with Info.cfg, patient001_4d.nii.gz and patient001_frame01.nii.gz.

    "1798 2D cardiac MRIs images from 3DMR scans" (IV-A) does not say which: the end-diastolic and end-systolic frames
    that Info.cfg names ("ed-es"), or all frames of the cine ("cine"). Of a download with training/ and testing/, the
    training patients are taken.
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
    """ED and ES of an Info.cfg: the numbers of the two frames, counted from 1."""
    try:
        found = dict(re.findall(r"^\s*(ED|ES)\s*:\s*(\d+)\s*$", path.read_text(encoding="utf-8"), re.MULTILINE))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); it says which frames are ED and ES") from error
    if set(found) != {"ED", "ES"}:
        raise DataError(f"{path}: has no lines `ED: <frame>` and `ES: <frame>`")
    return {phase: int(number) for phase, number in found.items()}


def brats2018(root: Path, modality: str = "flair") -> Layout:
    """BraTS 2018 (Menze et al., 2015): HGG/ and LGG/, with Brats18_..._1/Brats18_..._1_flair.nii.gz and so on.

    "6528 2D brain images under a single modality" (IV-A) does not say which one.
    """
    inside = root / "MICCAI_BraTS_2018_Data_Training"
    root = inside if inside.is_dir() else root
    folders = [folder for grade in ("HGG", "LGG") if (root / grade).is_dir()
               for folder in _folders(root / grade, r"Brats18_.+", "a folder of BraTS patients")]  # fmt: skip
    folders = folders or _folders(root, r"Brats18_.+", "BraTS 2018's training folder, with HGG and LGG")
    sources = []
    for folder in folders:
        patient = re.sub(r"_\d$", "", folder.name)  # the last number counts a patient's scans
        sources.append(_source(root, _nifti(folder, f"{folder.name}_{modality}"), patient))
    return Layout(sources, len(sources), 6528)


def chestxray(root: Path) -> Layout:
    """ChestX-ray14 (Wang et al., 2017): images_001.tar.gz ..., or the 00000001_000.png ... unpacked from them.

    "the first 34,999 images" (IV-A) are those of the first four archives. The number in front is the patient; where
    Data_Entry_2017.csv is there, its column "Patient ID" decides.
    """
    patients = _patients_of_table(root)
    images = {path.name: path for path in root.rglob("*.png") if re.fullmatch(r"\d{8}_\d{3}\.png", path.name)}
    if images:
        sources = [_source(root, images[name], _xray_patient(name, patients)) for name in sorted(images)]
        return Layout(sources, len(sources), 34_999)
    archives = sorted(root.rglob("images_*.tar.gz"))
    if not archives:
        raise DataError(f"{root}: holds neither images_001.tar.gz and so on, nor 00000001_000.png and so on")
    return Layout(_members(root, archives, patients), None, 34_999)


def _members(root: Path, archives: list[Path], patients: dict[str, str]) -> Iterator[Source]:
    for archive in archives:
        try:
            with tarfile.open(archive, "r|gz") as stream:  # from front to back: one member is in memory
                for member in stream:
                    name = member.name.rsplit("/")[-1]
                    if member.isfile() and name.endswith(".png") and (file := stream.extractfile(member)):
                        content = file.read()
                        place = f"{archive.relative_to(root).as_posix()}/{member.name}"
                        yield Source(place, _xray_patient(name, patients), archive, content)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{archive}: the archive is damaged ({error}); download it again") from error


def _patients_of_table(root: Path) -> dict[str, str]:
    patients = {}
    for table in sorted(root.rglob("Data_Entry_2017*.csv"))[:1]:
        try:
            with open(table, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            patients = {row["Image Index"]: f"{int(row['Patient ID']):08d}" for row in rows}
        except KeyError:
            raise DataError(f"{table}: has no columns Image Index and Patient ID") from None
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise DataError(f"{table}: cannot be read ({error}); download it again") from error
    return patients


def _xray_patient(name: str, patients: dict[str, str]) -> str:
    return patients.get(name, name.split("_")[0])


def folder(root: Path, config: DataConfig, patient: str | None = None) -> Layout:
    """Any folder that `vmddpm train` reads.

    A DICOM file belongs to its Patient ID, written down as a hash; any other to the first folder of its path below the
    root, or to itself if it lies in the root.

    Args:
        patient: a regular expression searched for in the path below the root; its first group is the patient.
    """
    finder = None if patient is None else patient_pattern(patient)
    sources = []
    for path in find_files(config):
        name = path.relative_to(root if root.is_dir() else root.parent).as_posix()
        owner = None
        if finder is not None:
            match = finder.search(name)
            if match is None or not match.groups():
                raise DataError(f"{path}: patient {patient!r} finds no group in it; a pattern is like '(sub-[0-9]+)'")
            owner = match[1]
        sources.append(Source(name, owner, path))
    return Layout(sources, len(sources))


def patient_pattern(text: str) -> re.Pattern[str]:
    """Raises DataError unless it is a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise DataError(
            f"patient is {text!r}, which is no regular expression ({error}); a pattern is like '(sub-[0-9]+)'"
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
