"""The text of `vmddpm info`: a description of the installation, for bug reports."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from vmddpm_kernels import backends

_PACKAGES = ("vmddpm", "torch", "triton", "numpy", "einops", "diffusers", "huggingface_hub", "nibabel", "pydicom")


def describe() -> str:
    lines = [f"python       {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for package in _PACKAGES:
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "not installed"
        lines.append(f"{package:<12} {found}")
    lines.append(f"CPU threads  {torch.get_num_threads()}")
    if torch.cuda.is_available():
        lines += [f"GPU {i}        {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        lines.append(f"GPU          none ({built})")
    lines.append("kernel backends, best first:")
    for name, status in backends().items():
        lines.append(f"  {name:<10} {'on ' if status.active else 'off'}  {status.detail}")
    return "\n".join(lines)
