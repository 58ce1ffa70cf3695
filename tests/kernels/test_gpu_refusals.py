"""GPUs that a build's CUDA kernels do not support: the reported reason, and Triton as the replacement."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

import vmddpm_kernels as vk
from vmddpm_kernels.backends import BACKENDS, extension, select
from vmddpm_kernels.backends.cuda import CudaBackend
from vmddpm_kernels.backends.cuda_runtime import Gpu, Probe, TorchRuntime
from vmddpm_kernels.backends.protocol import Reason
from vmddpm_kernels.backends.triton import TritonBackend

ARCHITECTURES = "80-real 90-real 100-real 120"
LOADED = Probe("", "", 13000, 13000)
NO_IMAGE = Probe(
    "cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device", 13000, 13000
)
TOO_OLD = Probe(
    "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version", 12040, 13000
)
FAULT = Probe("cudaErrorIllegalAddress", "an illegal memory access was encountered", 13000, 13000)

REFUSALS = {
    "V100": (
        Gpu(0, "Tesla V100-SXM2-32GB", (7, 0)), NO_IMAGE, "capability",
        "Tesla V100-SXM2-32GB has compute capability 7.0, and the backend needs 8.0 or newer",
    ),
    "T4": (
        Gpu(0, "Tesla T4", (7, 5)), NO_IMAGE, "capability",
        "Tesla T4 has compute capability 7.5, and the backend needs 8.0 or newer",
    ),
    "no image": (
        Gpu(0, "NVIDIA Thor", (11, 0)), NO_IMAGE, "no_kernel_image",
        "NVIDIA Thor has compute capability 11.0, for which it has no kernels: build it with "
        "`VMDDPM_CUDA_ARCHS=110-real pip install .`; CUDA says: no kernel image is available for execution on the "
        "device (cudaErrorNoKernelImageForDevice)",
    ),
    "built for newer drivers": (
        Gpu(0, "NVIDIA A100", (8, 0)), TOO_OLD, "driver_too_old",
        "it was built with CUDA 13.0, and the NVIDIA driver knows CUDA 12.4: update the driver, or build with an older "
        "nvcc",
    ),
    "no driver": (
        Gpu(0, "NVIDIA A100", (8, 0)), TOO_OLD._replace(driver=0), "driver_too_old",
        "it was built with CUDA 13.0, and there is no NVIDIA driver: update the driver, or build with an older nvcc",
    ),
    "PTX for newer drivers": (
        Gpu(0, "NVIDIA GB10", (12, 1)), Probe("cudaErrorUnsupportedPtxVersion", "unsupported toolchain", 12080, 13000),
        "ptx_too_new",
        "NVIDIA GB10 has compute capability 12.1, for which the NVIDIA driver, of CUDA 12.8, would have to compile PTX "
        "of CUDA 13.0: update the driver, or build for this GPU with `VMDDPM_CUDA_ARCHS=121-real pip install .`",
    ),
    "AMD": (
        Gpu(0, "AMD Instinct MI300X", None), TOO_OLD._replace(driver=0), "not_nvidia",
        "AMD Instinct MI300X is not an NVIDIA GPU",
    ),
    "a fault of another program": (
        Gpu(0, "NVIDIA H100", (9, 0)), FAULT, "gpu_error",
        "no kernel could be loaded onto NVIDIA H100: an illegal memory access was encountered "
        "(cudaErrorIllegalAddress)",
    ),
    "no GPU": (None, LOADED, "no_gpu", "torch finds no GPU; `python -c 'import torch; torch.cuda.init()'` says why"),
}  # fmt: skip


@dataclass
class SimulatedRuntime:
    """A machine with this GPU and the CPU's memory."""

    found: Gpu | None
    answer: Probe | Exception
    probed: list[int] = field(default_factory=list)
    devices = frozenset({"cpu"})
    kernels = SimpleNamespace(architectures=ARCHITECTURES)

    def missing(self):
        return None

    def gpu(self, number):
        return self.found

    def probe(self, number):
        self.probed.append(number)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def simulate(monkeypatch, found, answer):
    """Treat CPU tensors as being on the simulated GPU, and interpret Triton's kernels for it."""
    runtime = SimulatedRuntime(found, answer)
    monkeypatch.setitem(BACKENDS, "cuda", CudaBackend(runtime))
    monkeypatch.setattr(TritonBackend, "devices", frozenset({"cpu"}))
    return runtime


def inputs():
    g = torch.Generator().manual_seed(0)

    shapes = [(1, 4, 5), (1, 4, 4, 5), (4, 5, 2), (1, 4, 4, 2), (1, 4, 4, 2)]
    x, delta, A, B, C = (torch.randn(shape, generator=g) for shape in shapes)
    return x, delta, -A.abs(), B, C


@pytest.mark.parametrize("name", REFUSALS)
def test_triton_runs_where_the_kernels_cannot(name, monkeypatch, interpreter):
    found, probe, reason, why = REFUSALS[name]
    runtime = simulate(monkeypatch, found, probe)
    status = vk.backends()["cuda"]
    assert status == vk.BackendStatus(False, f"CUDA C++ for {ARCHITECTURES}, but {why}", reason)
    assert reason in get_args(Reason)
    assert vk.backends()["triton"].active

    ran = []
    for method in ("scan", "scan_backward"):
        run = getattr(TritonBackend, method)
        monkeypatch.setattr(
            TritonBackend, method, lambda *a, run=run, method=method, **k: ran.append(method) or run(*a, **k)
        )
    leaves = [t.requires_grad_(name == "V100") for t in inputs()]  # the interpreted backward takes seconds
    y = vk.cross_selective_scan(*leaves, table=vk.routes(2, 2))
    expected = vk.cross_selective_scan(*leaves, table=vk.routes(2, 2), backend="reference")
    torch.testing.assert_close(y, expected)
    if y.requires_grad:
        torch.testing.assert_close(*(torch.autograd.grad(result.sum(), leaves) for result in (y, expected)))
    assert ran == ["scan", "scan_backward"][: 1 + y.requires_grad]

    with pytest.raises(RuntimeError, match="backend 'cuda' is not available: CUDA C") as error:
        vk.cross_selective_scan(*leaves, table=vk.routes(2, 2), backend="cuda")
    assert why in str(error.value)
    if reason != "gpu_error":
        assert len(runtime.probed) <= 1


def test_a_gpu_is_probed_once(monkeypatch):
    runtime = simulate(monkeypatch, Gpu(3, "NVIDIA H100", (9, 0)), LOADED)
    for _ in range(3):
        assert select(None, torch.zeros(1)) == "cuda"
        assert vk.backends()["cuda"].active
    assert runtime.probed == [3]


@pytest.mark.parametrize("answer", [FAULT, RuntimeError("CUDA out of memory\nand more")])
def test_a_temporary_failure_is_probed_again(monkeypatch, answer):
    runtime = simulate(monkeypatch, Gpu(0, "NVIDIA H100", (9, 0)), answer)
    status = vk.backends()["cuda"]
    assert (status.active, status.reason) == (False, "gpu_error")
    assert "illegal memory access" in status.detail or status.detail.endswith("cannot be queried: CUDA out of memory")
    runtime.answer = LOADED
    assert vk.backends()["cuda"].active


def use_torch(monkeypatch, properties, probes, hip=None):
    """Make torch and the compiled kernels act as on a machine with such GPUs; returns the numbers of probed GPUs."""
    probed = []

    def probe(number):
        probed.append(number)
        return tuple(probes[number])

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties[number])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=None: properties[number or 0].name)
    monkeypatch.setattr(torch.cuda, "device", lambda number: nullcontext())
    kernels = SimpleNamespace(architectures=ARCHITECTURES, probe=probe)
    monkeypatch.setattr(extension, "native", SimpleNamespace(cuda=kernels, describe=lambda: "C++"))
    monkeypatch.setitem(BACKENDS, "cuda", CudaBackend(TorchRuntime()))
    return probed


def on_gpu(number):
    return SimpleNamespace(is_cpu=False, device=torch.device("cuda", number))


def test_each_gpu_of_a_machine_has_its_own_answer(monkeypatch):
    v100 = SimpleNamespace(name="Tesla V100", major=7, minor=0)
    a100 = SimpleNamespace(name="NVIDIA A100", major=8, minor=0)
    thor = SimpleNamespace(name="NVIDIA Thor", major=11, minor=0)
    probed = use_torch(monkeypatch, [v100, a100, thor, a100], [NO_IMAGE, LOADED, NO_IMAGE, LOADED])
    chosen = [select(None, on_gpu(number)) for number in (0, 1, 2, 3, 0, 1, 2, 3)]
    assert chosen == ["triton", "cuda", "triton", "cuda"] * 2
    assert probed == [1, 2, 3]
    assert vk.backends()["cuda"].reason == "capability"  # for the current GPU
    assert select("cuda", on_gpu(1)) == "cuda"
    with pytest.raises(RuntimeError, match="Tesla V100 has compute capability"):
        select("cuda", on_gpu(0))


@pytest.mark.parametrize(
    "properties",
    [SimpleNamespace(name="AMD Instinct MI250X", major=9, minor=0, gcnArchName="gfx90a"), SimpleNamespace()],
    ids=["as today", "with nothing of CUDA's"],
)
def test_properties_of_rocm(monkeypatch, properties):
    probed = use_torch(monkeypatch, [properties], [TOO_OLD], hip="6.4.43482")
    status = vk.backends()["cuda"]
    assert (status.active, status.reason) == (False, "not_nvidia")
    assert getattr(properties, "name", "GPU 0") in status.detail
    assert select(None, on_gpu(0)) == "triton"
    assert not probed


def test_a_process_that_was_forked(monkeypatch):
    """torch refuses to use a GPU there."""
    use_torch(monkeypatch, [], [])

    def refuse(*_):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.\nTo use CUDA with multiprocessing, ...")

    for name in ("current_device", "get_device_properties", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for name in ("cuda", "triton"):
        status = vk.backends()[name]
        assert (status.active, status.reason) == (False, "gpu_error")
        assert status.detail.endswith("the GPU cannot be queried: Cannot re-initialize CUDA in forked subprocess.")


@pytest.mark.parametrize(
    ("native", "reason"), [(None, "not_installed"), (SimpleNamespace(), "built_without_cuda")]
)
def test_what_was_not_built(monkeypatch, native, reason):
    monkeypatch.setattr(extension, "native", native)
    status = TorchRuntime().missing()
    assert (status.active, status.reason) == (False, reason)


def test_the_runtime_of_this_build():
    """Query CUDA itself about a GPU that does not exist."""
    kernels = getattr(extension.native, "cuda", None)
    if kernels is None or torch.cuda.is_available():
        pytest.skip("needs a build with CUDA, on a machine without a GPU")
    probe = Probe(*kernels.probe(0))
    assert probe.error.startswith("cudaError")
    assert probe.message
    assert probe.driver == 0 or probe.error != "cudaErrorInsufficientDriver"
    assert probe.built >= 12000
