"""Small hand-written PTX kernels: their results, refusals and counts."""

import struct
from pathlib import Path

import pytest
import torch
from control_flow import parse as parse_sass
from ptx import parse
from ptx_launcher import Counts, Launcher, arguments_of, tagged
from sass_counts import join

HEADER = ".version 9.0\n.target sm_80\n.address_size 64\n"
REGISTERS = ".reg .pred %p<4>;\n.reg .b32 %r<12>;\n.reg .f32 %f<6>;\n.reg .b64 %rd<8>;\n.reg .b16 %h<4>;\n"
# %rd1: the address of element %tid.x of the first argument.
OWN_ELEMENT = """
    ld.param.u64 %rd0, [kernel_param_0];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %rd1, %r0, 4;
    add.s64 %rd1, %rd0, %rd1;
"""


def kernel_of(body, declarations=""):
    text = f"{HEADER}{declarations}.entry kernel(\n.param .u64 kernel_param_0,\n.param .u64 kernel_param_1\n)\n"
    (kernel,) = parse(f"{text}.maxntid 64, 1, 1\n{{\n{REGISTERS}{body}\nret;\n}}\n")
    return kernel


def launched(body, *tensors, declarations="", threads=32, blocks=1, shared=0, mode="plain"):
    launcher = Launcher(kernel_of(body, declarations), "test.ptx", mode)
    arguments = arguments_of(*((f"t{i}", t) for i, t in enumerate(tensors)))
    pointers = [t.data_ptr() for t in tensors] + [0] * (2 - len(tensors))
    launcher.launch("kernel", tagged(struct.pack("<2Q", *pointers), arguments), arguments, blocks, threads, shared)
    return launcher


def computed(body, dtype=torch.int32, declarations="", shared=0):
    """The value of %r1 in each of 32 threads."""
    out = torch.zeros(32, dtype=torch.int32)
    launched(f"{OWN_ELEMENT}{body}\nst.global.u32 [%rd1], %r1;", out, declarations=declarations, shared=shared)
    return out.view(dtype)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("sub.s32 %r2, %r0, 5; shr.s32 %r1, %r2, 1;", [(t - 5) >> 1 for t in range(32)]),
        ("sub.s32 %r2, %r0, 5; shr.u32 %r1, %r2, 28;", [15 if t < 5 else 0 for t in range(32)]),
        ("shl.b32 %r1, %r0, 32;", [0] * 32),
        ("mad.lo.s32 %r1, %r0, %r0, 7;", [t * t + 7 for t in range(32)]),
        ("div.u32 %r1, 100, 7; rem.u32 %r2, 100, 7; add.s32 %r1, %r1, %r2;", [14 + 2] * 32),
        ("setp.lt.u32 %p0, %r0, 9; selp.b32 %r1, 3, 4, %p0;", [3] * 9 + [4] * 23),
        *((f"sub.s32 %r2, %r0, 9; cvt.rn.f32.s32 %f0, %r2; cvt.rn.{half}.f32 %h0, %f0; mov.b16 %h1, 0; "
           f"setp.lt.{half} %p0, %h0, %h1; selp.b32 %r1, 3, 4, %p0;", [3] * 9 + [4] * 23) for half in ("f16", "bf16")),
        ("shfl.sync.bfly.b32 %r1, %r0, 5, 31, -1;", [t ^ 5 for t in range(32)]),
        ("add.s32 %r2, %r0, 3; shfl.sync.idx.b32 %r1|%p1, %r0, %r2, 31, -1;", [(t + 3) % 32 for t in range(32)]),
        ("mov.b32 {%h0, %h1}, %r0; mov.b32 %r1, {%h1, %h0};", [t << 16 for t in range(32)]),
        ("cvt.rn.f32.u32 %f0, %r0; mul.f32 %f0, %f0, 0fBF000000; cvt.rni.s32.f32 %r1, %f0;",
         [round(-t / 2) for t in range(32)]),
        ("mov.f32 %f0, 0f7FC00000; cvt.rzi.s32.f32 %r1, %f0;", [0] * 32),
        ("{ .reg .b32 %r1; mov.u32 %r1, 9; } mov.u32 %r1, 4;", [4] * 32),
        ("shl.b32 %r2, %r0, 16; or.b32 %r2, %r2, 65535; add.s16x2 %r1, %r2, 65538;",
         [(t + 1) << 16 | 1 for t in range(32)]),
        ("sub.s32 %r2, %r0, 5; bfe.s32 %r1, %r2, 1, 3;", [((t - 5 >> 1) + 4) % 8 - 4 for t in range(32)]),
        ("sub.s32 %r2, %r0, 5; bfe.s32 %r1, %r2, 28, 9;", [-1 if t < 5 else 0 for t in range(32)]),
        ("bfe.u32 %r1, %r0, 1, 3;", [t >> 1 & 7 for t in range(32)]),
        ("mov.u32 %r2, 65535; bfi.b32 %r1, %r0, %r2, 4, 3;", [0xFF8F | (t & 7) << 4 for t in range(32)]),
        ("bfi.b32 %r1, %r0, 3, 30, 8;", [((t & 3) << 30 | 3) - ((t & 2) << 31) for t in range(32)]),
    ],
)  # fmt: skip
def test_integers(body, expected):
    assert computed(body).tolist() == expected


def test_a_launch_leaves_no_stacks():
    """A process has at most 65,530 memory mappings, and a stack takes two."""

    def mappings():
        return Path("/proc/self/maps").read_text().count("\n")

    before = mappings()
    launched("mov.u32 %r0, 1;", threads=64)
    assert mappings() - before < 64


def test_floats():
    halves = "cvt.rn.f32.u32 %f0, %r0; mul.f32 %f0, %f0, 0f3DCCCCCD;"
    given = torch.arange(32, dtype=torch.float32) * torch.tensor(0.1)
    bfloat16 = computed(f"{halves} cvt.rn.bf16.f32 %h0, %f0; cvt.f32.bf16 %f1, %h0; mov.b32 %r1, %f1;", torch.float32)
    assert torch.equal(bfloat16, given.bfloat16().float())
    half = computed(f"{halves} cvt.rn.f16.f32 %h0, %f0; cvt.f32.f16 %f1, %h0; mov.b32 %r1, %f1;", torch.float32)
    assert torch.equal(half, given.half().float())
    exp2 = computed(f"{halves} ex2.approx.ftz.f32 %f1, %f0; mov.b32 %r1, %f1;", torch.float32)
    torch.testing.assert_close(exp2, torch.exp2(given), rtol=2**-22, atol=0)
    tiny = computed("mov.f32 %f0, 0f00000001; add.ftz.f32 %f1, %f0, %f0; mov.b32 %r1, %f1;", torch.float32)
    assert not tiny.any()


def test_matrices_in_shared_memory_keep_the_layout_of_the_lanes():
    """Lane t holds halves 2 t and 2 t + 1 of an 8 x 8 matrix in row order; of a transposed one, in column order."""
    body = """
        and.b32 %r3, %r0, 7;
        shl.b32 %r3, %r3, 4;
        mul.lo.s32 %r4, %r0, 131074;
        add.s32 %r4, %r4, 65536;
        stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {%r4};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r1}, [%r3];
    """
    halves = computed(body, torch.int16, shared=128)
    matrix = torch.arange(64, dtype=torch.int16).view(8, 8)
    assert torch.equal(halves.view(8, 8), matrix.T.contiguous())


def test_shared_memory_is_nan_until_it_is_written():
    values = computed("ld.shared.b32 %r1, [64];", torch.float32, shared=128)
    assert values.isnan().all()


def test_arrays_in_shared_memory_have_places_of_their_own():
    """Sized arrays come first; the unsized one follows, 16-byte aligned."""
    arrays = ".shared .align 4 .b8 one[20];\n.shared .align 8 .b8 two[8];\n.extern .shared .align 16 .b8 rest[];\n"
    body = "mov.u32 %r2, one; mov.u32 %r3, two; mov.u32 %r4, rest; shl.b32 %r3, %r3, 8; shl.b32 %r4, %r4, 16;"
    places = computed(f"{body} or.b32 %r1, %r2, %r3; or.b32 %r1, %r1, %r4;", declarations=arrays)
    assert set(places.tolist()) == {0 | 24 << 8 | 32 << 16}
    with pytest.raises(RuntimeError, match="shared memory: bytes 96 to 99 of 96"):
        computed(f"{body} mov.u32 %r2, rest; ld.shared.b32 %r1, [%r2+64];", declarations=arrays, shared=64)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("st.global.u32 [%rd1+4], %r0;", r"thread 31 at test.ptx:\d+: global memory: bytes 128 to 131 of argument 0, "
                                         r"which has 128"),
        ("st.global.u32 [%rd1+-4], %r0;", "thread 0 at .*: global memory: bytes -4 to -1 of argument 0"),
        ("st.global.u32 [%rd1+2], %r0;", "global memory: 4 bytes at 0x.*, which is no multiple of 4"),
        ("mov.u64 %rd2, 64; st.global.u32 [%rd2], %r0;", "an address that was computed from no argument"),
        ("ld.shared.b32 %r1, [126];", "shared memory: bytes 126 to 129 of 128"),
        ("ld.shared.v2.b32 {%r1, %r2}, [4];", "shared memory: 8 bytes at 4, which is no multiple of 8"),
        ("div.u32 %r1, %r0, %r0;", "thread 0 at .*: division by zero"),
        ("setp.lt.u32 %p0, %r0, 9; @%p0 bar.sync 0;", "deadlock"),
        ("shfl.sync.bfly.b32 %r1, %r0, 1, 31, 255;", "a shuffle of fewer than 32 lanes"),
    ],
)  # fmt: skip
def test_is_refused(body, words):
    with pytest.raises(RuntimeError, match=words):
        launched(OWN_ELEMENT + body, torch.zeros(32, dtype=torch.int32), shared=128)


def test_an_argument_does_not_reach_into_its_neighbour():
    """Both are adjacent parts of one tensor."""
    whole = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"128 to 131 of argument 0, which has 128 \(arguments: 0 = t0, 1 = t1\)"):
        launched(f"{OWN_ELEMENT}st.global.u32 [%rd1+128], %r0;", whole[:32], whole[32:])


def test_a_copy_has_not_arrived_before_the_wait():
    start = "shl.b32 %r2, %r0, 2; cp.async.ca.shared.global [%r2], [%rd1], 4, 4; cp.async.commit_group;"
    wait, read, keep = "cp.async.wait_group 0;", "ld.shared.b32 %r1, [%r2];", "st.global.u32 [%rd1], %r1;"
    values = torch.arange(32, dtype=torch.int32)
    launched(OWN_ELEMENT + start + wait + read + keep, values, shared=128)
    assert values.tolist() == list(range(32))
    launched(OWN_ELEMENT + start + read + wait + keep, values, shared=128)
    assert values.view(torch.float32).isnan().all()
    with pytest.raises(RuntimeError, match="a thread ends without having waited for the copy"):
        launched(OWN_ELEMENT + start, values, shared=128)


DIVERGING = """
    setp.lt.u32 %p0, %r0, 16;
    @%p0 bra $LOW;
    add.s32 %r2, %r0, 1;
    bra.uni $LOOP;
$LOW:
    add.s32 %r2, %r0, 2;
$LOOP:
    sub.s32 %r2, %r2, 1;
    setp.gt.s32 %p1, %r2, 0;
    @%p1 bra $LOOP;
    st.global.u32 [%rd1], %r2;
"""


def test_a_warp_executes_what_any_of_its_lanes_does():
    """Both sides of a branch count once, a loop as often as its busiest lane, a store of neighbours as four sectors."""
    out = torch.zeros(64, dtype=torch.int32)
    counts = launched(OWN_ELEMENT + DIVERGING, out, threads=64, mode="count").counts()
    # Entry; from lane 16 on; below; the loop; the store. The second warp's threads are all above 16.
    assert counts.blocks == [2, 2, 1, 32 + 64, 2]
    assert counts.threads == [64, 48, 16, sum(t + 2 for t in range(16)) + sum(t + 1 for t in range(16, 64)), 64]
    assert sum(counts.bytes[1]) == 64 * 4
    assert sum(counts.sectors[1]) == 2 * 4
    assert sum(counts.bytes[0]) == 0


def sass(text):
    lines = [line.strip() for line in text.strip().splitlines()]
    code, address = [], 0
    for line in lines:
        if line.endswith(":"):
            code.append(line)
        elif line.startswith("@@"):
            code.append(f'\t//## File "/somewhere/a.cu", line {line[2:]}')
        else:
            code.append(f"        /*{address:04x}*/    {line} ;")
            address += 16
    return parse_sass("\n".join(['\t.section\t.text.kernel,"ax",@progbits', ".text.kernel:", *code]))[0]


LOOP = """
    .loc 1 3 1
    mov.u32 %r2, 12;
$LOOP:
    .loc 1 5 1
    ex2.approx.ftz.f32 %f0, %f0;
    .loc 1 6 1
    sub.s32 %r2, %r2, 1;
    setp.gt.s32 %p1, %r2, 0;
    @%p1 bra $LOOP;
    .loc 1 9 1
    st.global.u32 [%rd1], %r2;
"""
UNROLLED = "@@5\nMUFU.EX2 R0, R0\n" * 4


def counts_of_loop():
    """Counts of 64 threads (two warps) that run the loop 12 times."""
    (kernel,) = parse(f'.file 1 "/elsewhere/a.cu"\n.entry kernel(\n.param .u64 p\n)\n{{\n{REGISTERS}{LOOP}\nret;\n}}\n')
    none = ([], [])
    return kernel, Counts([2, 24, 2], [64, 768, 64], none, none)


def test_an_unrolled_loop_is_executed_less_often():
    machine = sass(f"@@3\nMOV R1, 0xc\n.L_x_0:\n{UNROLLED}@@6\n@P0 BRA `(.L_x_0)\n@@9\nSTG.E [R2], R1\nEXIT\n")
    executed = join(*counts_of_loop(), machine, threads=64)
    assert executed.residual == 0
    assert executed.low == pytest.approx(executed.high, rel=1e-3)
    assert executed.total == pytest.approx(2 * (1 + 3 * 5 + 2), rel=1e-3)
    assert executed.opcodes["MUFU.EX2"] == pytest.approx(24, rel=1e-3)


def test_what_the_counts_leave_open_lies_between_the_bounds():
    """With an unrolled loop and its remainder, 12 may be 3 times 4, or 2 times 4 plus 4."""
    rest = ".L_x_1:\n@@5\nMUFU.EX2 R0, R0\n@@6\n@P1 BRA `(.L_x_1)\n"
    machine = sass(
        f"@@3\nMOV R1, 0xc\n.L_x_0:\n{UNROLLED}@@6\n@P0 BRA `(.L_x_0)\n{rest}@@9\nSTG.E [R2], R1\nEXIT\n"
    )
    executed = join(*counts_of_loop(), machine, threads=64)
    for unrolled, single in ((2, 4), (1, 8)):
        total = 2 * (1 + unrolled * 5 + single * 2 + 2)
        assert executed.low <= total * 1.001
        assert total <= executed.high * 1.001
