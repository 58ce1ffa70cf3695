"""The resident warps of a multiprocessor, from the registers that ptxas assigned to a kernel and the shared memory of
its launch, by the hardware's rules of allocation.

    python -m benchmarks.gpu.occupancy 16,4,192,1024,16 [--dtype bfloat16] [SHAPE ...]

A shape is B,K,D,L,N. Prints, for each GPU of assumptions.py and each kernel of the CUDA backend: the registers of a
thread, the bytes of shared memory of a block, and the resident blocks and warps with their limit."""

from dataclasses import dataclass

from benchmarks.gpu.assumptions import ASSUMED, REGISTER_UNIT, REGISTERS, SHARED_OF_A_BLOCK, SHARED_UNIT, Gpu


@dataclass(frozen=True)
class Residency:
    blocks: int
    warps: int
    limit: str  # registers, shared memory, warps or blocks


def residency(gpu: Gpu, threads: int, registers: int, shared_bytes: int) -> Residency:
    """The residency of one multiprocessor."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    # Each of the four schedulers has a quarter of the registers, and holds whole warps.
    by_registers = (REGISTERS // 4 // max(per_warp, 1)) * 4 // warps
    shared = -(-shared_bytes // SHARED_UNIT) * SHARED_UNIT + SHARED_OF_A_BLOCK
    limits = {
        "registers": by_registers, "shared memory": gpu.shared_bytes // shared, "warps": gpu.warps // warps,
        "blocks": gpu.blocks,
    }  # fmt: skip
    limit = min(limits, key=lambda name: limits[name])
    return Residency(limits[limit], limits[limit] * warps, limit)


def main() -> None:
    from benchmarks.gpu.kernel_counts import arguments, recorded

    options = arguments(__doc__).parse_args()
    for shape in options.shapes:
        print(f"{shape} {options.dtype}")
        header = f"{'GPU':>10} {'kernel':44}{'blocks':>8}{'threads':>9}{'registers':>11}{'shared':>9}"
        print(f"{header}{'resident':>10}{'warps':>7}  limited by")
        for gpu in ASSUMED.gpus.values():
            seen = set()
            for launch in recorded(shape, options.dtype, gpu):
                if launch.kernel in seen:
                    continue
                seen.add(launch.kernel)
                found = residency(gpu, launch.threads, launch.registers, launch.shared_bytes)
                print(
                    f"{gpu.name:>10} {launch.kernel:44}{launch.blocks:8}{launch.threads:9}{launch.registers:11}"
                    f"{launch.shared_bytes:9}{found.blocks:10}{found.warps:7}  {found.limit}"
                )


if __name__ == "__main__":
    main()
