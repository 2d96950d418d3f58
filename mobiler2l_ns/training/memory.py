"""Memory of a training: what a CPU keeps between two steps, and a GPU's that is too small."""

import ctypes
import sys
from contextlib import contextmanager
from typing import Iterator

import torch

from mobiler2l_ns.errors import UserError

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


@contextmanager
def gpu_memory(what: str, smaller: str) -> Iterator[None]:
    """Inside, too little memory of a GPU is a UserError.

    Args:
        what: What has to fit into it.
        smaller: Options that make it smaller.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"{what} does not fit into the GPU's memory: end other programs that use the GPU, or pass smaller "
            f"{smaller}."
        ) from error
