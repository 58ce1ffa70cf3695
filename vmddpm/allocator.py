"""Memory that a loop takes again at every step."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_inside = 0


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Within it the C library keeps what tensors on the CPU free for the next that are made, as torch's allocator on a
    GPU does. By itself it hands the memory of large ones back to the system, whose fresh pages then cost a step of
    sampling a quarter of its time. On leaving the memory is handed back. Does nothing where the C library is not glibc.

    Example:
        >>> with keeping_freed_memory():
        ...     sums = [torch.ones(1000, 1000).sum().item() for _ in range(3)]
    """
    global _inside
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    _inside += 1
    if _inside == 1:
        library.mallopt(_TRIM_THRESHOLD, -1)  # none
        library.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        _inside -= 1
        if _inside == 0:
            # Once set, the thresholds no longer follow what is freed: these are the largest that they would come to.
            library.mallopt(_MMAP_MAX, 1 << 16)
            library.mallopt(_MMAP_THRESHOLD, 32 << 20)
            library.mallopt(_TRIM_THRESHOLD, 64 << 20)
            library.malloc_trim(0)
