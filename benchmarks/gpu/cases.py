"""The cases measured on a GPU: shapes and implementations, the most informative first in case the time runs out."""

from dataclasses import replace

import torch

from benchmarks.baselines import Baselines
from benchmarks.harness import Makers
from benchmarks.implementations import IMAGES, SEQUENCES
from benchmarks.problem import Case

# Stages of VM-DDPM at 128 x 128 with batch 16 and of VMamba-T at 224 x 224 with batch 128, and a plain sequence.
SHAPES = [(16, 32, 32, 192), (4, 64, 64, 192), (128, 28, 28, 192), (128, 56, 56, 96),
          (16, 16, 16, 384), (128, 14, 14, 384), (16, 8, 8, 768), (16, 0, 2048, 1536)]  # fmt: skip
ONE_STATE = [(64, 56, 56, 192), (16, 32, 32, 192)]
AGAINST_BASELINES = [Case(*sizes, 16) for sizes in (*SHAPES[:4], SHAPES[-1])] + [Case(*ONE_STATE[0], 1)]
IN_TRITON = [Case(*SHAPES[0], 16), Case(*SHAPES[2], 16), Case(*ONE_STATE[0], 1)]


def of(dtype: torch.dtype, cases: list[Case]) -> list[Case]:
    return [replace(case, dtype=dtype) for case in cases]


ALONE = [Case(*sizes, 16) for sizes in SHAPES]
CASES = {
    "ours": of(torch.bfloat16, [*ALONE, *(Case(*sizes, 1) for sizes in ONE_STATE)]) + of(torch.float32, ALONE),
    "baselines": of(torch.bfloat16, AGAINST_BASELINES),
    "triton": of(torch.bfloat16, IN_TRITON),
}
IMPLEMENTATIONS = {"ours": ["ours"], "baselines": ["ours", "VMamba", "mamba_ssm"], "triton": ["ours", "ours in Triton"]}
# The cost of another visit order and of another layout, in one case each.
ONCE = {"ours shuffled": CASES["ours"][0], "ours channel last": CASES["ours"][len(SHAPES) - 1]}


def cases_of(group: str, tiny: bool) -> list[Case]:
    cases = CASES[group]
    if tiny:
        batch, height, width = (1, 1, 2) if group == "triton" else (2, 3, 7)  # Triton is interpreted
        sizes = [{"height": min(c.height, height), "width": min(c.width, width)} for c in cases]
        cases = [replace(c, batch=batch, channels=6, **size) for c, size in zip(cases, sizes)]
    return list(dict.fromkeys(cases))


def makers_of(group: str, case: Case, baselines: Baselines, device: str) -> Makers:
    """The implementations to measure, without those that are missing."""
    makers: Makers = dict(IMAGES if case.height else SEQUENCES)
    if device == "cpu":  # interpreted: a rehearsal
        makers["ours in Triton"] = lambda problem, _, baselines: makers["ours"](problem, "triton", baselines)
    once = [name for name, one in ONCE.items() if group == "ours" and (case == one or device == "cpu")]
    names = [*IMPLEMENTATIONS[group], *once]
    return {name: makers[name] for name in names if name in makers and name not in baselines.missing}
