"""The most memory a call needs beside its inputs.

On a GPU torch counts it. On a CPU the call is made in a process of its own, forked from a server that has everything
imported, and the kernel's record of its resident memory is compared with what it was before the call."""

import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.contenders import IMAGES, WITHOUT_KERNELS
from benchmarks.problem import Case, Contender, Problem
from benchmarks.rivals import load
from benchmarks.timing import peak_bytes

PAGE = os.sysconf("SC_PAGE_SIZE")


def peak(contender: str, case: Case, direction: str, device: str) -> int:
    """Bytes. Raises `Missing` where the contender cannot take part."""
    if device == "cuda":
        return peak_bytes(lambda one: one.call(direction), prepare(contender, case, device))
    # Every block of 128 KiB or more goes back when it is freed, so that resident memory is living memory.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(128 << 10)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(growth, contender, case, direction).result()


def prepare(contender: str, case: Case, device: str) -> Contender:
    makers = IMAGES | WITHOUT_KERNELS
    return makers[contender](Problem.draw(case, device, seed=0), device, load(device))


def growth(contender: str, case: Case, direction: str) -> int:
    prepare(contender, case.tiny(), "cpu").call(direction)  # threads, their stacks, code that is loaded when first used
    one = prepare(contender, case, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the record starts again at what is resident now
    before = resident()
    one.call(direction)
    return max(0, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def resident() -> int:
    return PAGE * int(Path("/proc/self/statm").read_text().split()[1])
