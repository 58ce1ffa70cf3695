"""Memory traffic of cross scan and cross merge in 32-byte sectors, where part of a sector costs as much as the whole:
at most 1.1 times the minimum, which is the image once and the sequences once.

CUDA kernels are counted by warp, as on a GPU (tests/cuda_emulation/counts.h), and Triton kernels by program, because
the compiler decides the work of a warp."""

import itertools
import json

import numpy as np
import pytest
import torch
from emulated import EMPTY, FILLED, use_emulation

import vmddpm_kernels as vk

MOST = 1.1
SHAPES = [(96, 64, 64), (192, 31, 33), (96, 32, 32), (384, 16, 16), (96, 56, 56), (192, 14, 14), (384, 7, 7)]
LAYOUTS = list(itertools.product([True, False], repeat=2))
DTYPES = [torch.float32, torch.bfloat16]


def problem(channels, height, width, layouts, dtype):
    x = torch.zeros((1, channels, height, width) if layouts[0] else (1, height, width, channels), dtype=dtype)
    y = torch.zeros((1, 4, channels, height, width) if layouts[1] else (1, height, width, 4, channels), dtype=dtype)
    return (vk.cross_scan, x), (vk.cross_merge, y)


def least(channels, height, width, dtype):
    return 5 * channels * height * width * dtype.itemsize / 32


def names(layouts):
    return " to ".join("channel first" if first else "channel last" for first in layouts)


@pytest.mark.parametrize("multiprocessors", [FILLED, EMPTY], ids=["filled", "empty"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cuda(shape, multiprocessors, monkeypatch, emulated_native, tmp_path):
    """On a GPU filled by the work, as by a large batch, and on one that is not. Shared memory needs at most four times
    the passes of accesses without bank conflicts."""
    use_emulation(monkeypatch, emulated_native, multiprocessors)
    file = tmp_path / "counts"
    monkeypatch.setenv("VMDDPM_EMULATION_COUNTS", str(file))
    for dtype, layouts in itertools.product(DTYPES, LAYOUTS):
        for function, tensor in problem(*shape, layouts, dtype):
            function(tensor, *layouts, backend="cuda")
            counts = json.loads(file.read_text().splitlines()[-1])
            moved = (counts["read_sectors"] + counts["write_sectors"]) / least(*shape, dtype)
            passes = [
                counts[f"{kind}_shared_passes"] / max(1, counts[f"{kind}_shared_least"]) for kind in ("read", "write")
            ]
            print(
                f"{counts['kernel']:18} {dtype!s:14} {names(layouts):30} {moved:6.3f} of the least, "
                f"bank passes {passes[0]:.2f} reading, {passes[1]:.2f} writing"
            )
            assert moved <= MOST
            assert max(passes) <= 4


class Sectors:
    """Counts the sectors that programs access in Triton's interpreter."""

    def __init__(self, monkeypatch):
        from triton.runtime import interpreter

        self.count = 0
        builder = type(interpreter.interpreter_builder)
        for name, mask_at in (("create_masked_load", 1), ("create_masked_store", 2)):
            original = getattr(builder, name)

            def counted(of, pointers, *rest, original=original, mask_at=mask_at):
                wanted = pointers.data[rest[mask_at - 1].data.astype(bool)]
                self.count += np.unique(wanted.astype(np.uint64) // 32).size
                return original(of, pointers, *rest)

            monkeypatch.setattr(builder, name, counted)


# Triton keeps no tile large enough for whole images of sectors of channels here, and cuts sectors.
CUT = (96, 56, 56), torch.bfloat16, (False, True)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        pytest.param(shape, channels, id=str(shape), marks=[] if quick else pytest.mark.slow)
        for shape, channels, quick in zip(SHAPES, (32, 48, 96, 96, 32, 96, 96), (0, 0, 0, 0, 0, 1, 1))
    ],
)
def test_triton(shape, channels, monkeypatch):
    """Fewer channels, because a program takes milliseconds; every program has its full number of them."""
    from vmddpm_kernels.backends.triton import cross_scan

    monkeypatch.setattr(cross_scan, "INTERPRETED", False)  # results have the same dtype as on a GPU
    sectors = Sectors(monkeypatch)
    for dtype, layouts in itertools.product(DTYPES, LAYOUTS):
        for function, tensor in problem(channels, *shape[1:], layouts, dtype):
            sectors.count = 0
            function(tensor, *layouts, backend="triton")
            moved = sectors.count / least(channels, *shape[1:], dtype)
            print(f"{function.__name__:18} {dtype!s:14} {names(layouts):30} {moved:6.3f} of the least")
            assert moved <= (1.35 if (shape, dtype, layouts) == CUT else MOST)
