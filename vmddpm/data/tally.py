"""Prepares and counts the planes of one file, so that none is dropped silently."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from vmddpm.data.config import DataConfig
from vmddpm.data.remarks import Remark
from vmddpm.data.slicing import Plane, foreground_share
from vmddpm.data.transforms import prepare


class Tally:
    """Prepares the planes of one file and counts those kept, those left out and the notes on them.

    Args:
        source: the file's name in remarks.

    Attributes:
        seen: number of planes so far.
    """

    def __init__(self, source: str, config: DataConfig) -> None:
        self.source, self.config, self.seen = source, config, 0
        self._dark = 0
        self._notes: dict[str, int] = defaultdict(int)

    def kept(self, planes: Iterable[Plane]) -> Iterator[tuple[Plane, np.ndarray]]:
        """The planes with enough foreground, each with its float32 image of `config.shape`."""
        for plane in planes:
            image = prepare(plane.pixels, plane.black, plane.white, self.config, plane.spacing)
            self.seen += 1
            for note in filter(None, (plane.note, self._colour_note(plane.pixels))):
                self._notes[note] += 1
            if foreground_share(image) >= self.config.min_foreground:
                yield plane, image
            else:
                self._dark += 1

    def _colour_note(self, pixels: np.ndarray) -> str:
        may_be = self.config.spatial_dims == 2 and pixels.ndim == 3 and self.config.channels == 1
        coloured = may_be and np.ptp(pixels, axis=2).any()
        return "colour converted to grey; channels 3 keeps it" if coloured else ""

    def remarks(self) -> list[Remark]:
        found = [Remark(self.source, "note", note, count) for note, count in self._notes.items()]
        if self._dark:
            share = f"{100 * self.config.min_foreground:g} %"
            reason = f"less than {share} of their pixels above the background; min_foreground 0 keeps them"
            found.append(Remark(self.source, "foreground", reason, self._dark))
        return found
