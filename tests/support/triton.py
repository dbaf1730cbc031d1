"""Triton in tests: it is installed on few machines without a GPU."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import pytest

HAS_TRITON = importlib.util.find_spec("triton") is not None
REASON = "Triton is not installed: `pip install triton` where PyTorch is its build for CPUs"
KERNELS = ("lif", "lif_kernels", "noisy", "noisy_kernels", "parts", "rate", "rate_kernels")
IMPORT_TRITON = tuple(f"lightning_snn.functional.scans.triton_{name}" for name in KERNELS)

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason=REASON)


def import_or_skip(name: str) -> ModuleType:
    """Import a module of the package; skip the test if the module needs Triton and there is none."""
    if name in IMPORT_TRITON and not HAS_TRITON:
        pytest.skip(REASON)
    return importlib.import_module(name)
