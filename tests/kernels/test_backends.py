"""The backend registry."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import vmddpm_kernels as vk
from vmddpm_kernels import backends as registry_function
from vmddpm_kernels.backends import BACKENDS, BackendStatus, extension, select, triton


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


def test_choice_on_a_gpu(monkeypatch):
    """cuda if it was built, else triton, else reference."""
    works = {"cuda": True, "triton": True}
    for name in works:
        monkeypatch.setattr(BACKENDS[name], "status", lambda _, name=name: BackendStatus(works[name], ""))
    nvidia, intel = (SimpleNamespace(is_cpu=False, device=torch.device(name, 0)) for name in ("cuda", "xpu"))
    assert [select(None, x) for x in (nvidia, intel)] == ["cuda", "triton"]
    assert select("triton", nvidia) == "triton"
    works["cuda"] = False
    assert [select(None, x) for x in (nvidia, intel)] == ["triton", "triton"]
    works["triton"] = False
    assert [select(None, x) for x in (nvidia, intel)] == ["reference", "reference"]


def test_triton_is_not_chosen_on_the_cpu_but_can_be_requested(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(BACKENDS["triton"], "status", lambda _: BackendStatus(True, ""))
    assert select("triton", x) == "triton"
    monkeypatch.setattr(extension, "native", None)
    assert select(None, x) == "reference"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="does not run on device cpu"):
        select("triton", x)


def test_missing_triton_is_said(monkeypatch):
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    missing = vk.BackendStatus(False, "Triton is not installed; `pip install triton`", "not_installed")
    assert vk.backends()["triton"] == missing
    with pytest.raises(RuntimeError, match="pip install triton"):
        select("triton", torch.zeros(1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("", "torch finds no GPU; set TRITON_INTERPRET=1"),
        ("import triton, os; os.environ['TRITON_INTERPRET'] = '1'", "before TRITON_INTERPRET=1 was set"),
        ("import os; os.environ['TRITON_INTERPRET'] = '1'", "active=True, detail='Triton, interpreted"),
    ],
)
def test_interpreter_is_requested_before_triton_is_imported(before, words):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    code = f"import vmddpm_kernels as vk\n{before}\nprint(vk.backends()['triton'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert words in done.stdout


def test_a_missing_extension_is_reported_and_worked_around(monkeypatch):
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


def test_import_needs_nothing_of_the_model_and_probes_no_gpu():
    code = """
import sys, torch
def refuse(*_):
    raise RuntimeError("asked")
torch.version.hip = "6.4"
for name in ("is_available", "current_device", "get_device_properties", "get_device_name", "init"):
    setattr(torch.cuda, name, refuse)
import vmddpm_kernels
print(*(m in sys.modules for m in ("vmddpm", "triton", "diffusers")))
print(*(f"{name}={status.active}" for name, status in vmddpm_kernels.backends().items()))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    imported, statuses = done.stdout.splitlines()
    assert imported.split() == ["False", "False", "False"]
    assert statuses.split() == ["cuda=False", "triton=False", "cpu=True", "reference=True"]
