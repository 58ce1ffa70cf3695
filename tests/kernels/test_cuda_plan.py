"""The CUDA backend's division of problems: real ones fill a large GPU, and the parts cover everything."""

import pytest

from vmddpm_kernels.scan_inputs import ScanOptions, ScanSizes

H200 = (132, 227 * 1024)
WARPS_TO_FILL = 132 * 5  # a multiprocessor has four schedulers; one warp more than that


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
    # A warp of the backward holds two slices or tiles.
    blocks = batch * plan.walks * plan.segments * plan.groups
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


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("batch", "dim", "length", "states", "limits"),
    [(128, 192, 784, 16, H200), (256, 192, 1024, 16, H200), (5, 5, 70, 6, (0, H200[1])), (9, 5, 100, 1, (0, H200[1]))],
)
def test_workspaces_are_of_a_part_of_a_large_batch(emulated_native, batch, dim, length, states, limits, backward):
    plan = cut(emulated_native, batch, 4, dim, length, states, backward, summed=True, limits=limits)
    assert 1 <= plan.part < batch
    assert plan.segments == 1
    if limits is H200:  # float32 bytes per (pixel, channel) of the whole batch
        partial_matrices = 2 * plan.matrices * 4 * states / dim if backward else 0
        workspace = 4 * (plan.images + partial_matrices) * plan.part / batch
        assert workspace <= (3 if backward else 4)


def test_a_small_batch_is_one_part(emulated_native):
    for backward in (False, True):
        plan = cut(emulated_native, 16, 4, 192, 1024, 16, backward, summed=True)
        assert plan.part == 16
        assert plan.images == 2
        assert plan.matrices == backward
