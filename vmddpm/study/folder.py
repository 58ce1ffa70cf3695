"""A study on disk: the files for the server, and the key, which the server never reads.

`study.json` lists the opaque names of the images in alphabetical order, without their classes; `images/` holds the
images, `answers/` a log for each reader, `readers.json` password hashes. Only `key.json` has the classes. The server
does not need it, so it can be kept elsewhere until the report is made.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vmddpm.errors import VmddpmError
from vmddpm.files import atomic_write

SCHEMA = 1
CLASSES = ("real", "synthetic")

T = TypeVar("T")


class StudyError(VmddpmError, ValueError):
    """A study cannot be made, served or reported on; the message says why and what to do."""


def digest(*words: object) -> str:
    """The SHA-256 of a list of words, in hexadecimal."""
    return hashlib.sha256(json.dumps([str(word) for word in words]).encode()).hexdigest()


def shuffled(items: Iterable[T], *key: object) -> list[T]:
    """The items in an order that depends only on their names and the key, not on library versions."""
    return sorted(items, key=lambda item: digest(*key, item))


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can ever read."""
    with atomic_write(path) as temporary:
        temporary.touch(0o600)
        temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Study:
    """The data of the server.

    Attributes:
        path: the folder.
        title, instructions: shown to the readers.
        images: opaque names, in alphabetical order.
        shuffle: key of the readers' orders.
    """

    path: Path
    title: str
    instructions: str
    images: list[str]
    shuffle: str

    @classmethod
    def open(cls, path: str | Path) -> "Study":
        """Read the study. Raises StudyError if the folder has no study of this version, or an image is missing."""
        path = Path(path)
        content = _load(path / "study.json", "`vmddpm study create` makes a study")
        texts, images = [content.get(name) for name in ("title", "instructions", "shuffle")], content.get("images")
        # Only names of this pattern are generated, and none of them leads out of the folder.
        well_named = isinstance(images, list) and all(
            isinstance(name, str) and re.fullmatch("[0-9a-f]{16}", name) for name in images
        )
        if not (
            well_named and images and images == sorted(set(images)) and all(isinstance(text, str) for text in texts)
        ):
            raise StudyError(f"{path / 'study.json'} has changed since `vmddpm study create`; restore it")
        study = cls(path, content["title"], content["instructions"], images, content["shuffle"])
        missing = [name for name in study.images if not study.image(name).exists()]
        if missing:
            raise StudyError(f"{study.image(missing[0])} is missing, one of {len(missing)}; restore the study's folder")
        return study

    def image(self, name: str) -> Path:
        return self.path / "images" / f"{name}.png"

    def log(self, reader: str) -> Path:
        return self.path / "answers" / f"{reader}.jsonl"

    def readers_with_answers(self) -> list[str]:
        return sorted(path.stem for path in (self.path / "answers").glob("*.jsonl"))

    def order(self, reader: str) -> list[str]:
        """The images in the fixed order of this reader."""
        return shuffled(self.images, self.shuffle, reader)


def load_key(study: Study, path: Path | None = None) -> dict[str, str]:
    """The class of each image, "real" or "synthetic", by its name.

    Raises:
        StudyError: if the key is missing, damaged, or that of another study.
    """
    path = path or study.path / "key.json"
    images = _load(path, "give its path with --key").get("images")
    try:
        classes = {str(image["name"]): str(image["class"]) for image in images or ()}
    except (TypeError, KeyError) as error:
        raise StudyError(f"{path} does not say which image is which ({error} is missing or unusable); restore it, or "
                         "give the study's own key with --key") from error  # fmt: skip
    if not set(classes.values()) <= set(CLASSES):
        raise StudyError(f"{path} has classes other than {' and '.join(CLASSES)}; restore it")
    if sorted(classes) != study.images:
        raise StudyError(f"{path} is the key of another study: its images are not those of {study.path}")
    return classes


def _load(path: Path, advice: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path} does not exist; {advice}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"{path} cannot be read ({error}); restore it") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise StudyError(f"{path} was not written by this version of this program")
    return content
