"""What makes training on CPUs faster: memory that stays mapped."""

from __future__ import annotations

import ctypes
import platform

# of malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next tensor, for the rest of the process.

    By default glibc maps every tensor of some MiB afresh and unmaps it when it is freed; that every page of it faults
    can take longer than the arithmetic. Large tensors then come from the heap, which no longer shrinks: what the
    process held at its peak is not given back before it ends. Every recipe calls it.

    Returns:
        whether it took effect: on Linux with glibc. Elsewhere nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    never, grow_by = -1, 64 << 20
    done = [set_option(*setting) for setting in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, never), (_M_TOP_PAD, grow_by))]
    return done == [1, 1, 1]
