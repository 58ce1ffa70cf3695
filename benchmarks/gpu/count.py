"""Counts all instructions that a GPU executes for a scan, without a GPU.

    python -m benchmarks.gpu.count 16,4,192,1024,16 [SHAPE ...] [--dtype bfloat16] [--backend cuda] [--sm 90]

A shape is B,K,D,L,N: images along K > 1 routes, which are summed, or plain sequences. The PTX of a few blocks of each
launch is executed, and every warp instruction is counted. Instructions of the machine code are derived from these
counts (tests/ptx/sass_counts.py), within the printed bounds. Figures are warp instructions per (step, state) of 32
lanes; bytes are those between a multiprocessor and the rest of memory, per (step, channel)."""

from collections import Counter
from collections.abc import Iterable

from benchmarks.gpu.assumptions import ASSUMED
from benchmarks.gpu.kernel_counts import DIRECTIONS, Launch, Shape, arguments, counted

# Heading of a column -> opcodes of the machine code.
COLUMNS = {
    "EX2": ("MUFU.EX2",), "MUFU": ("MUFU.EX2", "MUFU"), "LDS": ("LDS", "LDSM"), "STS": ("STS", "STSM"),
    "LDG": ("LDG", "LDGSTS"), "STG": ("STG", "RED", "REDG"), "SHFL": ("SHFL",), "BAR": ("BAR",),
}  # fmt: skip


def rows(shape: Shape, launches: Iterable[Launch]) -> list[tuple[str, int, dict[str, float]]]:
    """(name, number of launches, figures) of each kernel of a direction, and of each whole direction."""
    found = []
    launches = list(launches)
    for direction in DIRECTIONS:
        own = [launch for launch in launches if launch.direction == direction]
        for kernel in dict.fromkeys(launch.kernel for launch in own):
            some = [launch for launch in own if launch.kernel == kernel]
            found.append((f"  {kernel}", len(some), figures(shape, some)))
        if own:
            found.append((direction, len(own), figures(shape, own)))
    return found


def figures(shape: Shape, launches: list[Launch]) -> dict[str, float]:
    """Instructions per (step, state); bytes per (step, channel)."""
    opcodes: Counter[str] = sum((launch.opcodes or Counter() for launch in launches), Counter())
    pairs, steps = shape.warp_pairs, 32 * shape.warp_pairs / shape.states
    table = {
        "all": sum(launch.instructions for launch in launches) / pairs,
        "low": sum(launch.low or 0 for launch in launches) / pairs,
        "high": sum(launch.high or 0 for launch in launches) / pairs,
        "PTX": sum(launch.ptx or 0 for launch in launches) / pairs,
    }
    table |= {heading: sum(opcodes[o] for o in names) / pairs for heading, names in COLUMNS.items()}
    table["B read"] = sum(launch.bytes_read or 0 for launch in launches) / steps
    table["B written"] = sum(launch.bytes_written or 0 for launch in launches) / steps
    return table


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--backend", default="cuda", choices=("cuda", "triton"))
    parser.add_argument("--triton", metavar="VERSION", help="of Triton; by default the installed version")
    parser.add_argument("--sm", type=int, default=90, choices=sorted(ASSUMED.gpus), help="architecture")
    parser.add_argument("--forward", action="store_true", help="the forward alone, without checkpoints")
    parser.add_argument("--blocks", type=int, default=16, help="blocks executed of each launch, spread over the grid")
    options = parser.parse_args()
    directions = ("forward",) if options.forward else DIRECTIONS
    gpu = ASSUMED.gpus[options.sm]
    for shape in options.shapes:
        launches = counted(shape, options.dtype, options.backend, gpu, options.blocks, directions, options.triton)
        table = rows(shape, launches)
        print(f"{shape} {options.dtype}, {options.backend}, sm_{options.sm}, {gpu.multiprocessors} multiprocessors")
        headings = list(table[0][2])
        print(f"{'':46}{'launches':>9}" + "".join(f"{h:>10}" for h in headings))
        for name, number, values in table:
            print(f"{name[:46]:46}{number:9}" + "".join(f"{values[h]:10.2f}" for h in headings))
        print(f"{'instructions of anchors that no flow explains':46}{max(one.residual or 0 for one in launches):9.1%}")


if __name__ == "__main__":
    main()
