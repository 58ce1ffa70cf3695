"""nvcc's PTX of the CUDA kernels, and Triton's of its own, executed: the operators against float64 loops."""

from functools import partial

import pytest
import torch
from oracle import assert_as_accurate, relative_error
from ptx import parse
from ptx_cases import RESULTS, STATES, Case
from ptx_to_cpp import translate
from ptx_tools import require_nvcc
from test_scan_accuracy import run

import vmddpm_kernels as vk

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("architecture", [80, 90])
def test_every_cuda_kernel_is_understood(architecture):
    require_nvcc(architecture)
    import cuda_kernels

    found = cuda_kernels.kernels(architecture)
    entries = sum(cubin.ptx.read_text().count(".entry") for cubin in cuda_kernels.nvcc.build([architecture]))
    assert len(found) == entries > 0
    for kernel, file in found.values():
        assert "static void run" in translate(kernel, file)


# What the models run most: bfloat16 images along routes, in segments and whole.
SELECTION = {
    "segments": Case((1, 4, 37, 40, 16), torch.bfloat16, False, True, True, True, True, False, 132, "random:1", 1),
    "whole": Case((2, 2, 37, 128, 16), torch.bfloat16, False, True, True, True, True, False, 0, "reverse", 2),
}


@pytest.mark.parametrize("case", SELECTION)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_scan(case, backend, run_ptx, monkeypatch):
    one = SELECTION[case]
    monkeypatch.setenv("VMDDPM_EMULATION_ORDER", one.order)
    # With counters, as test_ptx_counts.py needs the same kernels: they are compiled once for both.
    options = {"mode": "count"} if backend == "cuda" else {}
    kernels = run_ptx(backend, 90, one.multiprocessors, **options)
    ours = run(one.tensors(), lambda *t: one.operator(backend, *t))
    exact = run([t.double() for t in one.tensors()], one.loop)
    for name, value, expected in zip(RESULTS, ours, exact):
        unit = torch.finfo(value.dtype if name == "last_state" else one.dtype).eps
        assert relative_error(value, expected) <= unit, name
    assert len({launched.name for launched in kernels.launched}) >= 2


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_cross_scan_and_merge(backend, run_ptx):
    kernels = run_ptx(backend, 90)
    check_cross_scan_and_merge(backend, torch.bfloat16, [(True, True), (False, False)])
    assert kernels.launched


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_cross_scan_and_merge_of_every_dtype(backend, architecture, dtype, run_ptx):
    run_ptx(backend, architecture)
    check_cross_scan_and_merge(backend, dtype, [(a, b) for a in (True, False) for b in (True, False)])


def check_cross_scan_and_merge(backend, dtype, layouts):
    """Small integers, so that every sum is exact."""
    for height, width in ((5, 9), (16, 24)):
        permutation = vk.patch_permutation(height, width, seed=1)
        for first, last in layouts:
            x = torch.randint(-50, 50, (2, 7, height, width) if first else (2, height, width, 7)).to(dtype)
            y = torch.randint(-50, 50, (2, 4, 7, height, width) if last else (2, height, width, 4, 7)).to(dtype)
            for function, tensor in ((vk.cross_scan, x), (vk.cross_merge, y)):
                ours = function(tensor, first, last, permutation=permutation, backend=backend)
                assert torch.equal(ours, function(tensor, first, last, permutation=permutation, backend="reference"))


# As many cases of each kind; 16 kinds and both architectures of each backend make more than 1,000.
CASES = {"cuda": 50, "triton": 20}


@pytest.mark.slow
@pytest.mark.parametrize("zoh", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_random_scans(backend, architecture, dtype, zoh, run_ptx, monkeypatch):
    """Outputs and gradients of many problems together, by the rule of accuracy: of one, a single sum that happens to
    cancel may decide. A wrong case among them is far beyond it."""
    states = (1, 2, 4, 5, 16, 33) if backend == "triton" else STATES
    cases = [Case.random(seed, dtype, zoh, states) for seed in range(CASES[backend])]
    results = {name: [] for name in ("ours", "reference", "exact")}
    for case in cases:
        monkeypatch.setenv("VMDDPM_EMULATION_ORDER", case.order)
        run_ptx(backend, architecture, case.multiprocessors)
        tensors = case.tensors()
        results["ours"].append(run(tensors, partial(case.operator, backend)))
        results["reference"].append(run(tensors, partial(case.operator, "reference")))
        results["exact"].append(run([t.double() for t in tensors], case.loop))
    for i, name in enumerate(RESULTS):
        ours, reference, exact = ([r[i] for r in results[k]] for k in results)
        worst = max(range(len(cases)), key=lambda n, ours=ours, exact=exact: relative_error(ours[n], exact[n]))
        together = [torch.cat([t.flatten() for t in some]) for some in (ours, reference, exact)]
        of = together[0].dtype if name == "last_state" else dtype
        assert_as_accurate(*together, of, f"{name}, most of all of {cases[worst]}")


def test_an_unknown_instruction_is_named():
    text = ".entry odd(\n.param .u64 odd_param_0\n)\n{\n.reg .b32 %r<2>;\nlop3.b32 %r0, %r1, %r1, %r1, 0x80;\nret;\n}\n"
    (kernel,) = parse(text)
    with pytest.raises(Exception, match=r"odd: line 6: the instruction `lop3.b32 %r0, .*` is not known"):
        translate(kernel, "odd")
