"""The configuration of conditions: classes, and a paired image for each image, such as a mask."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from pydicom.datadict import tag_for_keyword

from vmddpm.data.config import DataError
from vmddpm.numbers import check_numbers


@dataclass(frozen=True)
class ConditionConfig:
    """The conditions of a run; none by default, as in the paper.

    Raises:
        DataError: naming the field, its value and what it must be.
    """

    labels: Literal["none", "folder", "csv", "dicom", "chestxray"] = "none"
    """The source of an image's class: "folder", the first folder below data.root; "csv", a row of `table`; "dicom", the
    attribute `tag`; "chestxray", the findings in ChestX-ray14's Data_Entry_2017.csv. All slices of a file have its
    classes."""

    pattern: str | None = None
    """With labels "folder": a regular expression that is searched for in the path below data.root; its first group is
    the class, such as '_(benign|malignant)_'. Null takes the first folder."""

    table: str | None = None
    """With labels "csv" and "chestxray": the table, comma-separated, or tab-separated if its suffix is .tsv; UTF-8,
    with a row of column names. Null searches for ChestX-ray14's table below data.root."""

    file_column: str = "file"
    """Column of `table` that names the image: its path below data.root, its name with or without suffixes, or a folder
    in its path, such as the patient's."""

    label_column: str = "label"
    """Column of `table` with the class."""

    tag: str | None = None
    """With labels "dicom": keyword of the attribute, such as BodyPartExamined or ViewPosition."""

    separator: str | None = None
    """Separator between several classes of one image, such as "|"; null if each image has one class. ChestX-ray14
    uses "|"."""

    image: str | None = None
    """Folder of the paired images: a mask or another modality for each image. Both images of a pair have the same name,
    see `image_pattern`, and the same height and width."""

    image_pattern: str = "*"
    """Shell pattern of the files in `image`. The text matched by its stars, without suffixes, must equal the text
    matched by the stars of data.pattern: `*_flair.nii.gz` there and `*_seg.nii.gz` here pair case7_flair.nii.gz and
    case7_seg.nii.gz."""

    image_channels: int = 1
    """Channels of the paired images, 1 or 3."""

    image_normalize: Literal["auto", "percentile", "window", "full"] = "auto"
    """How intensities of the paired images are mapped to [-1, 1], as data.normalize. Label maps need `image_window`."""

    image_window: tuple[float, float] | None = None
    """(centre, width) for every paired image: [2, 4] maps the labels 0 to 4 to -1, -0.5 ... 1."""

    dropout: float = 0.1
    """Share of the training images whose condition is dropped, so that the model also learns to draw without it, as
    guidance needs; 0.1 to 0.2 in Ho and Salimans (2022). With 0, only guidance 1 is possible."""

    def __post_init__(self) -> None:
        if self.image_window is not None:  # JSON and YAML have lists only
            object.__setattr__(self, "image_window", tuple(self.image_window))
        check_numbers(self, "condition.", error=DataError)
        kinds = ("none", "folder", "csv", "dicom", "chestxray")
        self._require(self.labels in kinds, "labels", f"one of {', '.join(kinds)}")
        self._require(0 <= self.dropout < 1, "dropout", "at least 0 and below 1")
        self._require(self.image_channels in (1, 3), "image_channels", "1 or 3")
        self._require(self.separator != "", "separator", "null, or the text between classes")
        window = self.image_window
        self._require(
            window is None or (len(window) == 2 and all(map(math.isfinite, window)) and window[1] > 0),
            "image_window", "(centre, width) with a width above 0, or null",
        )  # fmt: skip
        self._require(self.labels != "csv" or bool(self.table), "table", 'the path of a table when labels is "csv"')
        self._require(
            self.labels != "dicom" or (self.tag is not None and tag_for_keyword(self.tag) is not None), "tag",
            'the keyword of a DICOM attribute, such as BodyPartExamined, when labels is "dicom"',
        )  # fmt: skip
        for name, kind in (("pattern", ("folder",)), ("table", ("csv", "chestxray")), ("tag", ("dicom",))):
            unused = getattr(self, name) is not None and self.labels not in kind
            self._require(not unused, name, f"null unless labels is {' or '.join(kind)}")
        if self.pattern is not None:
            self._require(_has_group(self.pattern), "pattern", "a regular expression with a group, such as '_(b|m)_'")

    def _require(self, fits: bool, name: str, needed: str) -> None:
        if not fits:
            raise DataError(f"condition.{name} is {getattr(self, name)!r}; it must be {needed}")

    @property
    def is_set(self) -> bool:
        """Whether there is any condition."""
        return self.labels != "none" or self.image is not None


def _has_group(pattern: str) -> bool:
    try:
        return re.compile(pattern).groups > 0
    except re.error:
        return False
