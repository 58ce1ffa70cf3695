"""Attributes of a DICOM data set: their values, and their names for messages."""

import math

import pydicom
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from vmddpm.data.config import DataError


def text_of(dataset: pydicom.Dataset, keyword: str) -> str:
    """An attribute as text, stripped of blanks; empty if it is missing or empty."""
    value = dataset.get(keyword)
    if isinstance(value, MultiValue):
        return "\\".join(str(part).strip() for part in value)
    return "" if value is None else str(value).strip()


def named(keyword: str) -> str:
    """The name of an attribute in messages: Window Width (0028,1051)."""
    tag = Tag(tag_for_keyword(keyword) or 0)
    return f"{dictionary_description(tag)} ({tag.group:04X},{tag.element:04X})"


def numbers_of(dataset: pydicom.Dataset, keyword: str) -> list[float]:
    """The values of an attribute; [] if it is missing or empty.

    Raises:
        DataError: if a value is not a finite number; the message names the attribute.
    """
    try:
        value = dataset.get(keyword)
        parts = list(value) if isinstance(value, (MultiValue, list, tuple)) else [value]
        numbers = [float(part) for part in parts if part is not None and part != ""]
    except (ValueError, TypeError, OverflowError):
        raw = dataset.get_item(keyword)
        raise DataError(f"{named(keyword)} is {getattr(raw, 'value', raw)!r}, not a number") from None
    if not all(map(math.isfinite, numbers)):
        raise DataError(f"{named(keyword)} is {numbers}, not finite")
    return numbers


def integer_of(dataset: pydicom.Dataset, keyword: str, default: int | None = None) -> int:
    """The first value of an attribute, as an integer.

    Raises:
        DataError: naming the attribute, if it is missing and has no default, or is not a number.
    """
    try:
        numbers = numbers_of(dataset, keyword)
    except DataError as error:
        raise DataError(f"{error}; correct it in the file") from None
    if numbers:
        return int(numbers[0])
    if default is None:
        raise DataError(f"{named(keyword)} is missing or empty; the pixels cannot be read without it")
    return default


def as_pixel(value: float, signed: bool) -> float:
    """A pixel value from an attribute with the value representation US or SS, reinterpreted with the signedness of the
    pixels."""
    value %= 2**16
    return value - 2**16 if signed and value >= 2**15 else value


def photometric_of(dataset: pydicom.Dataset) -> str:
    return text_of(dataset, "PhotometricInterpretation").upper()
