"""Cross scan and cross merge beside VMamba's and a plain copy of the four sequences."""

import torch

import vmddpm_kernels as vk
from benchmarks.contenders import leaves
from benchmarks.limits import Work
from benchmarks.problem import BOTH, FORWARD, ROUTES, Case, Contender
from benchmarks.rivals import Missing

QUICK = [Case(4, 64, 64, 96, 1), Case(4, 31, 33, 192, 1)]
CASES = {"quick": QUICK, "full": [*QUICK, Case(4, 64, 64, 96, 1, torch.bfloat16), Case(1, 256, 256, 96, 1)]}
DIRECTIONS = (FORWARD, BOTH)
CONTENDERS = ("ours", "reference", "VMamba", "copy")


def draw(case, device, seed):
    g = torch.Generator(device).manual_seed(seed)
    shape = (case.batch, ROUTES, case.channels, case.height, case.width)
    return torch.randn(shape, generator=g, device=device).to(case.dtype)        # (B, 4, C, H, W)


def same(t):
    return t


def scan_by(run):
    return lambda four, *_: Contender(leaves(four[:, 0]), run, four.flatten(3), same)


def merge_by(run):
    return lambda four, *_: Contender(leaves(four), run, four[:, 0].flatten(2), same)


def vmamba(index, by):
    def make(four, backend, peers):
        if peers.vmamba is None:
            raise Missing(peers.missing["VMamba"])
        theirs = peers.vmamba[index]
        return by(lambda x: theirs(x, True, True, False, 0))(four)

    return make


def copy(four, *_):
    return Contender(leaves(four), lambda x: x.clone(), four, None)


SCANS = {
    "ours": scan_by(vk.cross_scan),
    "reference": scan_by(lambda x: vk.cross_scan(x, backend="reference")),
    "VMamba": vmamba(0, scan_by),
    "copy": copy,
}
MERGES = {
    "ours": merge_by(vk.cross_merge),
    "reference": merge_by(lambda y: vk.cross_merge(y, backend="reference")),
    "VMamba": vmamba(2, merge_by),
    "copy": copy,
}


def moved(case, direction):
    """One image and four sequences, forward and once more backward."""
    tensors = (1 + ROUTES) * (2 if direction == BOTH else 1)
    return Work(tensors * case.batch * case.channels * case.length * case.dtype.itemsize)


def test_cross_scan(contest, case, direction, contender):
    contest(SCANS, case, direction, contender, draw=draw, work=lambda _: moved(case, direction))


def test_cross_merge(contest, case, direction, contender):
    contest(MERGES, case, direction, contender, draw=draw, work=lambda _: moved(case, direction))
