"""Named orders in which a route visits the pixels of an image or the voxels of a volume.

The name of a route is `[curve-]axes[-reversed]`. `axes` has a letter for each axis, the outermost loop first: "hw"
visits an image row by row, "wh" column by column, "hwd" a volume (D, H, W) through all slices at each pixel. A capital
letter reverses that axis, and "-reversed" the whole route. A curve replaces the plain loops:

| curve | visits |
| --- | --- |
| `snake` | each line in the opposite direction of the previous one, so that each step goes to a neighbour |
| `hilbert` | the Hilbert curve through the enclosing cube of a power of two, skipping pixels outside the image |
| `zorder` | the Morton curve through the same cube: the interleaved bits of the coordinates |
| `zigzag` | the diagonals in alternating directions, as in JPEG; in a volume the planes d + h + w |
| `diagonal`, `antidiagonal` | the diagonals of an image, wrapped at its edges (RS-Mamba) |
| `window7` | windows of 7 x 7 pixels (LocalMamba) |
| `skip2`, `skip2@1` | the four grids of every second pixel (EfficientVMamba); `@1` starts with the second grid |
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LETTERS = "tdhw"  # time, depth, height, width: an image is "hw"
Size = Sequence[int]

_NAME = re.compile(r"(?:([a-z]+)([0-9]*)(?:@([0-9]+))?-)?([tdhwTDHW]{1,4})(-reversed)?")
_LARGEST_SIDE = 2**15  # largest window side or stride: its fourth power must fit in int64


def pixel_count(size: Size) -> int:
    """The number of pixels of an image. (torch.compile does not support math.prod of symbolic sizes.)"""
    pixels = 1
    for extent in size:
        pixels *= extent
    return pixels


class Route(NamedTuple):
    curve: str      # "" for plain loops
    side: int       # side of a window, or stride of a skip
    start: int      # first grid of a skip
    axes: str
    reversed: bool


def parse(name: str, axes: int) -> Route:
    """Parse the name of a route.

    Raises:
        ValueError: if the name is not valid for an image with that many axes.
    """
    letters = LETTERS[-axes:]
    match = _NAME.fullmatch(name)
    if match is None or (match[1] or "") not in ("", *CURVES):
        raise ValueError(
            f"scans has {name!r}, which is not a route: it must be [curve-]axes[-reversed], as {letters!r} or "
            f"'snake-{letters}-reversed', with one of the curves {', '.join(CURVES)}"
        )
    curve, side, start, loops = match[1] or "", match[2], match[3], match[4]
    if sorted(loops.lower()) != sorted(letters):
        raise ValueError(f"route {name!r} of scans must have each of the axes {', '.join(letters)} once")
    if len((side or "").lstrip("0")) > 5 or int(side or 0) > _LARGEST_SIDE:
        raise ValueError(f"route {name!r:.60} of scans must have a side of at most {_LARGEST_SIDE}")
    if (curve in _SIDED) != bool(side) or (side and int(side) == 0) or (start is not None and curve != "skip"):
        raise ValueError(
            f"route {name!r} of scans must have a side of at least 1 with window and skip alone, and @ with skip"
        )
    if curve in _FLAT and axes != 2:
        raise ValueError(f"route {name!r} of scans is for images with two axes, not {axes}")
    if start is not None and (len(start.lstrip("0")) > 20 or int(start.lstrip("0") or 0) >= int(side) ** axes):
        raise ValueError(f"route {name!r} of scans must start at one of its {int(side) ** axes} grids, numbered from 0")
    return Route(curve, int(side or 1), int(start or 0), loops, match[5] is not None)


def visits(size: Size, route: Route, device: torch.device) -> Tensor:
    """The pixels (row-major indices, int64 (L,)) in the order of the route, computed on `device` without synchronizing.

    Raises:
        ValueError: for a Hilbert curve through a cube of more than 2^63 pixels.
    """
    if route.curve == "hilbert" and max(_bits(size)) * len(size) > 63:
        raise ValueError(
            f"the Hilbert curve of scans over {tuple(size)} has steps beyond int64; shorten the longest side"
        )
    letters = LETTERS[-len(size) :]
    grid = torch.arange(pixel_count(size), device=device).view(tuple(size))
    grid = grid.permute([letters.index(axis) for axis in route.axes.lower()])
    grid = grid.flip([place for place, axis in enumerate(route.axes) if axis.isupper()])
    pixels = grid.flatten()
    if route.curve:
        pixels = pixels[CURVES[route.curve](grid.shape, route, device)]
    return pixels.flip(0) if route.reversed else pixels


def _places(size: Size, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """The row-major indices of a grid, (L,), and their coordinates on each axis."""
    places = torch.arange(pixel_count(size), device=device)
    return places, [places // pixel_count(size[axis + 1 :]) % size[axis] for axis in range(len(size))]


def _number(coordinates: Sequence[Tensor], size: Size) -> Tensor:
    """The row-major indices of these coordinates in a grid of this size."""
    number = torch.zeros_like(coordinates[0])
    for coordinate, extent in zip(coordinates, size):
        number = number * extent + coordinate
    return number


def _snake(size: Size, route: Route, device: torch.device) -> Tensor:
    places, coordinates = _places(size, device)
    turned = []
    for axis, coordinate in enumerate(coordinates):
        line = places // pixel_count(size[axis:])  # the number of earlier lines along this axis
        turned.append(torch.where(line % 2 == 0, coordinate, size[axis] - 1 - coordinate))
    return _number(turned, size)


def _bits(size: Size) -> list[int]:
    return [(extent - 1).bit_length() for extent in size]


def _zorder(size: Size, route: Route, device: torch.device) -> Tensor:
    places, coordinates = _places(size, device)
    key = torch.zeros_like(places)
    for bit in reversed(range(max(_bits(size)))):
        for coordinate, bits in zip(coordinates, _bits(size)):
            if bit < bits:
                key = key * 2 + (coordinate >> bit) % 2
    return key.argsort()


# John Skilling, Programming the Hilbert curve, AIP Conference Proceedings 707 (2004)
def _hilbert(size: Size, route: Route, device: torch.device) -> Tensor:
    places, coordinates = _places(size, device)
    bits = max(_bits(size))
    for bit in reversed(range(1, bits)):
        below = (1 << bit) - 1
        for axis in range(len(size)):
            first, other = coordinates[0], coordinates[axis]
            mirrored = (other >> bit) % 2 == 1  # this half of the cube is mirrored; the other one exchanges two axes
            exchanged = torch.where(mirrored, 0, (first ^ other) & below)
            coordinates[0] = first ^ torch.where(mirrored, below, exchanged)
            if axis:
                coordinates[axis] = other ^ exchanged
    for axis in range(1, len(size)):  # Gray code
        coordinates[axis] = coordinates[axis] ^ coordinates[axis - 1]
    turn = torch.zeros_like(places)
    for bit in reversed(range(1, bits)):
        turn = turn ^ (coordinates[-1] >> bit) % 2 * ((1 << bit) - 1)
    key = torch.zeros_like(places)
    for bit in reversed(range(bits)):
        for coordinate in coordinates:
            key = key * 2 + ((coordinate ^ turn) >> bit) % 2
    return key.argsort()


def _zigzag(size: Size, route: Route, device: torch.device) -> Tensor:
    places, coordinates = _places(size, device)
    plane = torch.stack(coordinates).sum(0)
    along = torch.where(plane % 2 == 1, places, -places)
    return (plane * (2 * len(places)) + along).argsort()


def _diagonal(size: Size, route: Route, device: torch.device) -> Tensor:
    _, (number, row) = _places((size[1], size[0]), device)
    return _number([row, (number + (row if route.curve == "diagonal" else -row)) % size[1]], size)


def _window(size: Size, route: Route, device: torch.device) -> Tensor:
    _, coordinates = _places(size, device)
    windows = _number([c // route.side for c in coordinates], [-(-extent // route.side) for extent in size])
    inside = _number([c % route.side for c in coordinates], [route.side] * len(size))
    return _number([windows, inside], [1, route.side ** len(size)]).argsort()


def _skip(size: Size, route: Route, device: torch.device) -> Tensor:
    places, coordinates = _places(size, device)
    grid = _number([c % route.side for c in coordinates], [route.side] * len(size)) - route.start
    return _number([grid % route.side ** len(size), places], [1, len(places)]).argsort()


CURVES: dict[str, Callable[[Size, Route, torch.device], Tensor]] = {
    "snake": _snake,
    "hilbert": _hilbert,
    "zorder": _zorder,
    "zigzag": _zigzag,
    "diagonal": _diagonal,
    "antidiagonal": _diagonal,
    "window": _window,
    "skip": _skip,
}
_SIDED = ("window", "skip")
_FLAT = ("diagonal", "antidiagonal")


def _both_ways(*names: str) -> tuple[str, ...]:
    return (*names, *(f"{name}-reversed" for name in names))


def _cross(axes: int) -> tuple[str, ...]:
    """VMamba's cross scan in any dimension: the axes in order and with the first swapped with each other, both ways."""
    letters = LETTERS[-axes:]
    exchanged = [letters[i] + letters[1:i] + letters[0] + letters[i + 1 :] for i in range(1, axes)]
    return _both_ways(letters, *exchanged)


# Sets of routes of published models, by the number of axes.
SETS: dict[str, dict[int, tuple[str, ...]]] = {
    **{f"cross{axes}d": {axes: _cross(axes)} for axes in range(1, len(LETTERS) + 1)},
    "unidi": {2: ("hw",) * 4},
    "bidi": {2: ("hw", "hw", "hw-reversed", "hw-reversed")},
    "rot90": {2: ("hw", "Wh", "HW", "wH")},
    "omnidirectional": {2: (*_both_ways("hw", "wh"), *_both_ways("diagonal-hw", "antidiagonal-hw"))},  # RS-Mamba
    "local": {2: (*_both_ways("hw", "wh"), *_both_ways("window2-hw", "window7-hw"))},  # LocalMamba's candidates
    "efficient": {2: ("skip2-hw", "skip2@1-wh", "skip2@1-hw", "skip2@3-wh")},  # EfficientVMamba
    **{  # the snake in 2-D is PlainMamba's
        curve: {
            2: _both_ways(f"{curve}-hw", f"{curve}-wh"),
            3: _both_ways(f"{curve}-dhw", f"{curve}-hdw", f"{curve}-whd"),
        }
        for curve in ("snake", "hilbert", "zorder")
    },
    "zigzag": {
        2: _both_ways("zigzag-hw", "zigzag-Hw"),
        3: _both_ways("zigzag-dhw", "zigzag-Dhw", "zigzag-dHw", "zigzag-dhW"),
    },
    "ss3d": {3: _both_ways("dhw", "hdw", "whd", "dwh")},  # MedSegMamba's eight
    "axes3d": {3: _both_ways("dhw", "dwh", "hdw", "hwd", "wdh", "whd")},  # all orders of the axes
    "tri-orientated": {3: ("dhw", "dhw-reversed", "hwd")},  # SegMamba
}
NUMBERED = ("cross2d", "unidi", "bidi", "rot90")  # by VMamba's number; 0 is the cross scan for any number of axes


def route_names(scans: int | str, axes: int = 2) -> tuple[str, ...]:
    """The names of the routes of a set, given by its name or number, or of a comma-separated list of routes.

    Args:
        scans: see `vmddpm_kernels.routes`.
        axes: number of axes of the image, 1 to 4.

    Raises:
        ValueError: if no such set or route exists for images with that many axes.

    Example:
        >>> route_names("tri-orientated", 3)
        ('dhw', 'dhw-reversed', 'hwd')
    """
    if isinstance(scans, bool) or not isinstance(scans, (int, str)) or (
        isinstance(scans, int) and scans not in range(len(NUMBERED))
    ):
        raise ValueError(f"scans must be 0-3, the name of a set or names of routes joined by commas, got {scans!r}")
    name = scans if isinstance(scans, str) else NUMBERED[scans] if scans else f"cross{axes}d"
    if name in SETS:
        if axes not in SETS[name]:
            fitting = [other for other, routes in SETS.items() if axes in routes]
            raise ValueError(
                f"scans {scans!r} is for images with {' or '.join(map(str, SETS[name]))} axes, not {axes}; "
                + (f"those with {axes} have {', '.join(fitting)}" if fitting else f"name a route: {LETTERS[-axes:]!r}")
            )
        return SETS[name][axes]
    names = tuple(part.strip() for part in name.split(","))
    if len(names) == 1 and names[0].isalnum() and not set(names[0].lower()) <= set(LETTERS):
        raise ValueError(f"scans must be 0-3, one of {sorted(SETS)} or names of routes joined by commas, got {scans!r}")
    for part in names:
        parse(part, axes)
    return names
