"""The assumptions about GPUs that predictions use. Nothing here was measured by this project.
`python -m benchmarks.gpu.calibrate` writes measured values from a run on a GPU to measured.json beside this file, and
these then replace the assumptions, as do those of `predict --assumptions FILE.json`.

Limits of a multiprocessor are from the CUDA C++ Programming Guide (technical specifications by compute capability);
numbers of multiprocessors, clock and bandwidth are from data sheets. The share of its issue slots that a scheduler uses
depends on the number of warps it can choose from; these shares are estimates for code that waits for shared memory and
for chains of FMA and EX2."""

import json
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

SCHEDULERS = 4               # of a multiprocessor
REGISTERS = 65536            # of a multiprocessor
REGISTER_UNIT = 256          # a warp gets whole units
SHARED_UNIT = 128
SHARED_OF_A_BLOCK = 1024     # bytes that the system reserves


@dataclass(frozen=True)
class Gpu:
    name: str
    architecture: int
    multiprocessors: int
    clock_ghz: float
    bytes_per_second: float
    warps: int               # of a multiprocessor, at most
    blocks: int              # of a multiprocessor, at most
    shared_bytes: int        # of a multiprocessor
    shared_bytes_of_block: int


@dataclass(frozen=True)
class Assumptions:
    gpus: dict[int, Gpu]
    # The share of its issue slots that a scheduler uses, by its number of resident warps.
    issue_efficiency: tuple[tuple[float, float], ...]
    exp2_cycles: float       # cycles of a scheduler for the EX2 (or other MUFU) of one warp
    memory_efficiency: float
    launch_microseconds: float

    def efficiency(self, warps: float) -> float:
        """The issue efficiency, interpolated linearly between the points, 0 at 0 warps."""
        points = [(0.0, 0.0), *self.issue_efficiency]
        for (x0, y0), (x1, y1) in pairwise(points):
            if warps <= x1:
                return y0 + (y1 - y0) * (warps - x0) / (x1 - x0)
        return points[-1][1]


_KIB = 1024
ASSUMED = Assumptions(
    gpus={
        gpu.architecture: gpu
        for gpu in (
            Gpu("A100", 80, 108, 1.41, 1.9e12, 64, 32, 164 * _KIB, 163 * _KIB),
            Gpu("RTX 3090", 86, 82, 1.70, 0.936e12, 48, 16, 100 * _KIB, 99 * _KIB),
            Gpu("RTX 4090", 89, 128, 2.52, 1.0e12, 48, 24, 100 * _KIB, 99 * _KIB),
            Gpu("H200", 90, 132, 1.85, 4.8e12, 64, 32, 228 * _KIB, 227 * _KIB),
            Gpu("B200", 100, 148, 1.85, 8.0e12, 64, 32, 228 * _KIB, 227 * _KIB),
        )
    },
    issue_efficiency=((1, 0.27), (2, 0.45), (3, 0.57), (4, 0.65), (6, 0.74), (8, 0.78), (16, 0.85)),
    exp2_cycles=8.0,
    memory_efficiency=0.8,
    launch_microseconds=2.5,
)


MEASURED = Path(__file__).with_name("measured.json")


def load(path: Path | None = None) -> Assumptions:
    """ASSUMED with values replaced by those of a JSON file, by default of MEASURED if that exists. Its keys are fields
    of `Assumptions`; `gpus` has fields of `Gpu` by architecture, and `from` is the origin of the values. Raises
    ValueError for an unknown key."""
    if path is None:
        if not MEASURED.exists():
            return ASSUMED
        path = MEASURED
    given: dict[str, Any] = json.loads(path.read_text())
    given.pop("from", None)
    gpus = dict(ASSUMED.gpus)
    for architecture, changes in given.pop("gpus", {}).items():
        _check_names(changes, Gpu, path)
        if int(architecture) not in gpus:
            raise ValueError(f"{path}: no architecture {architecture}: there are {', '.join(map(str, gpus))}")
        gpus[int(architecture)] = replace(gpus[int(architecture)], **changes)
    _check_names(given, Assumptions, path)
    if "issue_efficiency" in given:
        given["issue_efficiency"] = tuple((float(w), float(e)) for w, e in given["issue_efficiency"])
    return replace(ASSUMED, gpus=gpus, **given)


def _check_names(given: dict[str, Any], of: Any, path: Path) -> None:
    known = {f.name for f in fields(of)}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{path}: unknown: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
