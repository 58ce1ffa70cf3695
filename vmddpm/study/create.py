"""Creates a study from two folders of images, with the same processing of both classes."""

import json
import os
import re
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vmddpm
from vmddpm.data import DataConfig, DataError, SliceDataset
from vmddpm.data.files import find_files
from vmddpm.data.layouts import patient_pattern
from vmddpm.data.patients import dicom_identity
from vmddpm.data.readers import is_volume
from vmddpm.data.slicing import SliceInfo
from vmddpm.data.store import is_store, read_store
from vmddpm.files import atomic_folder, atomic_write, write_text
from vmddpm.numbers import check_numbers, check_seed
from vmddpm.study.blinding import differences
from vmddpm.study.folder import CLASSES, SCHEMA, StudyError, digest, shuffled, write_secret

INSTRUCTIONS = """\
You will see {total} medical images, one at a time. Some were taken of patients; others were made by a computer. \
For each, say whether you believe it is real or synthetic, and how sure you are.

There is no time limit, and you will not be told whether an answer was right. You may stop at any time: every answer \
is stored when you confirm it, and signing in again takes you to the image where you stopped.

Please do not discuss the images with other readers before all have finished."""

# The fields of DataConfig that locate images and do not affect their appearance.
PLACE: dict[str, Any] = {"root": "", "pattern": "*", "split": "all"}


@dataclass
class CreateOptions:
    """Options of a new study.

    Attributes:
        images: number of images of each class: "we randomly selected one hundred synthetic images ... as well as one
            hundred real images" (paper, IV-D).
        seed: the same seed and images give the same study. By default it is drawn at random and stored in the key;
            anyone who knows the seed can work out the key.
        slices: maximum number of images per patient, if patients are known. Two slices of one patient look alike, which
            would distinguish them from synthetic images.
        patient: regular expression that is searched for in a real file's path below its folder; its first group is the
            patient, such as `(\\d+)_\\d+\\.png`. By default the patient comes from a prepared store; in other folders
            it is the Patient ID of a DICOM file (without one, its study), or the folder of a volume (or the file, if it
            is at the top); for other files it is unknown.
        title: title of the page.
        instructions: a text file that replaces the built-in instructions; {total} is the number of images.
    """

    images: int = 100
    seed: int | None = None
    slices: int = 1
    patient: str | None = None
    title: str = "Real or synthetic?"
    instructions: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self, error=StudyError)
        if self.seed is not None:
            check_seed("seed", self.seed)
        for name in ("images", "slices"):
            if getattr(self, name) < 1:
                raise StudyError(f"{name} is {getattr(self, name)}; it must be at least 1")


def create_study(
    real: DataConfig, synthetic: DataConfig, out: str | Path, options: CreateOptions, progress: bool = False
) -> list[str]:
    """Make the folder of a study atomically.

    Args:
        real, synthetic: how to read the images of each class; only `root`, `pattern` and `split` may differ.
        progress: show a bar while files are decoded.

    Returns:
        Descriptions of obvious differences between the classes, which a reader could use without looking at anatomy.

    Raises:
        StudyError: if there are too few images or patients, or the folder exists.
        DataError: if images cannot be read, or `patient` is not a regular expression.
    """
    out = Path(out)
    if out.exists():
        raise StudyError(f"{out} exists; choose another folder, or remove it if it holds no answers")
    if replace(real, **PLACE) != replace(synthetic, **PLACE):
        raise StudyError(f"both classes must be prepared alike: all options but {', '.join(PLACE)} must be equal")
    if real.spatial_dims == 3:
        raise StudyError("a study shows images, but spatial_dims is 3; set it to 2 to show the slices of volumes")
    if Path(real.root).resolve() == Path(synthetic.root).resolve():
        raise StudyError(f"{real.root} is given for both classes; name two folders")
    if options.patient is not None:
        patient_pattern(options.patient)
    for label, config in zip(CLASSES, (real, synthetic)):  # before any file is decoded
        try:
            if not is_store(config.root):
                find_files(config)
        except DataError as error:
            raise DataError(f"--{label}: {error}") from error
    seed = secrets.randbits(63) if options.seed is None else options.seed
    text = _instructions(options.instructions)
    images: list[np.ndarray] = []
    entries: list[dict[str, Any]] = []
    for label, config in zip(CLASSES, (real, synthetic)):
        dataset = SliceDataset(config, progress)
        patients = _patients(dataset.slices, config.root, options) if label == "real" else list(range(len(dataset)))
        for number in _choose(patients, options.images, options.slices, label, seed):
            images.append(to_8_bit(dataset[number].numpy()))
            entries.append({"name": digest(seed, "name", len(entries))[:16], "class": label,
                            "patient": str(patients[number]) if label == "real" else "",
                            **asdict(dataset.slices[number])})  # fmt: skip
    public = {
        "schema": SCHEMA, "title": options.title, "instructions": text.replace("{total}", str(len(images))).strip(),
        "images": sorted(entry["name"] for entry in entries), "shuffle": digest(seed, "shuffle"),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "vmddpm": vmddpm.__version__,
    }  # fmt: skip
    key = {"schema": SCHEMA, "seed": seed, "real": asdict(real), "synthetic": asdict(synthetic),
           "options": asdict(options), "images": entries}  # fmt: skip
    _write(out, public, key, {entry["name"]: image for entry, image in zip(entries, images)})
    return differences(np.stack(images[: options.images]), np.stack(images[options.images :]))


def _instructions(path: str | None) -> str:
    if path is None:
        return INSTRUCTIONS
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise StudyError(f"instructions: {path} cannot be read as UTF-8 text ({error})") from error


def to_8_bit(image: np.ndarray) -> np.ndarray:
    """float (C, S, S) in [-1, 1] -> uint8 (S, S, C); values from 8-bit files are unchanged."""
    levels: np.ndarray = np.rint((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    return levels.transpose(1, 2, 0)


def encode_png(pixels: np.ndarray, path: Path) -> None:
    """Write uint8 (S, S, C) without compression or metadata, so that the file size reveals nothing about the image."""
    with atomic_write(path) as temporary:
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(temporary, compress_level=0)


def _patients(slices: list[SliceInfo], root: str, options: CreateOptions) -> list[str]:
    """The patient of each slice; if patients are unknown, each slice counts as a patient."""
    if is_store(root):
        if options.patient is not None:
            raise StudyError(f"{root} is a store, which knows its patients; leave patient out, or name the raw folder")
        of = {(s.source, s.axis, s.index, s.frame): s.patient for s in read_store(Path(os.path.expanduser(root)))[1]}
        return [of[info.path, info.axis, info.index, info.frame] for info in slices]
    patient_of_path: dict[str, str | None] = {}
    for info in slices:
        if info.path not in patient_of_path:
            patient_of_path[info.path] = _patient(
                Path(info.path), Path(os.path.expanduser(root)).absolute(), options.patient
            )
    unknown = [path for path, patient in patient_of_path.items() if patient is None]
    if unknown:
        warnings.warn(f"the patients of {len(unknown)} real files are not known ({unknown[0]} ...): two images may be "
                      "of one patient; --patient finds the patient in the path", stacklevel=3)  # fmt: skip
    return [patient_of_path[info.path] or f"{info.path} {info.frame} {info.axis} {info.index}" for info in slices]


def _patient(path: Path, root: Path, pattern: str | None) -> str | None:
    relative = path.relative_to(root) if path != root else Path(path.name)
    if pattern is not None:
        match = re.search(pattern, relative.as_posix())
        if match is None or not match.groups() or match[1] is None:
            raise StudyError(f"patient {pattern!r} finds no patient in {relative}")
        return match[1]
    if is_volume(path):
        return str(relative.parent if relative.parent != Path(".") else relative)
    return dicom_identity(path, DataConfig())


def _choose(patients: Sequence[object], n: int, most: int, label: str, seed: int) -> list[int]:
    """Draw n random slices, from as many patients as possible."""
    of: dict[object, list[int]] = {}
    for number in shuffled(range(len(patients)), seed, label):
        of.setdefault(patients[number], []).append(number)
    # No patient gives a second slice before every patient has given one.
    rounds = [number for turn in range(most) for numbers in of.values() for number in numbers[turn : turn + 1]]
    if len(rounds) < n:
        advice = "draw more, or ask for fewer images"
        if label == "real":
            advice = (f"{len(patients)} images come from {len(of)} patients, and each gives at most {most}; "
                       "ask for fewer images, or for more slices of a patient")  # fmt: skip
        raise StudyError(f"images is {n}, but there are only {len(rounds)} {label} images to choose from: {advice}")
    return rounds[:n]


def _write(out: Path, public: dict[str, Any], key: dict[str, Any], images: dict[str, np.ndarray]) -> None:
    with atomic_folder(out, 0o700) as temporary:  # accessible only to its owner
        (temporary / "answers").mkdir()
        for name in public["images"]:
            encode_png(images[name], temporary / "images" / f"{name}.png")
        write_secret(temporary / "key.json", json.dumps(key, indent=1))
        write_text(temporary / "study.json", json.dumps(public, indent=1))
