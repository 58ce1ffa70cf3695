"""Peak memory of a call, without its inputs.

On a GPU torch counts it. On a CPU the call runs in a separate process, forked from a server that has imported
everything, and the peak resident memory is compared with the resident memory before the call."""

import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.baselines import load
from benchmarks.implementations import IMAGES, WITHOUT_KERNELS
from benchmarks.problem import Case, Implementation, Problem
from benchmarks.timing import peak_bytes

PAGE = os.sysconf("SC_PAGE_SIZE")


def peak(implementation: str, case: Case, direction: str, device: str) -> int:
    """Bytes. Raises `Missing` if the implementation cannot run."""
    if device == "cuda":
        return peak_bytes(lambda one: one.call(direction), prepare(implementation, case, device))
    # Freed blocks of 128 KiB or more are returned at once, so that resident memory is memory in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(128 << 10)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(growth, implementation, case, direction).result()


def prepare(implementation: str, case: Case, device: str) -> Implementation:
    makers = IMAGES | WITHOUT_KERNELS
    return makers[implementation](Problem.draw(case, device, seed=0), device, load(device))


def growth(implementation: str, case: Case, direction: str) -> int:
    prepare(implementation, case.tiny(), "cpu").call(direction)  # start threads, load code
    one = prepare(implementation, case, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current resident memory
    before = resident()
    one.call(direction)
    return max(0, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def resident() -> int:
    return PAGE * int(Path("/proc/self/statm").read_text().split()[1])
