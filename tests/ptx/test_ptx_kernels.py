"""Operators executed from nvcc's PTX of the CUDA kernels and from Triton's PTX, against float64 loops."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from oracle import assert_as_accurate, relative_error
from ptx import parse
from ptx_cases import CROSS_SCANS, FLOATS, SCANS, STATES, Case, CrossCase
from ptx_steps import ConvCase, UpdateCase
from ptx_to_cpp import translate
from ptx_tools import require_nvcc
from versions import VERSIONS

import vmddpm_kernels
from vmddpm_kernels.backends.triton import plan as triton_plan


@pytest.mark.parametrize("architecture", [80, 90])
def test_every_cuda_kernel_is_understood(architecture):
    require_nvcc(architecture)
    import cuda_kernels

    found = cuda_kernels.kernels(architecture)
    entries = sum(cubin.ptx.read_text().count(".entry") for cubin in cuda_kernels.nvcc.build([architecture]))
    assert len(found) == entries > 0
    for kernel, file in found.values():
        assert "static void run" in translate(kernel, file)


# The models' most frequent case: bfloat16 images along routes, in segments and whole.
KIND = {
    "dtype": torch.bfloat16, "zoh": False, "softplus": True, "summed": True, "table": True, "channel_last": True,
    "offsets": (0, 0, 0, 0),
}  # fmt: skip
SELECTION = {
    "segments": Case((1, 4, 37, 40, 16), **KIND, multiprocessors=132, order="random:1", seed=1),
    "whole": Case((2, 2, 37, 128, 16), **KIND, multiprocessors=0, order="reverse", seed=2),
}


@pytest.mark.parametrize("case", SELECTION)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_scan(case, backend, run_ptx, monkeypatch):
    # With counters, because test_ptx_counts.py needs them; so kernels are compiled once for both.
    check_scan(case, backend, run_ptx, monkeypatch, **({"mode": "count"} if backend == "cuda" else {}))


@pytest.mark.slow
@pytest.mark.parametrize("case", SELECTION)
@pytest.mark.parametrize("triton", [v for v in VERSIONS if v != version("triton")])
def test_scan_by_another_triton(case, triton, run_ptx, monkeypatch):
    check_scan(case, "triton", run_ptx, monkeypatch, triton=triton)


def check_scan(case, backend, run_ptx, monkeypatch, **options):
    one = SELECTION[case]
    monkeypatch.setenv("VMDDPM_EMULATION_ORDER", one.order)
    if one.multiprocessors == 0:  # in Triton's plan, a program for all routes
        monkeypatch.setattr(triton_plan, "plan", lambda sizes, *options, original=triton_plan.plan: (
            original(sizes._replace(batch=9999), *options)
        ))  # fmt: skip
    kernels = run_ptx(backend, 90, one.multiprocessors, **options)
    for name, value, expected in zip(one.names(), one.compute(backend), one.exact()):
        assert relative_error(value, expected) <= torch.finfo(value.dtype).eps, name
    assert len({launched.name for launched in kernels.launched}) >= 2


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("table", [True, False])
def test_cross_scan(backend, first, table, run_ptx):
    sizes, gpu = (2, 4, 7, 5, 9), (132, 227 * 1024)
    case = CrossCase(sizes, torch.bfloat16, first, first, False, 0, table, ("dense", "dense"), *gpu, "reverse", 1)
    kernels = run_ptx(backend, 90)
    for ours, exact in zip(case.compute(backend), case.exact()):
        assert torch.equal(ours, exact)
    assert kernels.launched


@pytest.mark.parametrize("kind", [ConvCase, UpdateCase])
def test_steps(kind, run_ptx):
    """A convolution with all options, in partial tiles; one step of 16 states."""
    case = next(c for c in kind.all(torch.bfloat16) if c.optional and getattr(c, "taps", 4) == 4 and c.seed % 6 == 2)
    kernels = run_ptx("triton", 90)
    for name, value, expected in zip(case.names(), case.compute("triton"), case.exact(), strict=True):
        assert relative_error(value, expected) <= torch.finfo(value.dtype).eps, name
    assert kernels.launched


def scans(backend, dtype, zoh):
    """The cases of the nightly run."""
    states = TRITON_STATES if backend == "triton" else STATES
    chosen = Case.chosen(dtype, zoh) if backend == "cuda" else []
    return [*chosen, *(Case.random(seed, dtype, zoh, states) for seed in range(SCANS[backend]))]


def cross_scans(backend, dtype):
    chosen = CrossCase.chosen(dtype) if backend == "cuda" else []
    return [*chosen, *(CrossCase.random(seed, dtype) for seed in range(CROSS_SCANS[backend]))]


TRITON_STATES = (1, 2, 4, 5, 16, 33)
TRITON_KERNELS = Path(vmddpm_kernels.__file__).parent / "backends" / "triton"


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_the_cases_launch_every_kernel(backend, run_ptx):
    """Launches are recorded and not run."""
    launched = set()
    for dtype in FLOATS:
        for case in [*scans(backend, dtype, False), *scans(backend, dtype, True), *cross_scans(backend, dtype)]:
            kernels = run_ptx(backend, 90, case.multiprocessors, case.shared_bytes, mode="record")
            case.compute(backend)
            launched |= {one.name for one in kernels.launched}
        if backend == "triton":
            for case in [*ConvCase.all(dtype), *UpdateCase.all(dtype)]:
                kernels = run_ptx(backend, 90, mode="record")
                case.compute(backend)
                launched |= {one.name for one in kernels.launched}
    if backend == "cuda":
        import cuda_kernels

        there = set(cuda_kernels.kernels(90))
    else:
        sources = [path.read_text() for path in TRITON_KERNELS.glob("*.py")]
        there = {name for source in sources for name in re.findall(r"^@kernel\ndef (\w+)", source, re.MULTILINE)}
    assert len(there) > 5
    assert launched == there


# Scans of 4 types, with and without zoh, on both architectures: 3,616 cases for cuda, 320 for triton. Cross scans and
# merges: 4,608 and 320. Convolutions: 240. Single steps: 288.
@pytest.mark.slow
@pytest.mark.parametrize("zoh", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_random_scans(backend, architecture, dtype, zoh, run_ptx, monkeypatch):
    check_together(scans(backend, dtype, zoh), backend, monkeypatch, lambda case: (
        run_ptx(backend, architecture, case.multiprocessors, case.shared_bytes)
    ))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("kind", [ConvCase, UpdateCase])
def test_random_steps(kind, architecture, dtype, run_ptx, monkeypatch):
    check_together(kind.all(dtype), "triton", monkeypatch, lambda case: run_ptx("triton", architecture))


def check_together(cases, backend, monkeypatch, prepare):
    """Check outputs and gradients of each case loosely, and of all together by the accuracy rule, because in one case a
    single cancelling sum may dominate."""
    results = {}
    for case in cases:
        monkeypatch.setenv("VMDDPM_EMULATION_ORDER", case.order)
        prepare(case)
        three = case.compute(backend), case.compute("reference"), case.exact()
        assert not (what := case.wrong(*three)), what
        for name, *values in zip(case.names(), *three):
            results.setdefault((name, values[0].dtype), []).append(values)
    for (name, of), values in results.items():
        ours, reference, exact = (torch.cat([t.flatten() for t in some]) for some in zip(*values))
        assert_as_accurate(ours, reference, exact, of, f"{name} of {of}")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_random_cross_scans(backend, architecture, dtype, run_ptx, monkeypatch):
    for case in cross_scans(backend, dtype):
        monkeypatch.setenv("VMDDPM_EMULATION_ORDER", case.order)
        run_ptx(backend, architecture, case.multiprocessors, case.shared_bytes)
        ours = case.compute(backend)
        assert not (what := case.wrong(ours, ours, case.exact())), what


@pytest.mark.parametrize("instruction", ["lop3.b32 %r0, %r1, %r1, %r1, 0x80", "add.bf16 %h0, %h0, %h0"])
def test_an_unknown_instruction_is_named(instruction):
    registers = ".reg .b32 %r<2>;\n.reg .b16 %h<1>;"
    (kernel,) = parse(f".entry odd(\n.param .u64 odd_param_0\n)\n{{\n{registers}\n{instruction};\nret;\n}}\n")
    with pytest.raises(Exception, match=rf"odd: line 7: the instruction `{re.escape(instruction)}` is not known"):
        translate(kernel, "odd")
