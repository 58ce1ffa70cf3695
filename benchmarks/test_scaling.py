"""The cost of the fused operator over images and volumes grows linearly with the length of the sequence, and that of
attention quadratically, in seconds and in floating-point operations."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vmddpm_kernels.flops  # noqa: F401  counts of the operators' operations
from benchmarks.baselines import Missing
from benchmarks.implementations import HEAD, attention, fused
from benchmarks.limits import Work
from benchmarks.problem import FORWARD, Case, Problem
from benchmarks.scaling import curve_record

LINEAR, QUADRATIC = (0.9, 1.1), (1.7, 2.3)
LONGEST = {"cpu": 16, "cuda": 20}["cuda" if torch.cuda.is_available() else "cpu"]
LENGTHS = {"quick": range(8, LONGEST + 1), "full": range(8, LONGEST + 1)}  # powers of two
ATTENTION_LONGEST = {"quick": 1 << (LONGEST - 1), "full": 1 << LONGEST}
STATES = (1, 4, 16)


def image(power: int) -> Case:
    """2^power pixels, one head of attention."""
    return Case(1, 1 << power // 2, 1 << (power + 1) // 2, HEAD, max(STATES))


CASES = {profile: [image(power) for power in powers] for profile, powers in LENGTHS.items()}
VOLUMES = (8, 16, 32, 48, 64)
VOLUME_CHANNELS = 16
DIRECTIONS = (FORWARD,)
IMPLEMENTATIONS = (*(f"ours N={n}" for n in STATES), "attention")


def with_states(states):
    def make(problem, device, baselines):
        narrow = {name: getattr(problem, name)[..., :states] for name in "ABC"}
        return replace(fused(replace(problem, **narrow), device, baselines), standard=None)

    return make


def test_scaling(harness, case, direction, implementation, request):
    longest = ATTENTION_LONGEST[request.config.getoption("--profile")]

    def attention_up_to(problem, device, baselines):
        if problem.case.length > longest:
            raise Missing(f"more than {longest} steps take too long in this profile")
        return attention(problem, device, baselines)

    def work(name):
        if name == "attention":
            return Work.of_attention(case, direction)
        return Work.of_scan(replace(case, states=int(name.rpartition("=")[2])), direction)

    makers = {f"ours N={n}": with_states(n) for n in STATES} | {"attention": attention_up_to}
    harness(makers, case, direction, implementation, work=work)


@pytest.mark.parametrize("side", VOLUMES)
def test_volumes(harness, side, direction):
    """The operator over side^3 voxels, along six routes, in the same suite."""
    case = Case(1, side, side, VOLUME_CHANNELS, max(STATES), depth=side)
    harness({"ours 3-D": fused}, case, direction, "ours 3-D", work=lambda _: Work.of_scan(case, direction))


def check(curve):
    low, high = QUADRATIC if curve["implementation"] == "attention" else LINEAR
    assert low <= curve["slope"] <= high, curve


@pytest.mark.parametrize("who", ["ours", "attention"])
def test_flops(who, results, device, baselines):
    """Counted on fake tensors, which have no data."""
    make = attention if who == "attention" else fused
    curve = {}
    for case in map(image, range(8, 21, 2)):
        with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            make(Problem.draw(case, device, 0), device, baselines).call(FORWARD)
        curve[case.length] = counter.get_total_flops()
    results["scaling"].append(curve_record(who, "flops", curve))
    check(results["scaling"][-1])
