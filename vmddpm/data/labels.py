"""The classes of images: from the names of folders, a table, or DICOM attributes."""

import csv
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pydicom

from vmddpm.data.conditions import ConditionConfig
from vmddpm.data.config import DataConfig, DataError
from vmddpm.data.dicom_attributes import named, text_of
from vmddpm.data.files import inflated, open_regular
from vmddpm.data.readers import kind_of, stem_of
from vmddpm.data.store import is_store

MAX_CLASSES = 2**12
MAX_LISTED = 3  # file names in a message
# (path below the root, path on disk) of a file -> the text with its class or classes.
LabelOf = Callable[[str, str], str]


def open_labels(config: ConditionConfig, data: DataConfig) -> "LabelReader | None":
    """A reader for the classes configured in `config`, with its table loaded; None if `config.labels` is "none".

    Raises:
        DataError: if the table is missing, cannot be read, lacks a column, or has two rows for one file; or if DICOM
            attributes are requested from a store, which does not keep them.
    """
    if config.labels == "none":
        return None
    if config.labels == "dicom":
        if is_store(data.root):
            raise DataError(
                f"{data.root}: a store keeps no DICOM attributes; set data.root to the folder it was made from, or "
                "list the classes in a table, with condition.labels csv"
            )
        return LabelReader(config, data, _dicom_attribute(config, data))
    if config.labels == "folder":
        return LabelReader(config, data, lambda name, _: _in_path(name, config.pattern))
    if config.labels == "chestxray":
        config = replace(
            config, table=config.table or _chestxray_table(data.root), file_column="Image Index",
            label_column="Finding Labels", separator="|",
        )  # fmt: skip
    table = Path(os.path.expanduser(config.table or ""))
    rows = read_table(table, config.file_column, config.label_column)
    return LabelReader(config, data, _Rows(table, rows))


class LabelReader:
    """Assigns classes to images.

    Args:
        config: the conditions.
        data: the data set of the images.
        label_of: see `LabelOf`; raises DataError if the label is ambiguous or cannot be read.
    """

    def __init__(self, config: ConditionConfig, data: DataConfig, label_of: LabelOf) -> None:
        self.config, self.label_of = config, label_of
        self._root = Path(os.path.expanduser(data.root)).absolute()

    def read(self, paths: Sequence[str], classes: Sequence[str] = ()) -> tuple[tuple[str, ...], np.ndarray]:
        """The classes of each image.

        Args:
            paths: the file of each image.
            classes: names of the classes, if known.

        Returns:
            The names (`classes`, or by default all names found, sorted), and float32 (n, K), 1 for each class of an
            image.

        Raises:
            DataError: naming files that have no class or one not in `classes`; also if there is only one class.
        """
        found = {path: self._classes_of(path) for path in dict.fromkeys(paths)}
        if missing := [path for path, names in found.items() if not names]:
            raise DataError(f"{self._list_paths(missing)} no class {self._where()}; give them one, or remove them")
        names = tuple(classes) or tuple(sorted({name for names in found.values() for name in names}))
        if len(names) < 2:
            raise DataError(f"all images are of the class {names[0]!r} {self._where()}; two or more classes are needed")
        if len(names) > MAX_CLASSES:
            raise DataError(f"there are {len(names):,} classes {self._where()}, such as {names[0]!r}; at most "
                            f"{MAX_CLASSES:,} are supported: does it hold the class?")  # fmt: skip
        index_of = {name: k for k, name in enumerate(names)}
        unknown = {path: other for path, own in found.items() if (other := [n for n in own if n not in index_of])}
        if unknown:
            path, other = next(iter(unknown.items()))
            raise DataError(f"{path} has the class {other[0]!r} {self._where()}, which is not one of "
                            f"{shorten_list(names)}; correct it, or add it to model.classes in a new run")  # fmt: skip
        rows = {path: [index_of[name] for name in own] for path, own in found.items()}
        labels = np.zeros((len(paths), len(names)), np.float32)
        for i, path in enumerate(paths):
            labels[i, rows[path]] = 1
        return names, labels

    def _classes_of(self, path: str) -> list[str]:
        try:
            name = Path(path).relative_to(self._root).as_posix()
        except ValueError:  # a store has names below its root
            name = PurePosixPath(path).as_posix()
        text, separator = self.label_of(name, path), self.config.separator
        names = [part.strip() for part in (text.split(separator) if separator else [text])]
        if separator and text.strip() and not all(names):
            raise DataError(f"{path}: its classes are {text!r} {self._where()}, one of which is empty; correct it")
        return list(filter(None, names))

    def _where(self) -> str:
        config = self.config
        sources = {"folder": "by its folder" if config.pattern is None else f"by condition.pattern {config.pattern!r}",
                  "dicom": f"by {named(config.tag or '')}"}  # fmt: skip
        return sources.get(config.labels, f"in column {config.label_column!r} of {config.table}")

    def _list_paths(self, paths: list[str]) -> str:
        first = ", ".join(paths[:MAX_LISTED])
        if len(paths) == 1:
            return f"{first} has"
        return f"{len(paths):,} files ({first}{' ...' if len(paths) > MAX_LISTED else ''}) have"


def shorten_list(names: Sequence[str]) -> str:
    """Names for a message, the first few of many."""
    shown = ", ".join(map(repr, names[:12]))
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def read_table(table: Path, file_column: str, label_column: str) -> Mapping[str, str]:
    """{name in the file column: label} of a table. Raises DataError naming the table, and the column or the rows."""
    try:
        with open_regular(table) as file:
            text = file.read().decode("utf-8-sig")
    except DataError as error:
        raise DataError(f"{table}: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: is not UTF-8 text (byte {error.start}); save it as CSV in UTF-8") from None
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    labels: dict[str, str] = {}
    lines: dict[str, int] = {}
    try:
        rows = csv.DictReader(text.splitlines(), delimiter=delimiter, strict=True)
        columns = [column.strip() for column in rows.fieldnames or ()]
        for column in (file_column, label_column):
            if column not in columns:
                raise DataError(f"{table}: has no column {column!r}; its columns are {', '.join(map(repr, columns))}. "
                                "Set condition.file_column and condition.label_column")  # fmt: skip
        if columns.count(file_column) > 1 or columns.count(label_column) > 1:
            raise DataError(f"{table}: has two columns of the name {file_column!r} or {label_column!r}; remove one")
        rows.fieldnames = columns
        for row in rows:
            name = (row[file_column] or "").strip().replace("\\", "/").removeprefix("./")
            if not name:
                raise DataError(f"{table}: line {rows.line_num} names no file in column {file_column!r}")
            if name in labels:
                raise DataError(f"{table}: has two rows for {name!r}, lines {lines[name]} and {rows.line_num}; keep "
                                "one. Put several classes of a file into one row, see condition.separator")  # fmt: skip
            labels[name], lines[name] = (row[label_column] or "").strip(), rows.line_num
    except csv.Error as error:
        raise DataError(f"{table}: line {rows.line_num} is not CSV ({error}); correct it") from None
    if not labels:
        raise DataError(f"{table}: has no rows")
    return labels


class _Rows:
    """Looks up the row of a table that names a file by its path or name, with or without suffixes, or by a folder in
    its path."""

    def __init__(self, table: Path, labels: Mapping[str, str]) -> None:
        self.table, self.labels = table, labels
        self._named: dict[str, str] = {}  # name in the table -> the file that it was used for

    def __call__(self, name: str, _: str) -> str:
        path = PurePosixPath(name)
        own = [name, stem_of(name), path.name, stem_of(path.name)]
        folders = [folder.as_posix() for folder in path.parents if folder.name] + list(path.parts[:-1])
        found = [key for key in dict.fromkeys(own + folders) if key in self.labels]
        if len(found) > 1:
            raise DataError(f"{self.table}: has two rows for {name}: {found[0]!r} and {found[1]!r}; keep one")
        if not found:
            return ""
        if found[0] in own and (other := self._named.setdefault(found[0], name)) != name:
            raise DataError(f"{self.table}: its row for {found[0]!r} may mean {other} or {name}; name files by "
                            "their paths below data.root")  # fmt: skip
        return self.labels[found[0]]


def _in_path(name: str, pattern: str | None) -> str:
    if pattern is None:
        return PurePosixPath(name).parts[0] if "/" in name else ""
    match = re.search(pattern, name)
    return (match[1] or "").strip() if match else ""


def _dicom_attribute(config: ConditionConfig, data: DataConfig) -> LabelOf:
    keyword = config.tag or ""

    def label_of(_: str, path: str) -> str:
        try:
            with open_regular(Path(path)) as file:
                if kind_of(file, Path(path).name) != "DICOM":
                    return ""
                content = inflated(file, data)
                header = pydicom.dcmread(content, specific_tags=[keyword], stop_before_pixels=True, force=True)
                return text_of(header, keyword)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    return label_of


def _chestxray_table(root: str) -> str:
    folder = Path(os.path.expanduser(root))
    found = sorted(folder.rglob("Data_Entry_2017*.csv")) if folder.is_dir() else []
    if not found:
        raise DataError(f"{root}: holds no Data_Entry_2017.csv, which has ChestX-ray14's findings; download it next to "
                        "the images, or set condition.table")  # fmt: skip
    return str(found[0])

