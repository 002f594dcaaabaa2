"""What the C library does with memory that was freed."""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

# of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MAPPED = 32 * 1024 * 1024  # the most that glibc takes on 64 bits
_NEVER = 2**31 - 1
_OF_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Has this process keep freed memory for what comes next, where its C library is glibc.

    A gradient step over thousands of items frees and takes the same few megabytes again and again.
    glibc gives such pieces back to the system, which then hands out and clears new pages: a sixth
    of the time of a step over 3,180 items (``benchmarks/freed_memory.py``). The process does not
    shrink any more until it ends; what is computed stays the same to the last bit.

    Returns:
        Whether it does; False with another C library, and where the environment has settings of its
        own for glibc's allocator.
    """
    if any(name in os.environ for name in _OF_THE_USER):
        return False
    try:
        library = ctypes.CDLL(None)
        if not hasattr(library, "gnu_get_libc_version"):
            return False
        mapped = library.mallopt(_MMAP_THRESHOLD, _LARGEST_MAPPED)
        return bool(mapped and library.mallopt(_TRIM_THRESHOLD, _NEVER))
    except (AttributeError, OSError, TypeError):
        return False
