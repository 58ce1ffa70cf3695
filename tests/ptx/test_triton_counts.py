"""Instructions executed by Triton's scans: whole launches with the sum over routes, for every Triton version."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from versions import VERSIONS

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.count import figures
from benchmarks.gpu.kernel_counts import DIRECTIONS, Shape, counted

# Instructions of a warp per (step, state), at most, forward with checkpoints and backward.
BUDGET = {"16,4,192,64,16": (14, 48), "64,4,192,64,1": (90, 270)}
PINNED = version("triton")


@pytest.mark.parametrize("shape", BUDGET)
@pytest.mark.parametrize("triton", [v if v == PINNED else pytest.param(v, marks=pytest.mark.slow) for v in VERSIONS])
def test_the_whole_cost_is_within_budget(triton, shape):
    one = Shape.parse(shape)
    launches = counted(one, "bfloat16", "triton", most_blocks=4, triton=triton)
    for direction, most in zip(DIRECTIONS, BUDGET[shape]):
        found = figures(one, [launch for launch in launches if launch.direction == direction])
        assert found["all"] <= most, direction
        # A channel's state is in one lane: only the sums for dB and dC use shuffles, and nothing uses shared memory.
        exchanged = sum(found[heading] for heading in ("LDS", "STS", "BAR"))
        assert exchanged < 0.1
        assert (found["SHFL"] == 0) == (direction == "forward")
