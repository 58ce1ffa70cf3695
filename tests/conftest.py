"""Shared fixtures: seeds, and memory that is never zero by luck."""

import os
import subprocess

import hypothesis
import pytest
import torch

# Triton reads this when it is imported. Where there is no GPU, its kernels are interpreted in the tests.
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
    """A file system of 4 MiB."""
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
    subprocess.run(["umount", "--lazy", disk], check=True)  # a test that failed may hold files open there


@pytest.fixture
def poisoned_memory(monkeypatch):
    """torch.empty filled with NaN, so that an element a kernel forgets to write cannot pass."""
    with torch.device("cpu"):  # which remembers the functions that make tensors when it is first used
        empty = torch.empty
        torch.zeros(1)

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def interpreter(monkeypatch):
    """backend="triton" on CPU tensors, interpreted. The interpreter makes its language anew for each call of a function
    inside a kernel, which takes half of its time: here it is made once a kernel."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    patch, languages = interpreter._patch_lang, set()
    patched = getattr(interpreter, "_LangPatchScope", lambda: None)  # older ones do not undo what they patch

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
