"""What may be wrong with a store: damage, a patient in both splits, images that are there twice."""

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
from vmddpm.data.patients import look_alikes, same_subjects
from vmddpm.data.remarks import Remark
from vmddpm.data.store import StoredSlice, read_store, remarks_of

# A difference hash (Krawetz, 2013) has 64 bits; of two hashes of unlike images about half differ.
NEAR_BITS = 4
# Hashes only nominate: two images are near duplicates if their pixels differ by less than this share of the range,
# as a root mean square.
NEAR_RMS = 0.02
ROWS = 1024


@dataclass
class Findings:
    """Pairs of places in the store.

    Attributes:
        damaged: images that are not what was written, with the reason.
        shared_patients: patients in both splits.
        look_alikes: files without a known patient, in both splits, whose names or folders look like one patient's.
        empty_splits: splits without an image, though one was asked for.
        remarks: what was left out of the store.
        exact: images with the very same pixels, of two patients; images of one value alone are left out.
        near: images of two patients that are almost the same.
        blank: number of images of one value.
    """

    damaged: list[str] = field(default_factory=list)
    shared_patients: list[str] = field(default_factory=list)
    look_alikes: list[str] = field(default_factory=list)
    empty_splits: list[str] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    exact: list[tuple[int, int]] = field(default_factory=list)
    near: list[tuple[int, int]] = field(default_factory=list)
    blank: int = 0


def check_store(folder: Path, progress: bool = True) -> tuple[Findings, list[StoredSlice]]:
    """Reads every image once, and those with like hashes again; memory holds a hash of each.

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
    groups = look_alikes(unknown)
    if len(groups) > 1:  # a single group may be pictures of many patients with one number each
        found.look_alikes = [f"{group[0]} ... {group[-1]}" for group in groups if len({unknown[n] for n in group}) > 1]
    split = {info.source: info.split for info in slices}
    for names in same_subjects({info.source: info.patient for info in slices}):
        if others := [name for name in names if split[name] != split[names[0]]]:
            found.look_alikes.append(f"{names[0]} ... {others[0]}")
    if record.get("test_share"):
        found.empty_splits = sorted({"train", "test"} - set(split.values()))

    hashes, contents, places = [], defaultdict(list), []
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
            places.append(i)
            hashes.append(difference_hash(image))
            contents[slices[i].crc32].append(i)

    def differ(i: int, j: int) -> bool:
        return slices[i].patient != slices[j].patient

    for group in contents.values():  # equal checksums nominate, pixels decide
        for a, i in enumerate(group):
            found.exact += [(i, j) for j in group[a + 1 :] if differ(i, j) and np.array_equal(images[i], images[j])]
    exact = set(found.exact)
    found.near = [
        (i, j) for i, j in like_pairs(np.array(hashes), places)
        if differ(i, j) and (i, j) not in exact and distance(images, i, j) < NEAR_RMS
    ]  # fmt: skip
    return found, slices


def difference_hash(image: np.ndarray) -> np.ndarray:
    """int8 (64,): the sign, 1 or -1, of the differences along the rows of the image (C, S, S) at 8 x 9, of a volume
    (C, D, S, S) those of the mean of its planes."""
    grey = torch.from_numpy(image.astype(np.float32)).flatten(0, -3).mean(0)[None, None]
    small = F.interpolate(grey, (8, 9), mode="bilinear", antialias=True)[0, 0]
    return torch.where(small[:, 1:] > small[:, :-1], 1, -1).flatten().to(torch.int8).numpy()


def like_pairs(hashes: np.ndarray, places: list[int]) -> Iterator[tuple[int, int]]:
    """Places i < j whose hashes (N, 64) differ in at most NEAR_BITS bits, all pairs compared, some rows at a time."""
    signs = torch.from_numpy(hashes.reshape(-1, 64)).float()
    for first in range(0, len(signs), ROWS):
        agreement = signs[first : first + ROWS] @ signs[first:].T  # 64 - 2 (bits that differ)
        for a, b in (agreement >= 64 - 2 * NEAR_BITS).nonzero().tolist():
            if a < b:
                yield places[first + a], places[first + b]


def distance(images: ImageFile, i: int, j: int) -> float:
    """Root mean square of the difference of two images, as a share of the range."""
    return float(np.sqrt(np.mean((images[i].astype(np.float32) - images[j]) ** 2))) / 65535
