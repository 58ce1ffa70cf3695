"""The training images of a table and its held-out real images."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset, Subset

from vmddpm.data import DataConfig, SliceDataset, from_volumes, held_out_images
from vmddpm.data.mni152 import mni152_template
from vmddpm.evaluation.images import Images


@dataclass(frozen=True)
class TableData:
    """The images of a table.

    Attributes:
        training: the systems are trained on these images and compared with them.
        held_out: real images that are not used in training, or None.
        description: text for the heading of a table.
    """

    training: Images
    held_out: Images | None
    description: str


class _Subset(Dataset[Tensor]):
    """Images in memory."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


def mni152(config: DataConfig) -> TableData:
    """Slices of the MNI152 T1 template (an average of 152 adult brains). Training slices are 2 mm apart, and the
    held-out slices are half-way between them, so both sets have the same spacing.

    The template is symmetric: sagittal slices come in pairs, and one of a pair could be held out. Choose other axes.
    """
    dataset = from_volumes([mni152_template(resolution=1)], config)
    kept = _Subset([dataset[i] for i in range(len(dataset))])
    training, held_out = range(0, len(kept), 2), range(1, len(kept), 2)
    return TableData(
        Subset(kept, training), Subset(kept, held_out),
        f"{len(training)} slices of the MNI152 T1 template (one averaged brain) at {config.size} x {config.size}; "
        f"the {len(held_out)} slices between them are held out",
    )  # fmt: skip


def of_folder(config: DataConfig, held_out: str | None, name: str) -> TableData:
    """The user's copy of one of the paper's data sets, at config.root, a folder or a store, and unseen images of its
    kind: those at `held_out`, or the test split of the store."""
    training = SliceDataset(config, progress=True)
    others = held_out_images(config, held_out)
    unseen = f"; {len(others)} images are held out" if others else ""
    size = f"{config.size} x {config.size}"
    return TableData(training, others, f"{len(training)} images of {name} at {size}, the given folder{unseen}")
