"""Choice of the device that a network runs on."""

import os

import torch

from vmddpm.errors import InputError
from vmddpm_kernels.backends import select

MISNAMED = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "amd": "cuda", "metal": "mps"}  # torch's names


def choose_device(name: str, scans: bool = False) -> torch.device:
    """The device of that name. "auto" is a GPU if there is one, else the CPU; under `torchrun`, "auto" and "cuda" are
    the GPU of this process.

    Args:
        scans: the network is a VM-DDPM, which scans.

    Raises:
        InputError: if torch cannot use the device, or VMDDPM_BACKEND names kernels that cannot scan on it.
    """
    if meant := MISNAMED.get(name.partition(":")[0].lower()):
        raise InputError(f"device is {name!r}, which torch does not know; did you mean {meant}?")
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen == "cuda":
        chosen = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        probe = torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise InputError(f"device is {name!r}, which torch cannot use here ({reason}); use cpu or auto") from error
    if scans:
        try:
            select(None, probe)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"VMDDPM_BACKEND in the environment: {error}") from error
    return probe.device


def fast_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones on the device; False if torch cannot tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # missing in older versions of torch
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "arm_sve_bf16"))
