"""Images with their conditions: the model's conditioning inputs for each image."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from vmddpm.data.conditions import ConditionConfig
from vmddpm.data.config import DataConfig
from vmddpm.data.dataset import SliceDataset
from vmddpm.data.labels import LabelReader, open_labels
from vmddpm.data.pairs import condition_data, pair, refuse_stores
from vmddpm.data.remarks import Remark
from vmddpm.data.slicing import SliceInfo


class ConditionedImages(Dataset[Tensor]):
    """The images of `images`, each with its condition.

    Attributes:
        labels: float32 (n, K), as given; K is 0 without labels.
        condition_images: the paired image of each image, in the order of `images`; None if there are none.

    Args:
        images: the images.
        classes: names of the classes; empty without labels.
        labels: float32 (n, K), 1 for each class of an image.
        condition_images: images of the same size to pair with, masks or another modality; None for none.
        pair_indices: index in `condition_images` of each image's pair.

    Example:
        >>> images = conditioned(DataConfig("lungs"), ConditionConfig(labels="folder"))  # doctest: +SKIP
        >>> images.condition(0)["labels"]  # doctest: +SKIP
        tensor([0., 1.])
    """

    def __init__(
        self, images: SliceDataset, classes: tuple[str, ...] = (), labels: np.ndarray | None = None,
        condition_images: SliceDataset | None = None, pair_indices: list[int] | None = None,
    ) -> None:  # fmt: skip
        self.images, self.classes, self._pair_indices = images, classes, pair_indices or []
        self._condition_dataset = condition_images
        self.condition_images = None if condition_images is None else Subset(condition_images, self._pair_indices)
        self.labels = torch.zeros(len(images), 0) if labels is None else torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        """float32 (channels, size, size) in [-1, 1], as in `SliceDataset`."""
        return self.images[i]

    def condition(self, i: int) -> dict[str, Tensor]:
        """The condition of image i, by the model's argument names: "labels" (K,) and "condition_image"
        (image_channels, size, size) in [-1, 1], each only if present."""
        found = {"labels": self.labels[i]} if self.classes else {}
        return found if self.condition_images is None else {**found, "condition_image": self.condition_images[i]}

    def counts(self) -> dict[str, int]:
        """Number of images in each class."""
        return dict(zip(self.classes, map(int, self.labels.sum(0).tolist())))

    @property
    def slices(self) -> list[SliceInfo]:
        return self.images.slices

    @property
    def remarks(self) -> list[Remark]:
        return self.images.remarks

    @property
    def seen(self) -> int:
        return self.images.seen

    def checksums(self) -> np.ndarray:
        """int64 (n,): CRC-32 of each image's bytes, as in `SliceDataset`, its classes and its paired image."""
        found = self.images.checksums()
        condition_checksums = None if self._condition_dataset is None else self._condition_dataset.checksums()
        for i in range(len(found)):
            content = self.labels[i].numpy().tobytes()
            if condition_checksums is not None:
                content += int(condition_checksums[self._pair_indices[i]]).to_bytes(4, "little")
            found[i] = zlib.crc32(content, int(found[i]))
        return found


class ConditionReader:
    """Reads the conditions of images. The constructor runs every check that needs no decoded image.

    Args:
        config: the conditions.
        data: the images.

    Raises:
        DataError: as `labels.open_labels` and `pairs.refuse_stores`.
    """

    def __init__(self, config: ConditionConfig, data: DataConfig) -> None:
        self.config, self.data = config, data
        self._labels: LabelReader | None = open_labels(config, data)
        if config.image is not None:
            refuse_stores(config, data)

    def read(
        self, images: SliceDataset, classes: tuple[str, ...] = (), progress: bool = False
    ) -> ConditionedImages:
        """The images with their conditions.

        Args:
            classes: names of the classes if they are known; by default those found in the labels.
            progress: show a bar while the paired images are decoded.

        Raises:
            DataError: as `labels.LabelReader.read` and `pairs.pair`.
        """
        given: dict[str, Any] = {}
        if self._labels is not None:
            given["classes"], given["labels"] = self._labels.read([info.path for info in images.slices], classes)
        if self.config.image is not None:
            given["condition_images"] = SliceDataset(condition_data(self.config, self.data), progress=progress)
            given["pair_indices"] = pair(images, given["condition_images"])
        return ConditionedImages(images, **given)


def conditioned(data: DataConfig, config: ConditionConfig, progress: bool = False) -> ConditionedImages:
    """The images of `data` with the conditions of `config`. Raises DataError."""
    reader = ConditionReader(config, data)
    return reader.read(SliceDataset(data, progress=progress), progress=progress)


def condition_of(images: object, i: int) -> Mapping[str, Tensor]:
    """The condition of image i; empty for images without conditions."""
    return images.condition(i) if isinstance(images, ConditionedImages) else {}
