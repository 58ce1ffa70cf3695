"""Shared fixtures: seeds, and memory that is never zero by chance."""

import os
import subprocess

import hypothesis
import pytest
import torch

# Triton reads this on import. Without a GPU, the tests interpret its kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

hypothesis.settings.register_profile("default", max_examples=60, deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", max_examples=1000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def small_disk(tmp_path):
    """A 4 MiB file system."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # a failed test may still have files open there


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fill torch.empty with NaN, so that an element a kernel forgets to write fails the test."""
    with torch.device("cpu"):  # caches the tensor constructors on first use
        empty = torch.empty
        torch.zeros(1)

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def interpreter(monkeypatch):
    """backend="triton" on CPU tensors, interpreted. The interpreter patches the language for each call of a function
    inside a kernel, which takes half of its time; here it patches once per kernel."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    patch, languages = interpreter._patch_lang, set()
    patched = getattr(interpreter, "_LangPatchScope", lambda: None)  # older versions do not undo their patches

    class Executor(interpreter.GridExecutor):
        def __call__(self, *args, **kwargs):
            languages.clear()
            return super().__call__(*args, **kwargs)

    def patch_once(function):
        if id(function.__globals__) in languages:
            return patched()
        languages.add(id(function.__globals__))
        return patch(function)

    monkeypatch.setattr(interpreter, "GridExecutor", Executor)
    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
