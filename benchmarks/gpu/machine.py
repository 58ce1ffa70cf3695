"""A description of the machine."""

import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import ROOT


def output(*command: str) -> str | None:
    """The output of a program; None if it does not exist or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def cuda_tool(name: str) -> str:
    """The path of a program of the CUDA toolkit, which may be missing."""
    return shutil.which(name) or f"/usr/local/cuda/bin/{name}"


def triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def describe(device: str) -> dict[str, Any]:
    release = re.search(r"release ([\d.]+), V([\d.]+)", output(cuda_tool("nvcc"), "--version") or "")
    gpu: dict[str, Any] = {"name": None}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        driver = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        gpu = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "driver": (driver or "").split("\n")[0],
        }
    return {
        "device": slug(gpu["name"] or f"{cpu_name()} {os.cpu_count()} cores"),
        "date": time.strftime("%Y-%m-%d"),
        "commit": output("git", "rev-parse", "HEAD"),
        "changed_files": bool(output("git", "status", "--porcelain")),
        "gpu": gpu,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "triton": triton_version(),
        "nvcc": release.group(2) if release else None,
    }


def slug(name: str | None) -> str:
    """NVIDIA H200 -> nvidia-h200"""
    return re.sub(r"[^a-z0-9]+", "-", (name or "no gpu").lower()).strip("-")
