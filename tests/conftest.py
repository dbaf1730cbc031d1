"""What every test shares: no network, no W&B uploads, fixed seeds, one place that finds the optional real data."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real recordings beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the optional data folder `shared/data` is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def memory() -> ModuleType:
    """How benchmarks measure memory."""
    path = Path(__file__).parents[1] / "benchmarks" / "_memory.py"
    spec = importlib.util.spec_from_file_location("_memory", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
