"""Freed memory is reused without new mappings."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap

import pytest

from tests.support.processes import PATIENCE

# page faults of eight rounds of two new tensors of 16 MiB, after twenty rounds
SCRIPT = textwrap.dedent(
    """
    import resource, sys
    import torch
    from lightning_snn.cpu import keep_freed_memory

    if sys.argv[1] == "keep":
        assert keep_freed_memory()
    torch.set_num_threads(1)

    def rounds(count):
        for _ in range(count):
            torch.ones(4 << 20) + torch.ones(4 << 20)

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    rounds(20)
    before = faults()
    rounds(8)
    print(faults() - before)
    """
)


def faults(mode: str) -> int:
    # glibc maps blocks above this size; without the variable, it raises the size over time
    environment = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return int(finished.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_reused_without_page_faults():
    assert faults("keep") < 200
    assert faults("leave") > 8 * 2000
