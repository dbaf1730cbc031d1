"""The processors of this machine, and memory settings that make training on them faster."""

from __future__ import annotations

import ctypes
import os
import platform

# parameters of mallopt, from malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Make the C library reuse freed memory for the next tensor, for the rest of the process.

    By default, glibc maps each tensor of several MiB anew and unmaps it when it is freed. The page faults can take
    longer than the arithmetic. With this setting, large tensors come from the heap, and the heap does not shrink: the
    process keeps its peak memory until it ends. Every recipe calls this function.

    Returns:
        True on Linux with glibc, if the settings took effect. On other systems the function does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    never, grow_by = -1, 64 << 20
    done = [set_option(*setting) for setting in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, never), (_M_TOP_PAD, grow_by))]
    return done == [1, 1, 1]


def usable_processors() -> int:
    """Return the number of processors that this process may use: a batch system often grants fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
