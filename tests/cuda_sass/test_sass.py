"""The compiled CUDA kernels: no spills, no local memory, and the instructions of the recurrence loops."""

import re
import textwrap

import pytest
from compile import (
    ARCHITECTURES,
    SOURCES,
    Unavailable,
    build,
    cuda_sources,
    kernel_name,
    parse_log,
    resources,
    supported,
)
from control_flow import parse
from sass import Kernel, find_nvdisasm, kernels, table

BUDGET = SOURCES / "BUDGET.md"
# Kernels of cross scan along the regular routes, and kernels of rows along any routes.
COPIES = {"scan_planes", "merge_planes", "scan_rows", "merge_rows"}


def compiled_resources(architecture):
    """Skip if the machine or the repository lacks what compilation needs."""
    try:
        architectures = supported()
        kernel_name("_Z1fv")
    except Unavailable as reason:
        pytest.skip(str(reason))
    if architecture not in architectures:
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    if not cuda_sources():
        pytest.skip("no CUDA sources in csrc")
    return [entry for cubin in build([architecture]) for entry in resources(cubin)]


@pytest.fixture(scope="module")
def disassembled():
    compiled_resources(90)
    try:
        find_nvdisasm()
    except Unavailable as reason:
        pytest.skip(str(reason))
    found = kernels(90)
    print(f"\n{table(found)}")
    return found


# Every test run compiles for the two architectures whose code differs most; the PTX tests also use them.
IN_EVERY_RUN = (80, 90)


@pytest.mark.parametrize(
    "architecture", [pytest.param(a, marks=[] if a in IN_EVERY_RUN else pytest.mark.slow) for a in ARCHITECTURES]
)
def test_kernels_stay_in_registers(architecture):
    entries = compiled_resources(architecture)
    assert entries, "ptxas reported no kernel"
    spilling = [
        f"{entry.name}: stack {entry.stack}, spill stores {entry.spill_stores}, spill loads {entry.spill_loads} bytes"
        for entry in entries
        if entry.local_bytes
    ]
    assert not spilling, "\n".join(spilling)


def test_no_local_memory_in_the_machine_code(disassembled):
    using = [f"{kernel.name}: {', '.join(kernel.local_memory)}" for kernel in disassembled if kernel.local_memory]
    assert not using, "\n".join(using)


def test_copies_are_within_their_registers():
    """csrc/BUDGET.md gives the limit for each kernel of cross scan."""
    rows = re.findall(r"^\| `(\w+)<\*>` \| (\d+) \| (\d+) \|", BUDGET.read_text(), flags=re.MULTILINE)
    limits = {kernel: {80: int(on_80), 90: int(on_90)} for kernel, on_80, on_90 in rows}
    for architecture in (80, 90):
        entries = [entry for entry in compiled_resources(architecture) if entry.name.partition("<")[0] in COPIES]
        assert {entry.name.partition("<")[0] for entry in entries} == set(limits) == COPIES
        over = [e for e in entries if e.registers > limits[e.name.partition("<")[0]][architecture]]
        assert not over, "\n".join(f"{entry.name} on sm_{architecture}: {entry.registers} registers" for entry in over)


def test_copies_move_sixteen_bytes(disassembled):
    """All cross scan kernels on vectors, and kernels that choose between vectors and elements, use 16-byte accesses."""
    for kernel in disassembled:
        name = kernel.name.partition("<")[0]
        in_vectors = re.search(r", (2|4|8), (true|false)>", kernel.name) or name in ("scan_planes", "merge_planes")
        if name not in COPIES or not in_vectors:
            continue
        opcodes = [instruction.opcode for instruction in kernel.instructions]
        for access in ("LDG", "STG"):
            assert any(code.startswith(f"{access}.E.128") for code in opcodes), f"no {access}.128 in {kernel.name}"


def test_the_passes_of_every_scan_are_found(disassembled):
    """Checks float kernels; loops of the other kernels are no recurrences."""
    ours = r"scan_(forward<float, \d+, \d+|backward<float, \d+), false"
    scans = [kernel for kernel in disassembled if re.match(ours, kernel.name)]
    assert len(scans) >= 4
    assert not [kernel.name for kernel in scans if not kernel.complete]


def test_resources_are_read_from_the_log_of_ptxas():
    log = """
        ptxas info    : Compiling entry function 'one' for 'sm_90'
        ptxas info    : Function properties for one
            8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
        ptxas info    : Used 31 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem
        ptxas info    : Function properties for called
            16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
    """
    one, called = parse_log(90, log)
    assert (one.registers, one.stack, one.spill_stores, one.spill_loads, one.shared) == (31, 8, 4, 12, 1024)
    assert (called.mangled, called.stack, called.registers) == ("called", 16, 0)


def function(text):
    """Parse a function from lines of labels and instructions."""
    lines = [line for line in textwrap.dedent(text).splitlines() if line.strip()]
    code = [line if line.endswith(":") else f"        /*{16 * i:04x}*/    {line} ;" for i, line in enumerate(lines)]
    return parse("\n".join(['\t.section\t.text.kernel,"ax",@progbits', ".text.kernel:", *code]))[0]


def texts(function):
    return [[instruction.text for instruction in function.within(loop)] for loop in function.loops]


def test_nested_loops():
    nested = function("""
        MOV R0, RZ
        .L_x_0:
        LDS R1, [R2]
        .L_x_1:
        MUFU.EX2 R3, R1
        @P0 BRA `(.L_x_1)
        @!P1 BRA `(.L_x_0)
        EXIT
    """)
    inner = ["MUFU.EX2 R3, R1", "@P0 BRA `(.L_x_1)"]
    assert texts(nested) == [["LDS R1, [R2]", *inner, "@!P1 BRA `(.L_x_0)"], inner]


def test_reconvergence_goes_to_the_label_of_its_scope():
    """The slow path is placed after the loop and returns through BSYNC; the subroutine it calls is in no loop."""
    diverging = function("""
        .L_x_0:
        BSSY.RECONVERGENT B0, `(.L_x_1)
        @P0 BRA `(.L_x_2)
        BSYNC.RECONVERGENT B0
        .L_x_1:
        @P1 BRA `(.L_x_0)
        EXIT
        .L_x_2:
        CALL.REL.NOINC `($slow)
        BSYNC.RECONVERGENT B0
        $slow:
        STL [R1], R2
        RET.REL.NODEC R4 `(kernel)
    """)
    (loop,) = texts(diverging)
    # The slow path belongs to the loop, though it stands behind EXIT; EXIT and the subroutine do not.
    assert "CALL.REL.NOINC `($slow)" in loop
    assert not {"EXIT", "STL [R1], R2"} & set(loop)


def test_jumps_with_a_second_predicate_and_diverged_warps():
    loop = function("""
        .L_x_0:
        BRA.DIV UR4, `(.L_x_2)
        SHFL.BFLY PT, R0, R1, 0x1, 0x1f
        .L_x_1:
        BRA.U UP0, `(.L_x_0)
        EXIT
        .L_x_2:
        WARPSYNC.COLLECTIVE R4, `(.L_x_3)
        .L_x_3:
        BRA `(.L_x_1)
    """)
    assert [len(body) for body in texts(loop)] == [3]


def test_the_loop_that_is_unrolled_furthest_counts():
    """The remainder, the peeled step and the softplus loop before it do not count."""
    ex2, rest = ["MUFU.EX2 R0, R1"], ["FFMA R2, R3, R4, R5"]
    loops = {"softplus": ex2 + 9 * rest, "main": 16 * ex2 + 32 * rest, "remainder": 4 * ex2 + 20 * rest}
    lines = [".L_tile:", *4 * ex2]
    for label, body in loops.items():
        lines += [f".L_{label}:", *body, f"@P0 BRA `(.L_{label})"]
    kernel = Kernel(function("\n".join([*lines, "@P1 BRA `(.L_tile)", "EXIT"])))
    assert [counts.ex2 for counts in kernel.loops.values()] == [1, 16, 4]
    assert kernel.complete
    assert kernel.total()["all"] == (16 + 32 + 1) / 16
    assert kernel.total()["FP32"] == 2


def test_a_loop_that_was_unrolled_whole_counts_with_the_loop_around_it():
    copy = [".L_copy:", "STS [R1], R0", "@P0 BRA `(.L_copy)"]
    lines = [".L_tile:", *8 * ["MUFU.EX2 R0, R1"], *copy, "@P1 BRA `(.L_tile)", "EXIT"]
    kernel = Kernel(function("\n".join(lines)))
    assert kernel.total()["all"] == (8 + 3) / 8


def test_a_missing_pass_shows():
    kernel = Kernel(function(".L_0:\nMUFU.EX2 R0, R1\n@P0 BRA `(.L_0)\nEXIT"), passes=2)
    assert not kernel.complete
