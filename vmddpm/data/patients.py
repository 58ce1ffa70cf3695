"""Whose a file is."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pydicom

from vmddpm.data.config import DataConfig
from vmddpm.data.dicom_attributes import text_of
from vmddpm.data.files import open_regular
from vmddpm.data.readers import inflated, kind_of

BIDS = re.compile(r"(sub-[A-Za-z0-9]+)_")
NUMBERED = re.compile(r"(.*?)[\W_]*\d+(?:\.[A-Za-z.]+)?")


def patient_of(path: Path, name: str, config: DataConfig) -> str:
    """Whose a file is that nothing else says: a DICOM file belongs to its Patient ID or, without one, to its study,
    written down as a hash; any other to the first folder of its name, or to itself if it lies in the root.

    Args:
        name: its path below the root.
    """
    return dicom_patient(path, config) or name.split("/")[0]


def dicom_patient(path: Path, config: DataConfig) -> str | None:
    """A hash of `dicom_identity`."""
    identity = dicom_identity(path, config)
    if identity is None:
        return None
    return f"dicom-{hashlib.sha256(identity.encode(errors='surrogatepass')).hexdigest()[:16]}"


def dicom_identity(path: Path, config: DataConfig) -> str | None:
    """The Patient ID of a DICOM file, blanks around it apart, or its Study Instance UID; None if it has neither, is no
    DICOM file, or is damaged, which is told when it is read."""
    try:
        with open_regular(path) as file:
            if kind_of(file, path.name) != "DICOM":
                return None
            found = pydicom.dcmread(inflated(file, config), specific_tags=["PatientID", "StudyInstanceUID"],
                                    stop_before_pixels=True, force=True)  # fmt: skip
        return text_of(found, "PatientID") or text_of(found, "StudyInstanceUID") or None
    except Exception:  # pydicom raises nearly every class on damaged files
        return None


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Names that look like slices or scans of one patient, by patient: they differ in their last number only, or begin
    with one BIDS subject. Names in folders are left aside."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if "/" not in name and (match := BIDS.match(name) or NUMBERED.fullmatch(name)) and match[1]:
            groups[match[1]].append(name)
    return [group for group in groups.values() if len(group) > 1]
