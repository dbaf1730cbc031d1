"""Triton in tests: it is installed on few machines without a GPU."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import pytest

HAS_TRITON = importlib.util.find_spec("triton") is not None
REASON = "Triton is not installed: `pip install triton` where PyTorch is its build for CPUs"
IMPORT_TRITON = tuple(f"lightning_snn.functional.scans.triton_{name}" for name in ("kernels", "lif"))

IMPORT_SPIKINGJELLY = ("lightning_snn.convert.spikingjelly_carried",)

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason=REASON)


def import_or_skip(name: str) -> ModuleType:
    """Import a module of the package; skip the test if the module needs Triton or SpikingJelly and there is none."""
    if name in IMPORT_TRITON and not HAS_TRITON:
        pytest.skip(REASON)
    if name in IMPORT_SPIKINGJELLY:
        pytest.importorskip("spikingjelly")
    return importlib.import_module(name)
