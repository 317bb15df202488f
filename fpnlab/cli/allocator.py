"""Settings of glibc with which the process keeps freed memory for later allocations."""

import ctypes
import os

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Returns whether the C library now keeps freed memory for later allocations.

    XLA:CPU allocates all temporaries of a program at each call and frees them after it. By
    default glibc maps and unmaps such large blocks, and the kernel clears every page again:
    a quarter of the time of a training step of a detector at batch size 32. Call this once, before
    JAX starts its threads (the blocks of threads that already allocate stay as they were). The
    process then holds on to the most memory it ever needed.

    Nothing happens, and the answer is false, where the C library is not glibc.
    """
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):
        return False
    if not glibc:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # M_ARENA_MAX stays as it is: one arena would keep blocks above 64 MiB in threads as well, but
    # make the threads wait for each other (docs/performance.md).
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
