"""Queries of GPUs for the CUDA backend, and the status of GPUs that its kernels do not support."""

from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from vmddpm_kernels.backends import extension
from vmddpm_kernels.backends.protocol import BackendStatus, Reason

if TYPE_CHECKING:
    from vmddpm_kernels._native import CudaKernels

LEAST_CAPABILITY = (8, 0)  # for asynchronous copies


class Gpu(NamedTuple):
    """Properties of a GPU from torch."""

    number: int
    name: str
    capability: tuple[int, int] | None  # compute capability; None for other vendors


class Probe(NamedTuple):
    """CUDA's result of loading a kernel, see csrc/common/probe.h."""

    error: str    # the name of CUDA's error, "cudaErrorNoKernelImageForDevice"; empty if the kernel was loaded
    message: str
    driver: int   # the CUDA version of the driver, 12040 for 12.4; 0 without a driver
    built: int    # the CUDA version of this build


class Runtime(Protocol):
    """Access to the GPUs of the machine; the tests replace it for an emulated GPU."""

    devices: frozenset[str]

    @property
    def kernels(self) -> "CudaKernels": ...

    def missing(self) -> BackendStatus | None:
        """Why there are no kernels; None if there are."""

    def gpu(self, number: int | None) -> Gpu | None:
        """The GPU with this index, or the current one; None if torch finds none. Raises RuntimeError or AssertionError
        if the query fails."""

    def probe(self, number: int) -> Probe: ...

    def limits(self, device: torch.device) -> tuple[int, int]:
        """(multiprocessors, maximum shared memory of a block in bytes)."""

    def stream(self, device: torch.device) -> tuple[int, int]:
        """The index of the GPU and torch's current stream there."""

    def current(self, device: torch.device) -> AbstractContextManager[Any]:
        """A context after which torch's current device is restored."""


class TorchRuntime:
    devices = frozenset({"cuda"})

    @property
    def kernels(self) -> "CudaKernels":
        return extension.native.cuda

    def missing(self) -> BackendStatus | None:
        if extension.native is None:
            return extension.missing()
        if not hasattr(extension.native, "cuda"):
            return BackendStatus(
                False,
                "built without CUDA; put nvcc (12 or newer) on PATH and run `VMDDPM_CUDA=1 pip install .`",
                "built_without_cuda",
            )
        return None

    def gpu(self, number: int | None) -> Gpu | None:
        if not torch.cuda.is_available():
            return None
        number = torch.cuda.current_device() if number is None else number
        properties = torch.cuda.get_device_properties(number)
        capability = None
        if torch.version.hip is None and hasattr(properties, "major"):  # AMD's `major` has another meaning
            capability = properties.major, properties.minor
        return Gpu(number, getattr(properties, "name", f"GPU {number}"), capability)

    def probe(self, number: int) -> Probe:
        with torch.cuda.device(number):
            return Probe(*self.kernels.probe(number))

    def limits(self, device: torch.device) -> tuple[int, int]:
        return _limits(device)

    def stream(self, device: torch.device) -> tuple[int, int]:
        return device.index, torch.cuda.current_stream(device).cuda_stream

    def current(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.cuda.device(device)


# Maximum shared memory of a block in bytes, by compute capability (CUDA C++ Programming Guide, technical
# specifications), for versions of torch that do not report it.
_SHARED_BYTES = {(8, 0): 163 << 10, (8, 7): 163 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (10, 3): 227 << 10}
_LEAST_SHARED_BYTES = 99 << 10  # from compute capability 8.0 on


@lru_cache(maxsize=64)
def _limits(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    by_capability = _SHARED_BYTES.get((properties.major, properties.minor), _LEAST_SHARED_BYTES)
    return properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", by_capability)


# CUDA's errors for missing kernels; the last three concern PTX that the driver cannot or may not compile.
_NO_IMAGE = {
    "cudaErrorNoKernelImageForDevice",
    "cudaErrorInvalidDeviceFunction",
    "cudaErrorInvalidKernelImage",
    "cudaErrorInvalidPtx",
    "cudaErrorJitCompilerNotFound",
    "cudaErrorJitCompilationDisabled",
}


def find_gpu(runtime: Runtime, number: int | None) -> Gpu | BackendStatus:
    """The GPU with this index, or the current one; or the status that explains why there is none."""
    try:
        gpu = runtime.gpu(number)
    except (RuntimeError, AssertionError) as error:
        return _query_failed(runtime, error)
    why = "torch finds no GPU; `python -c 'import torch; torch.cuda.init()'` says why"
    return gpu or _refused(runtime, "no_gpu", why)


def gpu_status(runtime: Runtime, gpu: Gpu) -> BackendStatus:
    """Whether the kernels run on the GPU, tested by loading one."""
    if gpu.capability is None:
        return _refused(runtime, "not_nvidia", f"{gpu.name} is not an NVIDIA GPU")
    if gpu.capability < LEAST_CAPABILITY:
        why = f"{_described(gpu)}, and the backend needs {_dotted(LEAST_CAPABILITY)} or newer"
        return _refused(runtime, "capability", why)
    try:
        probe = runtime.probe(gpu.number)
    except (RuntimeError, AssertionError) as error:
        return _query_failed(runtime, error)
    if probe.error:
        return _refused(runtime, *_why(gpu, gpu.capability, probe))
    return BackendStatus(True, f"{_built(runtime)}, {gpu.name}")


def _built(runtime: Runtime) -> str:
    return f"CUDA C++ for {runtime.kernels.architectures}"


def _refused(runtime: Runtime, reason: Reason, why: str) -> BackendStatus:
    return BackendStatus(False, f"{_built(runtime)}, but {why}", reason)


def _query_failed(runtime: Runtime, error: Exception) -> BackendStatus:
    return _refused(runtime, "gpu_error", f"the GPU cannot be queried: {str(error).partition(chr(10))[0]}")


def _why(gpu: Gpu, capability: tuple[int, int], probe: Probe) -> tuple[Reason, str]:
    message = f"{probe.message} ({probe.error})"
    of_build, of_driver = _version(probe.built), _version(probe.driver)
    own = "`VMDDPM_CUDA_ARCHS={}{}-real pip install .`".format(*capability)
    if probe.error == "cudaErrorInsufficientDriver":
        drivers = f"the NVIDIA driver knows CUDA {of_driver}" if probe.driver else "there is no NVIDIA driver"
        return "driver_too_old", (
            f"it was built with CUDA {of_build}, and {drivers}: update the driver, or build with an older nvcc"
        )
    if probe.error == "cudaErrorUnsupportedPtxVersion":
        return "ptx_too_new", (
            f"{_described(gpu)}, for which the NVIDIA driver, of CUDA {of_driver}, would have to compile PTX of CUDA "
            f"{of_build}: update the driver, or build for this GPU with {own}"
        )
    if probe.error in _NO_IMAGE:
        why = f"{_described(gpu)}, for which it has no kernels: build it with {own}; CUDA says: {message}"
        return "no_kernel_image", why
    return "gpu_error", f"no kernel could be loaded onto {gpu.name}: {message}"


def _described(gpu: Gpu) -> str:
    return f"{gpu.name} has compute capability {_dotted(gpu.capability or (0, 0))}"


def _dotted(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
