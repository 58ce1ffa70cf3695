"""What is measured on a GPU: shapes, and who takes part."""

from dataclasses import replace

import torch

from benchmarks.contenders import IMAGES as IMAGE_CONTENDERS
from benchmarks.contenders import SEQUENCES as SEQUENCE_CONTENDERS
from benchmarks.problem import Case, Contender, Problem
from benchmarks.rivals import Missing, Peers

# The stages of VM-DDPM at 128 x 128 with batch 16, the first two also with sampling (2, 2, 2, 2), those of VMamba-T at
# 224 x 224, and plain sequences.
IMAGES = [(16, 32, 32, 192), (16, 16, 16, 384), (16, 8, 8, 768), (16, 4, 4, 1536),
          (16, 64, 64, 192), (16, 32, 32, 384),
          (64, 56, 56, 192), (64, 28, 28, 384), (64, 14, 14, 768), (64, 7, 7, 1536)]  # fmt: skip
SEQUENCES = [(16, 0, 1024, 1536), (16, 0, 2048, 1536), (16, 0, 2047, 1536), (16, 0, 4096, 1536),
             (1, 0, 65536, 96), (64, 0, 16, 3072)]  # fmt: skip
TYPES = [(torch.bfloat16, 16), (torch.float32, 16), (torch.bfloat16, 1), (torch.float32, 1)]


def all_cases(tiny: bool) -> list[Case]:
    """The most telling first, should the time run out."""
    cases = [Case(*sizes, states, dtype) for dtype, states in TYPES for sizes in [*IMAGES, *SEQUENCES]]
    if tiny:
        cases = [replace(c, batch=2, height=min(c.height, 3), width=min(c.width, 7), channels=6) for c in cases]
    return list(dict.fromkeys(cases))


def contenders(case: Case, peers: Peers, device: str, backend: str, seed: int) -> dict[str, Contender]:
    problem = Problem.draw(case, device, seed)
    makers = IMAGE_CONTENDERS if case.height else SEQUENCE_CONTENDERS
    found = {}
    for name in ("ours", "ours shuffled", "ours channel last", "ours in Triton", "VMamba", "mamba_ssm",
                 "attention"):  # fmt: skip
        if name in makers:
            try:
                found[name] = makers[name](problem, backend, peers)
            except Missing:  # peers.missing has it
                continue
    return found
