"""How the CUDA backend cuts problems: real ones fill a large GPU, and what is cut covers everything."""

import pytest

from vmddpm_kernels.scan_inputs import ScanOptions, ScanSizes

H200 = (132, 227 * 1024)
WARPS_TO_FILL = 132 * 5  # more than one for each of a multiprocessor's four schedulers


def cut(native, batch, K, dim, length, states, backward, *, summed, wide=False, zoh=False, limits=H200):
    sizes = ScanSizes(batch, K, length, dim, states, wide, summed)
    return native.cuda.scan_plan(sizes, ScanOptions(zoh=zoh), limits, backward)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("states", [1, 16])
@pytest.mark.parametrize(
    ("batch", "K", "dim", "length"),
    [(1, 1, 96, 65_536), (1, 4, 96, 65_536), (16, 4, 192, 1024), (64, 1, 3072, 16), (16, 1, 1536, 2048)],
)
def test_fills_the_machine(emulated_native, batch, K, dim, length, states, backward):
    plan = cut(emulated_native, batch, K, dim, length, states, backward, summed=K > 1)
    # Blocks of a route each, or of each partial image; a warp of the backward holds two slices or tiles.
    blocks = batch * (plan.images or K) * plan.segments * plan.groups
    warps = blocks * plan.tiles * plan.slices // (2 if backward else 1)
    assert warps >= WARPS_TO_FILL
    assert plan.groups * plan.tiles * 32 >= dim
    assert plan.passes * plan.slices * plan.states_per_thread >= states


@pytest.mark.parametrize("shared_bytes", [99 * 1024, 163 * 1024, 227 * 1024])
@pytest.mark.parametrize(("wide", "zoh"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("states", [1, 2, 3, 16, 256])
def test_fits_every_gpu(emulated_native, states, wide, zoh, shared_bytes):
    for backward in (False, True):
        limits = (108, shared_bytes)
        plan = cut(
            emulated_native, 8, 4, 768, 512, states, backward, summed=True, wide=wide, zoh=zoh, limits=limits
        )
        assert plan.passes * plan.slices * plan.states_per_thread >= states
