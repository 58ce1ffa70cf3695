"""Extraction of the baselines' files from clones."""

import subprocess

import pytest

from benchmarks.gpu import baselines

SCAN, MODULES = "kernels/selective_scan/csrc/selective_scan", ("ops", "ops/triton", "utils")
VMAMBA = ["LICENSE", "README.md", *(f"classification/models/{name}.py" for name in ("csm_triton", "csms6s")),
          *(f"{SCAN}/{name}" for name in ("a.h", "b.cuh", "cus/no.cu")),
          *(f"{SCAN}/cusoflex/{name}" for name in ("c.cpp", "d.cu", "e.cuh", "f.h"))]  # fmt: skip
MAMBA = ["LICENSE", *(f"csrc/selective_scan/a.{kind}" for kind in ("cpp", "cu", "cuh", "h")),
         "mamba_ssm/__init__.py", *(f"mamba_ssm/{name}/__init__.py" for name in MODULES),
         *(f"mamba_ssm/{name}.py" for name in (
             "ops/selective_scan_interface", "ops/triton/layer_norm", "utils/determinism", "utils/torch"
         ))]  # fmt: skip


def clone(folder, files):
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"of {folder.name}")
    return folder


def collected(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_used_is_taken(tmp_path):
    vmamba, mamba = clone(tmp_path / "one", VMAMBA), clone(tmp_path / "two", MAMBA)
    git = ["git", "-C", str(mamba), "-c", "user.name=n", "-c", "user.email=e@e"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    into = tmp_path / "baselines"
    (into / "VMamba").mkdir(parents=True)
    (into / "VMamba" / "stale").touch()
    assert baselines.collect([mamba, vmamba], into) == []
    unused = {"README.md", "kernels/selective_scan/csrc/selective_scan/cus/no.cu"}
    assert collected(into / "VMamba") == sorted({*VMAMBA, "REVISION"} - unused)
    assert collected(into / "mamba") == sorted({*MAMBA, "REVISION"} - {"mamba_ssm/__init__.py"})
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert (into / "mamba" / "REVISION").read_text() == head
    assert (into / "VMamba" / "REVISION").read_text() == "unknown\n"


def test_what_is_missing_is_said(tmp_path):
    without = [name for name in MAMBA if name not in ("csrc/selective_scan/a.cuh", "mamba_ssm/utils/torch.py")]
    mamba, into = clone(tmp_path / "mamba", without), tmp_path / "baselines"
    assert baselines.collect([mamba], into) == [
        "VMamba: no clone of it was given",
        f"mamba: no csrc/selective_scan/*.cuh in {mamba}",
        f"mamba: no mamba_ssm/utils/torch.py in {mamba}",
    ]
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="other: no clone of VMamba or mamba"):
        baselines.collect([tmp_path / "other"], into)


def test_what_is_compiled(tmp_path):
    source = tmp_path / "scan.cu"
    kinds = ["float, float", "at::BFloat16, float", "at::Half, float", "float, complex_t"]
    lines = [f"template void scan<{kind}>(int);" for kind in kinds]
    source.write_text("\n".join(['#include "a.h"', "#define b", *lines]))
    files, left_out = baselines.split([source], tmp_path)
    assert left_out == lines[2:]
    assert [file.read_text() for file in files] == [f'#include "a.h"\n{line}\n' for line in lines[:2]]
