"""Compiles the Triton kernels for GPUs that need not exist. Runs as a program, so that Triton is not an interpreter:

    python compile_triton.py resources TARGET [CASE ...]    what each kernel takes on that GPU
    python compile_triton.py sizes                          how many kernels 20 image sizes take

Prints JSON, with the version of Triton. The backend's own functions run, on tensors without a GPU; a launch compiles
and goes no further, so that what is compiled is what a user's call compiles."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.amd.compiler import HIPBackend
from triton.backends.compiler import GPUTarget

import vmddpm_kernels as vk
from vmddpm_kernels.backends import BACKENDS
from vmddpm_kernels.backends.extension import empty
from vmddpm_kernels.backends.triton import cross_scan, selective_scan, steps
from vmddpm_kernels.backends.triton.launch import OPTIONS
from vmddpm_kernels.routes import RouteOrder
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions
from vmddpm_kernels.step_inputs import ConvInputs, StateInputs

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
FILLED = 5000  # images, enough to fill any GPU


class NoGpu:
    """The parts of a driver that Triton needs to compile."""

    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(target, launched):
    """Make each launch append (kernel, compiled kernel, CPU seconds of the compilation) to `launched`."""
    triton.runtime.driver.set_active(NoGpu(TARGETS[target]))
    if hasattr(HIPBackend, "path_to_rocm_lld"):
        # For AMD GPUs Triton 3.4 assembles and leaves linking to ROCm. Inspection needs no linking.
        HIPBackend.path_to_rocm_lld = staticmethod(lambda: "true")
    triton.knobs.compilation.always_compile = True

    def launch(kernel, programs, device, **arguments):
        started = seconds()
        compiled = kernel.warmup(grid=(programs,), **arguments, **OPTIONS)
        launched.append((kernel, compiled, seconds() - started))

    selective_scan.launch = cross_scan.launch = steps.launch = launch


def seconds():
    """CPU seconds of this process and the assemblers it ran."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def scan(batch, height, width, channels, states, dtype, zoh=False, backward=True):
    """Forward and backward of a cross_selective_scan, on tensors as the backend gets them, with hardly any memory."""
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32

    def zeros(*shape, dtype=accumulate):
        return torch.zeros(1, dtype=dtype).expand(shape)

    table = vk.routes(height, width)
    routes, length = table.shape
    parameters = [zeros(routes, channels), zeros(routes, channels), None, None, table]
    x, delta = zeros(batch, length, channels, dtype=dtype), zeros(batch, routes, length, channels, dtype=dtype)
    B, C = torch.zeros(2, batch, routes, length, states, dtype=accumulate)
    A = torch.zeros(routes, channels, states, dtype=accumulate)
    inputs, options = ScanInputs(x, delta, A, B, C, *parameters), ScanOptions(zoh=zoh)
    backend, sizes = BACKENDS["triton"], inputs.sizes()
    y, _, checkpoints, _ = backend.scan(inputs, sizes, options, last_state=True, checkpoint=backward)
    if backward:
        backend.scan_backward(y, None, inputs, sizes, checkpoints, options, (True,) * 9)


def scan_and_merge(height, width, dtype, layouts=((False, True),), table=None, channels=96):
    """Cross scan and cross merge for each pair of layouts, channel first or not, of image and sequences."""
    order = RouteOrder(table, height, width)
    for image_first, sequences_first in layouts:
        x = empty((2, 1, height * width, channels), image_first, dtype, torch.device("cpu"))
        y = BACKENDS["triton"].cross_scan(x, order, sequences_first)
        BACKENDS["triton"].cross_merge(y, order, True, image_first)


def every_layout(height, width, dtype, channels=96):
    scan_and_merge(height, width, dtype, [(True, True), (True, False), (False, True), (False, False)], None, channels)


def convolution_and_step(dtype, taps=4, states=16):
    """A causal convolution, forward and backward, and one scan step, with all options. Calls the backend's internal
    functions, because the backend leaves CPU tensors to PyTorch."""
    batch, length, channels = 2, 40, 72

    def zeros(*shape):
        return torch.zeros(shape, dtype=dtype)

    x = zeros(batch, length, channels)
    inputs = ConvInputs(x, zeros(channels, taps), zeros(channels), zeros(batch, taps - 1, channels))
    steps.causal_conv1d(inputs, True)
    steps.causal_conv1d_backward(zeros(*x.shape), inputs, True)
    row, matrix, vector = zeros(batch, channels), zeros(batch, states), zeros(channels)
    state, A = zeros(batch, channels, states), zeros(channels, states)
    steps.state_update(StateInputs(state, row, row, A, matrix, matrix, vector, row, vector), True)


def along_table(dtype):
    scan_and_merge(3, 5, dtype, table=vk.routes(3, 5, permutation=vk.patch_permutation(3, 5, seed=0)))


CASES = {
    "N=16 bfloat16": lambda: scan(2, 3, 5, 40, 16, torch.bfloat16),
    "N=16 bfloat16, filled": lambda: scan(FILLED, 1, 2, 40, 16, torch.bfloat16),
    **{
        f"N={n} {str(dtype).removeprefix('torch.')}": lambda n=n, dtype=dtype: scan(2, 3, 5, 40, n, dtype)
        for n in (1, 4, 8, 16, 32)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        if (n, dtype) != (16, torch.bfloat16)
    },
    **{
        f"N={n} {str(dtype).removeprefix('torch.')}, inference": lambda n=n, dtype=dtype: (
            scan(2, 3, 5, 40, n, dtype, backward=False)
        )
        for n in (1, 4, 8, 16, 32)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    },
    **{
        f"N={n} {str(dtype).removeprefix('torch.')}{', zoh' * zoh}": lambda n=n, dtype=dtype, zoh=zoh: (
            scan(2, 3, 5, 40, n, dtype, zoh)
        )
        for n, dtype, zoh in (
            (1, torch.float32, True), (16, torch.float32, True), (16, torch.bfloat16, True), (64, torch.float32, True),
            (5, torch.float32, False), (17, torch.float32, False), (20, torch.float32, False),
            (256, torch.float32, False), (16, torch.float64, False), (16, torch.float64, True),
        )
    },
    **{
        f"{str(dtype).removeprefix('torch.')}{kind}": lambda run=run, dtype=dtype: run(dtype)
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
        for kind, run in {
            "": lambda dtype: every_layout(16, 16, dtype),
            ", unaligned": lambda dtype: every_layout(15, 17, dtype, channels=97),
            ", large": lambda dtype: every_layout(160, 160, dtype),
            ", table": along_table,
        }.items()
    },
    **{
        f"{str(dtype).removeprefix('torch.')}, steps": lambda dtype=dtype: convolution_and_step(dtype)
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    },
    **{
        f"float32, {taps} taps": lambda taps=taps: convolution_and_step(torch.float32, taps, states=2**taps)
        for taps in (2, 3)
    },
    # Only images of 513 to 1024 pixels need it, with sequences in planes that begin anywhere in a sector.
    "bfloat16, wide": lambda: scan_and_merge(31, 33, torch.bfloat16),
}


def numbers(compiled):
    """Registers per thread, bytes of shared memory per block, bytes of spill memory per thread, and bytes of the widest
    load from and store to global memory."""
    if "amdgcn" in compiled.asm:
        found = {key: int(n) for key, n in re.findall(r"\.(\w+): +(\d+)", compiled.asm["amdgcn"])}
        registers, spilled, accesses = found["vgpr_count"], found["private_segment_fixed_size"], []
    else:
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
        registers, spilled = found["REG"], found["STACK"] + found["LOCAL"]
        accesses = re.findall(r"(ld|st)\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)", compiled.asm["ptx"])
    widest = [
        max((int(count or 1) * int(bits) // 8 for kind, count, bits in accesses if kind == wanted), default=0)
        for wanted in ("ld", "st")
    ]
    return {"registers": registers, "shared": compiled.metadata.shared, "spilled": spilled, "widest": widest}


def resources(target, *cases):
    """A kernel used by several cases is listed with the first."""
    launched, rows, seen = [], [], set()
    compile_only(target, launched)
    for case in cases or CASES:
        CASES[case]()
        for kernel, compiled, took in launched:
            if id(compiled) in seen:
                continue
            seen.add(id(compiled))
            about = {"warps": compiled.metadata.num_warps, "seconds": round(took, 2), **numbers(compiled)}
            rows.append({"kernel": kernel.__name__, "case": case, **about})
        launched.clear()
    return rows


def sizes():
    """The kernels compiled after each of 20 image sizes, by name, for a scan, forward and backward, with cross scan and
    cross merge of sequences of one layout."""
    launched, found = [], {}
    compile_only("sm_90", launched)
    shapes = [(1, 1), (1, 7), (2, 2), (3, 5), (4, 4), (7, 7), (7, 9), (8, 8), (13, 11), (14, 14), (16, 16), (16, 24)]
    shapes += [(17, 16), (28, 28), (31, 33), (32, 32), (48, 20), (56, 56), (63, 65), (64, 64)]
    for layout, sequences_first in (("channels last", False), ("channels first", True)):
        counts = found[layout] = []
        for size in shapes:
            scan(2, *size, 40, 16, torch.float32)
            scan_and_merge(*size, torch.float32, [(False, sequences_first)], channels=40)
            kernels = {kernel for kernel, _, _ in launched}
            counts.append({kernel.__name__: len(kernel.device_caches[0][0]) for kernel in kernels})
        launched.clear()
    return found


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    found = {"resources": resources, "sizes": sizes}[command](*arguments)
    print(json.dumps({"triton": triton.__version__, command: found}))
