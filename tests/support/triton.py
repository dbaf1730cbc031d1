"""Triton in tests: it is installed on few machines without a GPU."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import pytest

HAS_TRITON = importlib.util.find_spec("triton") is not None
REASON = "Triton is not installed: `pip install triton` where PyTorch is its build for CPUs"
KERNELS = ("lif", "lif_kernels", "noisy", "noisy_kernels", "parts", "rate", "rate_kernels")
IMPORT_TRITON = tuple(f"lightning_snn.functional.scans.triton_{name}" for name in KERNELS)

IMPORT_SPIKINGJELLY = ("lightning_snn.convert.spikingjelly.carried",)

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason=REASON)


def import_or_skip(name: str) -> ModuleType:
    """Import a module of the package; skip the test if the module needs Triton or SpikingJelly and there is none."""
    if name in IMPORT_TRITON and not HAS_TRITON:
        pytest.skip(REASON)
    if name in IMPORT_SPIKINGJELLY:
        pytest.importorskip("spikingjelly")
    return importlib.import_module(name)


def count_launches(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *names: str) -> list[str]:
    """Return a list to which every launch of these kernels by this module adds the name of the kernel."""
    launches: list[str] = []
    for name in names:
        kernel = getattr(module, name)

        class Counted:
            def __getitem__(self, grid: Any, name: str = name, kernel: Any = kernel) -> Any:
                launches.append(name)
                return kernel[grid]

        monkeypatch.setattr(module, name, Counted())
    return launches
