"""Slices of volumes, for image metrics."""

from typing import Literal

from torch import Tensor

from vmddpm.errors import InputError
from vmddpm.evaluation.images import Images, quantised

Axis = Literal["axial", "coronal", "sagittal"]
DIMENSION_OF_AXIS = {"axial": 1, "coronal": 2, "sagittal": 3}  # axis of a volume (C, D, H, W)


class VolumeSlices:
    """The slices of volumes along one axis, as `Images`, anterior or superior up. Constant slices, such as those beyond
    a head, are left out.

    Args:
        volumes: each float32 (C, D, H, W), all of one shape. Each is read once here, and again for its slices.
        axis: "axial", "coronal" or "sagittal".
        distinct: leave out repeated slices, which overlapping crops have in common.

    Raises:
        InputError: if no slice is left; also the errors of the volumes.

    Example:
        >>> slices = VolumeSlices(torch.rand(2, 1, 4, 6, 8), "coronal")
        >>> len(slices), slices[0].shape
        (12, torch.Size([1, 4, 8]))
    """

    def __init__(self, volumes: Images, axis: Axis, distinct: bool = False) -> None:
        self.volumes, self.axis = volumes, axis
        self.positions: list[tuple[int, int]] = []  # (volume, position) of each slice
        self._last: tuple[int, Tensor] | None = None
        seen: set[bytes] = set()
        for number in range(len(volumes)):
            for index, plane in enumerate(quantised(volumes[number]).unbind(DIMENSION_OF_AXIS[axis])):
                content = plane.contiguous().numpy().tobytes()
                if plane.min() < plane.max() and not (distinct and content in seen):
                    self.positions.append((number, index))
                    if distinct:
                        seen.add(content)
        if not self.positions:
            raise InputError(f"all {axis} slices of {len(volumes)} volumes are constant; look at the volumes")

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> Tensor:
        """float32 (C, height, width) in [-1, 1]. Raises IndexError, and the errors of the volumes."""
        number, index = self.positions[i]
        if self._last is None or self._last[0] != number:  # read a volume once for consecutive slices
            self._last = number, self.volumes[number]
        plane = self._last[1].select(DIMENSION_OF_AXIS[self.axis], index)
        return plane if self.axis == "axial" else plane.flip(1)
