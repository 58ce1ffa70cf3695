"""The Triton kernels compiled ahead of time for NVIDIA and AMD GPUs, with the oldest allowed version of Triton, the
newest and two between: no spills, and the same kernels for all image sizes."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from versions import VERSIONS, python_path

PROGRAM = Path(__file__).parent / "compile_triton.py"
PINNED = version("triton")
TARGETS = ["sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950", "gfx1100"]
# The most important variant of every kernel; all variants in the nightly run.
CASES = ["N=16 bfloat16", "bfloat16", "bfloat16, table", "bfloat16, steps"]
MORE_ON_SM_90 = ["N=16 bfloat16, filled", "float32", "bfloat16, unaligned", "N=16 float32, zoh"]
SCANS = ("scan_forward", "scan_backward")
CASES_OF_SCANS = [f"N={n} {dtype}" for n in (1, 4, 8, 16, 32) for dtype in ("float32", "bfloat16", "float16")]
CASES_OF_SCANS += [f"{case}, inference" for case in CASES_OF_SCANS]
CASES_OF_SCANS += ["N=16 bfloat16, filled", "N=5 float32", "N=20 float32", "N=16 float32, zoh", "N=16 float64"]
STEPS = ("conv_forward", "conv_input_gradient", "conv_weight_gradient", "update")
CASES_OF_STEPS = ["bfloat16, steps", "float16, steps", "float32, steps", "float32, 2 taps"]

# Bytes of spills of forwards, by target, states, and whether they keep no checkpoints. The assembler leaves registers
# unused; the limits of registers that were tried avoid some of these spills and add others.
SPILLED = {("sm_80", "N=8", True): 16, ("sm_80", "N=32", True): 24, ("sm_90", "N=32", True): 16}
SPILLED_BY_TRITON = {("3.6.0", "sm_80", "N=32", False): 24}


def spills(row, target, triton):
    """Whether a kernel spills more than is known."""
    case = target, row["case"].split()[0], row["case"].endswith("inference")
    known = SPILLED.get(case, 0) or SPILLED_BY_TRITON.get((triton, *case), 0)
    return row["spilled"] > (known if row["kernel"] == "scan_forward" else 0)


def compiled(tmp_path, *arguments, triton=PINNED):
    pytest.importorskip("triton.backends.nvidia")
    path = os.pathsep.join([*python_path(triton), *sys.path])
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(PROGRAM), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    printed = json.loads(done.stdout)
    assert printed["triton"] == triton, "another version of Triton was imported"
    return printed[arguments[0]]


def print_table(target, rows, triton=PINNED):
    headings = ("warps", "registers", "shared", "spilled", "seconds")
    print(f"\n{f'{target}, Triton {triton}':50}" + "".join(f"{heading:>11}" for heading in headings))
    for row in rows:
        print(f"{row['kernel']:22}{row['case']:28}" + "".join(f"{row[heading]:11}" for heading in headings))


@pytest.mark.parametrize("target", ["sm_80", "sm_120", "gfx942", "gfx1100"])
def test_compiles(target, tmp_path):
    rows = compiled(tmp_path, "resources", target, *CASES)
    print_table(target, rows)
    copies = {"scan_planes", "merge_planes", "scan_rows", "merge_rows"}
    assert {row["kernel"] for row in rows} == {*SCANS, *STEPS, *copies}
    assert not [row for row in rows if row["kernel"] in SCANS and row["spilled"] + row["shared"]]
    if target.startswith("sm"):
        regular = [row for row in rows if row["kernel"] in copies and not row["case"].endswith("table")]
        assert all(row["widest"] == [16, 16] for row in regular), "no accesses of 16 bytes"


def test_nothing_spills(tmp_path):
    rows = compiled(tmp_path, "resources", "sm_90", *CASES, *MORE_ON_SM_90)
    print_table("sm_90", rows)
    assert not [row for row in rows if row["spilled"]]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("triton", VERSIONS)
def test_every_version(triton, target, tmp_path):
    """No scan kernel uses shared memory, and neither scans nor steps spill registers, but for the known few bytes."""
    rows = compiled(tmp_path, "resources", target, *CASES_OF_SCANS, *CASES_OF_STEPS, triton=triton)
    print_table(target, rows, triton)
    assert {row["kernel"] for row in rows} >= {*SCANS, *STEPS}
    assert not [row for row in rows if row["kernel"] in SCANS and row["shared"]]
    assert not [row for row in rows if row["kernel"] in (*SCANS, *STEPS) and spills(row, target, triton)]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_variant_compiles(target, tmp_path):
    rows = compiled(tmp_path, "resources", target)
    print_table(target, rows)
    assert not target.startswith("sm") or all(row["registers"] <= 255 for row in rows)


def test_an_image_size_compiles_nothing(tmp_path):
    found = compiled(tmp_path, "sizes")
    totals = {layout: [sum(kernels.values()) for kernels in counts] for layout, counts in found.items()}
    print("\nkernels compiled after each of 20 image sizes:", *totals.items(), sep="\n")
    assert totals == {
        # Forward, backward, scan, and the merge, which also sums over routes.
        "channels last": [4] * 20,
        # The sum over routes is another kernel. Images larger than a tile have another memory layout.
        "channels first": [5] * 17 + [7] * 3,
    }
