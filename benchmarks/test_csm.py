"""A whole Cross-Scan Module with its projections. Its S6 is fused, composed of separate operators, composed with
mamba.py's scan, or replaced by attention."""

import torch
from torch.func import functional_call
from torch.nn import functional as F

import vmddpm_kernels as vk
from benchmarks.implementations import HEAD, mambapy_scan
from benchmarks.module_work import work_of
from benchmarks.problem import BOTH, FORWARD, ROUTES, Case, Implementation, Problem
from vmddpm.model import ModelConfig
from vmddpm.model.csm import CSM

# `channels` is the width of the module's input; S6 has twice as many channels
QUICK = [Case(1, 32, 32, 96, 16)]
CASES = {"quick": QUICK, "full": [*QUICK, Case(4, 64, 64, 96, 1), Case(1, 128, 128, 96, 16), Case(4, 8, 8, 384, 16)]}
DIRECTIONS = (FORWARD, BOTH)


class UnfusedCSM(CSM):
    """S6 as in VMamba's SS2D: four sequences in memory are projected one by one, scanned and merged."""

    scan = staticmethod(
        lambda u, delta, A, B, C, D, bias, softplus: vk.selective_scan(
            u, delta, A, B, C, D, delta_bias=bias, delta_softplus=softplus
        )
    )

    def s6(self, x, size):
        sequences = vk.cross_scan(x.transpose(1, 2).unflatten(2, size))                     # (B, 4, D, L)
        projected = torch.einsum("bkdl,kcd->bkcl", sequences, self.x_proj)                  # (B, 4, R + 2N, L)
        low_rank, B, C = projected.split([self.rank, self.states, self.states], dim=2)
        delta = torch.einsum("bkrl,kdr->bkdl", low_rank, self.dt_proj)                      # (B, 4, D, L)
        A, D, bias = -self.A_log.exp().flatten(0, 1), self.D.flatten(), self.dt_bias.flatten()
        y = self.scan(sequences.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, bias, True)  # (B, 4 D, L)
        return vk.cross_merge(y.unflatten(1, (ROUTES, -1)).unflatten(3, size)).transpose(1, 2)


class AttentionModule(CSM):
    """Self-attention over all pixels, with heads of 64 channels, instead of S6."""

    def _init_s6(self):
        for name in ("x_proj", "dt_proj", "dt_bias", "A_log", "D"):
            delattr(self, name)
        inner = self.norm_out.weight.shape[0]
        self.qkv = torch.nn.Linear(inner, 3 * inner, bias=False)

    def s6(self, x, _):
        query, key, value = self.qkv(x).unflatten(2, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)  # (B, D / 64, L, 64)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def module(case, kind, device):
    torch.manual_seed(0)
    config = ModelConfig(base_channels=case.channels, channel_multipliers=(1,), sampling=(1,), d_state=case.states)
    return kind(case.channels, config).to(device, memory_format=torch.channels_last)


def image(problem, t):  # (B, L, C) -> (B, C, H, W), channels last
    return t.transpose(1, 2).unflatten(2, (problem.case.height, problem.case.width))


def implementation(problem, kind, orders):
    """`orders` is the second argument of s6."""
    csm = module(problem.case, kind, problem.x.device)
    names, weights = zip(*csm.named_parameters())

    def run(x, *weights):
        return functional_call(csm, dict(zip(names, weights)), (x, orders))

    x = image(problem, problem.x).detach().requires_grad_()
    standard = None if kind is AttentionModule or orders is problem.shuffled_table else torch.Tensor.contiguous
    inputs = [x, *(w.detach().clone().requires_grad_() for w in weights)]  # clone keeps the convolution's channels last
    return Implementation(inputs, run, image(problem, problem.dy), standard)


def unfused(problem, backend, baselines):
    return implementation(problem, UnfusedCSM, (problem.case.height, problem.case.width))


def mambapy(problem, backend, baselines):
    kind = type("ParallelScanCSM", (UnfusedCSM,), {"scan": staticmethod(mambapy_scan(baselines))})
    return implementation(problem, kind, (problem.case.height, problem.case.width))


MODULES = {
    "ours": lambda problem, *_: implementation(problem, CSM, problem.table),
    "ours shuffled": lambda problem, *_: implementation(problem, CSM, problem.shuffled_table),
    "ours unfused": unfused,
    "mamba.py": mambapy,
    "attention": lambda problem, *_: implementation(problem, AttentionModule, None),
}
IMPLEMENTATIONS = tuple(MODULES)


def test_csm(harness, case, direction, implementation, device):
    def work(name):
        if not name.startswith("ours"):
            return None
        csm, problem = module(case, CSM, device), Problem.draw(case, device, 0)
        return work_of(csm, lambda: csm(image(problem, problem.x), problem.table), direction == BOTH)

    harness(MODULES, case, direction, implementation, work=work)
