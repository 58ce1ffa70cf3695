"""Checks of a store: damage, patients in both splits, duplicate images."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from vmddpm.data.config import DataError
from vmddpm.data.image_file import ImageFile
from vmddpm.data.patients import same_subjects, similar_names
from vmddpm.data.remarks import Remark
from vmddpm.data.store import StoredSlice, read_store, remarks_of

# Hamming distance up to which hashes match. A difference hash (Krawetz, 2013) has 64 bits; about half of them differ
# between unrelated images.
NEAR_BITS = 4
# Matching hashes only select candidates. Near duplicates differ by a root mean square below this share of the range.
NEAR_RMS = 0.02
ROWS = 1024


@dataclass
class Findings:
    """The problems of a store.

    Attributes:
        damaged: images that cannot be read or have changed since they were written, with the reason.
        shared_patients: patients in both splits.
        similar_names: files without a known patient, in both splits, whose names or folders look like one patient's.
        empty_splits: splits without an image, although `test_share` was set.
        remarks: omissions from the store.
        exact: pairs of images (indices) with identical pixels, of different patients; constant images do not count.
        near: pairs of images (indices) of different patients that are almost identical.
        blank: number of constant images.
    """

    damaged: list[str] = field(default_factory=list)
    shared_patients: list[str] = field(default_factory=list)
    similar_names: list[str] = field(default_factory=list)
    empty_splits: list[str] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    exact: list[tuple[int, int]] = field(default_factory=list)
    near: list[tuple[int, int]] = field(default_factory=list)
    blank: int = 0


def check_store(folder: Path, progress: bool = True) -> tuple[Findings, list[StoredSlice]]:
    """Read every image once, and images with matching hashes again. Only the hashes are kept in memory.

    Raises:
        DataError: if the store cannot be read at all.
    """
    images, slices, record = read_store(folder)
    found = Findings(remarks=remarks_of(record))
    splits = defaultdict(set)
    for info in slices:
        splits[info.patient].add(info.split)
    found.shared_patients = sorted(patient for patient, both in splits.items() if len(both) > 1)
    unknown = {info.source: info.split for info in slices if info.patient == info.source}
    groups = similar_names(unknown)
    if len(groups) > 1:  # a single group may be one numbered picture for each of many patients
        found.similar_names = [f"{near[0]} ... {near[-1]}" for near in groups if len({unknown[n] for n in near}) > 1]
    split = {info.source: info.split for info in slices}
    for names in same_subjects({info.source: info.patient for info in slices}):
        if others := [name for name in names if split[name] != split[names[0]]]:
            found.similar_names.append(f"{names[0]} ... {others[0]}")
    if record.get("test_share"):
        found.empty_splits = sorted({"train", "test"} - set(split.values()))

    hashes, contents, indices = [], defaultdict(list), []
    with tqdm(range(len(slices)), "images", disable=not progress, dynamic_ncols=True) as bar:
        for i in bar:
            try:
                image = images[i]
            except DataError as error:
                found.damaged.append(str(error))
                continue
            if image.min() == image.max():
                found.blank += 1
                continue
            indices.append(i)
            hashes.append(difference_hash(image))
            contents[slices[i].crc32].append(i)

    def differ(i: int, j: int) -> bool:
        return slices[i].patient != slices[j].patient

    for group in contents.values():  # equal checksums are candidates; the pixels decide
        for a, i in enumerate(group):
            found.exact += [(i, j) for j in group[a + 1 :] if differ(i, j) and np.array_equal(images[i], images[j])]
    exact = set(found.exact)
    found.near = [
        (i, j) for i, j in near_pairs(np.array(hashes), indices)
        if differ(i, j) and (i, j) not in exact and distance(images, i, j) < NEAR_RMS
    ]  # fmt: skip
    return found, slices


def difference_hash(image: np.ndarray) -> np.ndarray:
    """int8 (64,): the signs, 1 or -1, of horizontal differences in the image (C, S, S) resized to 8 x 9. A volume
    (C, D, S, S) is averaged over its planes first."""
    grey = torch.from_numpy(image.astype(np.float32)).flatten(0, -3).mean(0)[None, None]
    small = F.interpolate(grey, (8, 9), mode="bilinear", antialias=True)[0, 0]
    return torch.where(small[:, 1:] > small[:, :-1], 1, -1).flatten().to(torch.int8).numpy()


def near_pairs(hashes: np.ndarray, indices: list[int]) -> Iterator[tuple[int, int]]:
    """All pairs of indices i < j whose hashes (N, 64) differ in at most NEAR_BITS bits, by ROWS rows at a time."""
    signs = torch.from_numpy(hashes.reshape(-1, 64)).float()
    for first in range(0, len(signs), ROWS):
        agreement = signs[first : first + ROWS] @ signs[first:].T  # 64 - 2 (number of differing bits)
        for a, b in (agreement >= 64 - 2 * NEAR_BITS).nonzero().tolist():
            if a < b:
                yield indices[first + a], indices[first + b]


def distance(images: ImageFile, i: int, j: int) -> float:
    """Root mean square difference of two images, as a share of the range."""
    return float(np.sqrt(np.mean((images[i].astype(np.float32) - images[j]) ** 2))) / 65535
