"""Checksums of a run's images: a run refuses to continue on other images, even if there are as many."""

import zlib

import torch
from torch import Tensor

from vmddpm.data import SliceDataset
from vmddpm.data.conditioned import ConditionedImages
from vmddpm.evaluation.images import Images


def checksums(images: Images) -> Tensor:
    """int64 (n,): a CRC-32 of each image, in order. A store has them in its manifest; all other images are read.

    Raises:
        DataError: if an image cannot be read.
    """
    if isinstance(images, (SliceDataset, ConditionedImages)):
        return torch.from_numpy(images.checksums())
    return torch.tensor([zlib.crc32(images[i].numpy().tobytes()) for i in range(len(images))], dtype=torch.int64)


def difference(images: Images, now: Tensor, before: Tensor) -> str | None:
    """A description of how images differ from those of a run; None if they do not.

    Args:
        now: `checksums` of the images.
        before: checksums of the run's images.
    """
    differences = []
    if len(now) != len(before):
        differences.append(f"the data set has {len(now)} images, but the run began with {len(before)}")
    both = min(len(now), len(before))
    others = (now[:both] != before[:both]).nonzero().flatten().tolist()
    if others:
        more = f", and {len(others) - 1} more do" if len(others) > 1 else ""
        condition = ", or its condition does" if isinstance(images, ConditionedImages) else ""
        first = f"image {others[0]}{_source(images, others[0])}"
        differences.append(f"{first} differs from the one the run began with{condition}{more}")
    return "; ".join(differences) or None


def _source(images: Images, i: int) -> str:
    if not isinstance(images, (SliceDataset, ConditionedImages)):
        return ""
    info = images.slices[i]
    return f" ({info.path}, {info.axis} {info.index}, frame {info.frame})"
