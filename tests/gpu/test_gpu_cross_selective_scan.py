"""cross_selective_scan, forward and every gradient: error at most twice that of PyTorch's own arithmetic."""

import pytest
import torch
from gpu_cases import (
    DIMS,
    LENGTHS,
    REHEARSAL,
    batch_and_repeats,
    check_accuracy,
    need_memory,
    operator,
    problem,
    random_table,
)

pytestmark = pytest.mark.gpu

FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
STATES = [1, 5] if REHEARSAL else [1, 4, 8, 16, 32, 64, 256]
ODD_STATES = [3] if REHEARSAL else [2, 3, 5, 7, 12, 17, 33, 100, 255]
OTHER_LENGTHS = [n for n in (1, 49, 64, 196) if n in LENGTHS]
DISCRETIZATIONS = ["mamba", "zoh"]


def check_cross(length, states, K, discretization, dtype, softplus=True):
    dim = DIMS[length]
    batch, repeats = batch_and_repeats(length, K, dim)
    problems = [problem(batch, K, length, dim, states, dtype, seed) for seed in range(repeats)]
    if not softplus:  # step sizes must be positive
        for tensors in problems:
            tensors[1], tensors[6] = tensors[1].abs() * 0.3, tensors[6].abs() * 0.3
    options = {"table": random_table(K, length), "discretization": discretization, "delta_softplus": softplus}
    check_accuracy(problems, lambda backend, *t: operator(*t, backend=backend, **options), dtype)


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize("length", LENGTHS)
def test_cross_selective_scan_float32(length, states, K, discretization):
    check_cross(length, states, K, discretization, FLOAT32)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT64])
@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("states", [n for n in (1, 16, 64) if n in STATES])
@pytest.mark.parametrize("length", OTHER_LENGTHS)
def test_cross_selective_scan_other_dtypes(length, states, discretization, dtype):
    check_cross(length, states, 4, discretization, dtype)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16, FLOAT64])
def test_without_softplus(dtype):
    check_cross(49, 8, 4, "mamba", dtype, softplus=False)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("states", ODD_STATES)
def test_any_number_of_states(states, dtype):
    check_cross(63, states, 4, "mamba", dtype)


@pytest.mark.parametrize("dim", [33] if REHEARSAL else [1, 2, 31, 32, 33, 64, 65, 127, 128, 129, 300])
def test_any_number_of_channels(dim):
    options = {"table": random_table(3, 50)}
    problems = [problem(6, 3, 50, dim, 6, FLOAT32, seed) for seed in range(max(1, 30 // dim))]
    check_accuracy(problems, lambda backend, *t: operator(*t, backend=backend, **options), FLOAT32)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize(
    ("batch", "K", "length", "dim", "states"),
    [(160, 2, 100, 224, 16), (160, 4, 196, 64, 16), (96, 4, 49, 129, 16), (136, 3, 130, 224, 1), (300, 1, 100, 100, 8)],
)
def test_batches_that_fill_the_device(batch, K, length, dim, states, dtype):
    """If whole sequences are enough work for the device, they are not divided."""
    need_memory(40)
    if REHEARSAL:
        batch, length, dim = 3, 20, 30
    options = {"table": random_table(K, length)}
    tensors = problem(batch, K, length, dim, states, dtype)
    check_accuracy([tensors], lambda backend, *t: operator(*t, backend=backend, **options), dtype)


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
def test_gradcheck_cross_selective_scan(discretization):
    tensors = [t.requires_grad_() for t in problem(1, 2, 5, 3, 2, FLOAT64)]
    options = {"table": random_table(2, 5), "discretization": discretization}
    assert torch.autograd.gradcheck(lambda *t: operator(*t, **options), tensors)
