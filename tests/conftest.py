"""Set-up of every test: no W&B uploads, fixed seeds, one thread per worker, and the optional real data."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

# tests that run at the same time have one core each, and so have the processes that they start
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from tests.support.processes import stop_other_process

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_sessionfinish() -> None:
    stop_other_process()


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of every later collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_collectstart() -> None:
    """Seed what test modules draw while they are imported: layers in the parameters of a test, for one."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def plain_loaders() -> Iterator[None]:
    """Undo the patches that Lightning leaves on loaders if creating one raises an error."""
    kinds = (DataLoader, BatchSampler)
    before = [
        (kind, name, vars(kind).get(name)) for kind in kinds for name in ("__init__", "__setattr__", "__delattr__")
    ]
    yield
    for kind, name, method in before:
        if vars(kind).get(name) is not method:
            delattr(kind, name) if method is None else setattr(kind, name, method)
        if f"__old{name}" in vars(kind):
            delattr(kind, f"__old{name}")


@pytest.fixture
def float64_by_default(fixed_seed: None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with real recordings next to the checkout; skip the test if there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the optional data folder `shared/data` is not next to this checkout")
    return folder


@pytest.fixture(scope="session")
def memory() -> ModuleType:
    """Return the module that measures memory."""
    return importlib.import_module("lightning_snn.metrics.memory")
