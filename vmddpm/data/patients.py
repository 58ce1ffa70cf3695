"""Patients: which files belong to the same one."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pydicom

from vmddpm.data.config import DataConfig
from vmddpm.data.dicom_attributes import text_of
from vmddpm.data.files import inflated, open_regular
from vmddpm.data.readers import kind_of

HASHED = "dicom-"  # prefix of patients that are hashes of DICOM identities
BIDS = re.compile(r"(sub-[A-Za-z0-9]+)_")
SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
# Folders named after a split, a modality, a session or a kind of file, which hold many patients.
GENERAL = re.compile(
    r"(train|test|val|valid|eval|hold_?out|ses|session|visit|scan|study|series|day|week|month|year|time|baseline|"
    r"follow_?up|mri?|ct|cta|pet|us|xa|cr|dx|mg|nm|t1|t1w|t1ce|t1c|t1n|t1gd|t2|t2w|t2f|t2star|flair|pd|pdw|dwi|adc|swi|"
    r"asl|bold|mprage|anat|func|fmap|perf|axial|coronal|sagittal|images?|imgs?|data|dataset|raw|scans|nifti|niftis|"
    r"dicoms?|derivatives|labels?|masks?)(ing|idation|uation)?([\W_]*\d+)?(tr|ts|va)?",
    re.IGNORECASE,
)
# Folders whose number looks like a patient's: 001, P12, case_3. REPEATED excludes numbered items that one patient may
# have several of.
NUMBER = re.compile(
    r"(p|pt|pat|patient|s|sub|subj|subject|case|id|person|participant|volunteer)[\W_]*\d+|[A-Za-z]{0,12}[\W_]*\d{3,}",
    re.IGNORECASE,
)
REPEATED = re.compile(
    r"(run|acq|acquisition|echo|phase|frame|slice|stack|recon|exam|exp|rec|tp|timepoint|lesion|roi|level|image|img|crop|"
    r"patch|tile|b|te|tr|ti|im)[\W_]*\d+|(19|20)\d\d([-_.]?\d\d){0,2}",
    re.IGNORECASE,
)
NUMBERED = re.compile(r"(.*?)[\W_]*\d+(?:\.[A-Za-z.]+)?")


def patient_of(path: Path, name: str, config: DataConfig) -> tuple[str, str | None]:
    """The default patient of a file. For DICOM it is a hash of the Patient ID, or of the study without a Patient ID;
    for other files it is the first folder in `name`, or the file itself if it lies in the root.

    Args:
        name: path of the file below the root.

    Returns:
        The patient, and the hash of the study, which is the patient where the Patient ID is empty; None without a
        study.
    """
    identity, study = _identities(path, config)
    return (_hashed(identity or study) or name.split("/")[0]), _hashed(study)


def dicom_patient(path: Path, config: DataConfig) -> str | None:
    """A hash of `dicom_identity`."""
    return _hashed(dicom_identity(path, config))


def _hashed(identity: str | None) -> str | None:
    if identity is None:
        return None
    return f"{HASHED}{hashlib.sha256(identity.encode(errors='surrogatepass')).hexdigest()[:16]}"


def dicom_identity(path: Path, config: DataConfig) -> str | None:
    """The Patient ID of a DICOM file, stripped of blanks, or else its Study Instance UID. None if it has neither, is
    not DICOM, or is damaged, which is reported when it is read."""
    identity, study = _identities(path, config)
    return identity or study


def _identities(path: Path, config: DataConfig) -> tuple[str | None, str | None]:
    """Patient ID and Study Instance UID."""
    try:
        with open_regular(path) as file:
            if kind_of(file, path.name) != "DICOM":
                return None, None
            found = pydicom.dcmread(inflated(file, config), specific_tags=["PatientID", "StudyInstanceUID"],
                                    stop_before_pixels=True, force=True)  # fmt: skip
        return text_of(found, "PatientID") or None, text_of(found, "StudyInstanceUID") or None
    except Exception:  # pydicom raises nearly every class on damaged files
        return None, None


def merge_patients(patients: Mapping[str, str], of_studies: Mapping[str, str]) -> dict[str, str]:
    """Refine the patients of files with knowledge from other files. A study without a Patient ID gets the patient of
    another series of the study. A file that is not DICOM gets the patient of the DICOM files in the same first folder,
    if they have only one.

    Args:
        patients: patients by name of the file.
        of_studies: patients by study, both as `patient_of` returns them.
    """
    found = {name: of_studies.get(patient, patient) for name, patient in patients.items()}
    owners = _owners(found)
    for name, patient in found.items():
        folder = name.split("/")[0]
        if "/" in name and patient == folder and len(owners[folder]) == 1:
            (found[name],) = owners[folder]
    return found


def _owners(patients: Mapping[str, str]) -> dict[str, set[str]]:
    """The patients of DICOM files by first folder."""
    owners = defaultdict(set)
    for name, patient in patients.items():
        if patient.startswith(HASHED) and "/" in name:
            owners[name.split("/")[0]].add(patient)
    return owners


def same_subjects(patients: Mapping[str, str]) -> list[list[str]]:
    """Groups of files that may belong to one patient although they are assigned to several.

    A group has one of these in common: a BIDS subject; a folder or file name below folders such as T1 and T2, train
    and test, or ses-1 and ses-2; a folder with a patient's number below any other folders; or a first folder with
    DICOM files of several patients.
    """
    owners, groups = _owners(patients), defaultdict(list)
    for name, patient in patients.items():
        folder, *parts = name.split("/")
        if not parts:
            continue
        if len(owners[folder]) > 1:
            groups[f"{folder}/"].append(name)
        elif patient != folder:
            continue
        elif match := next(filter(None, map(SUBJECT.match, parts)), None):
            groups[match[0]].append(name)
        elif GENERAL.fullmatch(folder) and (own := [part for part in parts if not GENERAL.fullmatch(part)]):
            groups[own[0].split(".")[0]].append(name)
        elif number := next(filter(_looks_like_a_patient, parts[:-1]), None):
            groups[number].append(name)

    def is_unsure(group: list[str]) -> bool:
        return any(patients[name] == name.split("/")[0] for name in group)

    return [group for group in groups.values() if len({patients[name] for name in group}) > 1 and is_unsure(group)]


def _looks_like_a_patient(folder: str) -> bool:
    return bool(NUMBER.fullmatch(folder)) and not (GENERAL.fullmatch(folder) or REPEATED.fullmatch(folder))


def mixed_patients(patients: Mapping[str, str]) -> dict[str, list[str]]:
    """First folders that each count as one patient but contain several folders numbered like patients."""
    inside = defaultdict(set)
    for name, patient in patients.items():
        folder, *parts = name.split("/")
        if parts and patient == folder and (found := next(filter(_looks_like_a_patient, parts[:-1]), None)):
            inside[folder].add(found)
    return {folder: sorted(found) for folder, found in inside.items() if len(found) > 1}


def similar_names(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that look like slices or scans of one patient: they differ only in their last number, or begin
    with the same BIDS subject. Names in folders are ignored."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if "/" not in name and (match := BIDS.match(name) or NUMBERED.fullmatch(name)) and match[1]:
            groups[match[1]].append(name)
    return [group for group in groups.values() if len(group) > 1]
