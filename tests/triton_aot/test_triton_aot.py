"""The Triton kernels compiled ahead of time: for every GPU they serve, without spills, once for all image sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "compile_triton.py"
# Of every kernel the variant that matters most; all of them in the nightly run.
CASES = ["N=16 bfloat16", "N=16 bfloat16, filled", "bfloat16", "bfloat16, table"]
MORE_ON_SM_90 = ["float32", "bfloat16, unaligned"]
MORE_ON_SM_90 += ["N=1 float32", "N=4 float32", "N=8 float32", "N=16 float32", "N=16 float32, zoh", "N=256 float32"]


def compiled(tmp_path, *arguments):
    pytest.importorskip("triton.backends.nvidia")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(PROGRAM), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def print_table(target, rows):
    print(f"\n{target:24}{'':24}{'warps':>8}{'registers':>12}{'shared':>10}{'spilled':>10}")
    for row in rows:
        columns = f"{row['warps']:8}{row['registers']:12}{row['shared']:10}{row['spilled']:10}"
        print(f"{row['kernel']:24}{row['case']:24}{columns}")


@pytest.mark.parametrize("target", ["sm_80", "sm_100", "gfx942"])
def test_compiles(target, tmp_path):
    rows = compiled(tmp_path, "resources", target, *CASES)
    print_table(target, rows)
    copies = {"scan_planes", "merge_planes", "scan_rows", "merge_rows"}
    assert {row["kernel"] for row in rows} == {"scan_forward", "scan_backward", "gather_along_routes", *copies}
    if target != "gfx942":
        assert all(row["widest"] == [16, 16] for row in rows if row["kernel"] in copies), "no accesses of 16 bytes"


def test_nothing_spills(tmp_path):
    rows = compiled(tmp_path, "resources", "sm_90", *CASES, *MORE_ON_SM_90)
    print_table("sm_90", rows)
    assert not [row for row in rows if row["spilled"]]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_variant_compiles(target, tmp_path):
    rows = compiled(tmp_path, "resources", target)
    print_table(target, rows)
    assert target == "gfx942" or all(row["registers"] <= 255 for row in rows)


def test_an_image_size_compiles_nothing(tmp_path):
    counts = compiled(tmp_path, "sizes")
    print(f"\nkernels compiled after each of {counts['sizes']} image sizes: {counts['compilations']}")
    assert counts["sizes"] == 20
    # Forward and backward; scan and merge to planes and to rows; the copies to and from planes for more than one pixel,
    # and for images larger than a tile.
    assert counts["compilations"] == [6] + [8] * 16 + [10] * 3
