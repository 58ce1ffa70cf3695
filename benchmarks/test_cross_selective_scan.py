"""The fused operator over an image against the pipeline of separate operators, our scan between VMamba's formulas in
plain PyTorch, attention and VMamba's kernels; "ours shuffled" over "ours" is the cost of a shuffled image."""

import torch

from benchmarks.implementations import IMAGES
from benchmarks.limits import Work
from benchmarks.problem import BOTH, FORWARD, Case

# The stages of VM-DDPM at 128 x 128 (expand 2, batch 4), a longer sequence, an odd one, half precision
QUICK = [
    *(Case(4, 32, 32, 192, states) for states in (16, 4, 1)),
    Case(4, 16, 16, 384, 16),
    Case(4, 64, 64, 96, 16),
    Case(4, 31, 33, 192, 16),
    Case(4, 32, 32, 192, 16, torch.bfloat16),
]
MORE = [
    *(Case(4, 64, 64, 96, states, dtype) for states in (1, 16) for dtype in (torch.bfloat16, torch.float16)),
    *(Case(1, 128, 128, 192, states) for states in (1, 4, 16)),
    *(Case(batch, 8, 8, 768, 16) for batch in (1, 16)),
    Case(1, 127, 129, 192, 16),
    Case(4, 32, 32, 192, 64),
]
CASES = {"quick": QUICK, "full": [*QUICK, *MORE]}
DIRECTIONS = (FORWARD, BOTH)
IMPLEMENTATIONS = tuple(IMAGES)


def test_cross_selective_scan(harness, case, direction, implementation):
    def work(name):
        return (Work.of_attention if name == "attention" else Work.of_scan)(case, direction)

    harness(IMAGES, case, direction, implementation, work=work)
