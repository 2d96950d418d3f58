"""Memory of a training step on a CPU."""

import ctypes
import sys

# Parameters of mallopt in glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT = 2**31 - 1  # bytes of freed memory, the largest value
LARGEST_HEAP_BLOCK = 2**25  # the largest value that glibc allows


def keep_freed_memory() -> None:
    """Lets this process keep the memory that a step frees for the next step.

    Otherwise glibc returns it to the system at the end of a step, and the next step waits for as many empty pages: a
    sixth of its time. Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)
    mallopt(M_TRIM_THRESHOLD, KEPT)
    mallopt(M_TOP_PAD, LARGEST_HEAP_BLOCK)
