"""The backend registry."""

import os
import subprocess
import sys

import pytest
import torch

import vmddpm_kernels as vk
from vmddpm_kernels import backends as registry_function
from vmddpm_kernels.backends import extension, select


def test_every_backend_says_what_it_is():
    statuses = registry_function()
    assert list(statuses) == ["cuda", "triton", "cpu", "reference"]
    assert statuses["cpu"].active
    assert any(isa in statuses["cpu"].detail for isa in ("avx512", "avx2", "baseline"))


def test_choice(monkeypatch):
    x = torch.zeros(1)
    assert select(None, x) == "cpu"
    assert select("reference", x) == "reference"
    monkeypatch.setenv("VMDDPM_BACKEND", "reference")
    assert select(None, x) == "reference"
    assert select("cpu", x) == "cpu"
    monkeypatch.setenv("VMDDPM_BACKEND", "abacus")
    with pytest.raises(ValueError, match="unknown backend 'abacus'"):
        select(None, x)
    with pytest.raises(ValueError, match="does not run on device meta"):
        select("cpu", x.to("meta"))


def test_missing_extension_is_said_and_worked_around(monkeypatch):
    monkeypatch.setattr(extension, "native", None)
    monkeypatch.setattr(extension, "problem", "No module named 'vmddpm_kernels._native': pip install .")
    assert not vk.backends()["cpu"].active
    assert "pip install" in vk.backends()["cpu"].detail
    assert select(None, torch.zeros(1)) == "reference"
    with pytest.raises(RuntimeError, match="pip install"):
        select("cpu", torch.zeros(1))


def test_wrong_instruction_set_is_said():
    code = "import vmddpm_kernels; print(vmddpm_kernels.backends()['cpu'])"
    environment = dict(os.environ, VMDDPM_CPU_ISA="mmx")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "active=False" in done.stdout
    assert "VMDDPM_CPU_ISA=mmx is not available here; choose from" in done.stdout


def test_import_needs_nothing_of_the_model():
    code = "import sys, vmddpm_kernels; print(*(m in sys.modules for m in ('vmddpm', 'triton', 'diffusers')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]
