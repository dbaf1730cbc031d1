"""The choice between kernels and the loop: devices, dtypes, the environment variable, and what is reported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import lightning_snn
from lightning_snn.functional import lif
from lightning_snn.functional.scans import choice
from lightning_snn.functional.scans.choice import VARIABLE, KernelChoice, kernels, scan_choice

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that can run the kernels."""
    monkeypatch.setattr(choice, "_problem", lambda device: None)


def test_a_cpu_takes_the_loop_whatever_is_requested_and_says_why(monkeypatch):
    for requested in (None, "triton"):
        if requested:
            monkeypatch.setenv(VARIABLE, requested)
        found = scan_choice(CPU, torch.float32)
        assert found == KernelChoice("loop", "Triton kernels run on CUDA devices, but the device is cpu")
        assert lif(torch.ones(3, 1), 0.9)[0].sum() == 2


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("requested", [None, "triton", ""])
def test_a_gpu_takes_the_kernels_automatically(requested, monkeypatch):
    if requested is not None:
        monkeypatch.setenv(VARIABLE, requested)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert scan_choice(GPU, dtype).implementation == "triton"
    assert scan_choice(GPU, torch.float64) == KernelChoice(
        "loop", "Triton kernels hold their state in float32, but the input is torch.float64"
    )


@pytest.mark.usefixtures("gpu")
def test_the_variable_chooses_the_loop(monkeypatch):
    monkeypatch.setenv(VARIABLE, "loop")
    assert scan_choice(GPU, torch.float32) == KernelChoice("loop", "LIGHTNING_SNN_KERNELS=loop")


def test_another_value_of_the_variable_is_refused_by_name(monkeypatch):
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(ValueError, match="variable LIGHTNING_SNN_KERNELS to be 'loop' or 'triton', but got 'cuda'"):
        lif(torch.ones(3, 1), 0.9)


def test_without_triton_a_gpu_takes_the_loop_unless_kernels_are_requested(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    choice._problem.cache_clear()
    found = scan_choice(GPU, torch.float32)
    assert found.implementation == "loop"
    assert "Triton cannot be imported" in found.reason
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(RuntimeError, match=r"to run on device cuda:0.*Triton cannot be imported.*unset the variable"):
        scan_choice(GPU, torch.float32)
    choice._problem.cache_clear()


def test_an_older_gpu_and_one_of_another_make_take_the_loop(monkeypatch):
    monkeypatch.setattr(choice.importlib, "import_module", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    choice._problem.cache_clear()
    assert scan_choice(GPU, torch.float32) == KernelChoice("loop", "the kernels need compute capability 8.0 or higher")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    choice._problem.cache_clear()
    assert scan_choice(GPU, torch.float32).implementation == "triton"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    choice._problem.cache_clear()
    assert scan_choice(GPU, torch.float32) == KernelChoice(
        "loop", "the kernels are built and tested for NVIDIA GPUs only"
    )
    choice._problem.cache_clear()


@pytest.mark.usefixtures("gpu")
def test_the_report_names_every_scan_and_gives_a_reason():
    found = lightning_snn.kernels("cuda:0")
    assert {name: each.implementation for name, each in found.items()} == {
        "lif": "triton",
        "lif with recurrent weights": "loop",
        "lif with a surrogate of your own": "loop",
        "lif_rate": "triton",
        "noisy_lif": "triton",
        "noisy_lif with recurrent weights": "loop",
    }
    assert all(each.reason for each in found.values())


def test_the_report_is_about_the_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(choice, "_problem", lambda device: None)
    for available, implementation in ((False, "loop"), (True, "triton")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert kernels()["lif"].implementation == implementation


def test_importing_the_scans_imports_neither_triton_nor_the_compiler():
    """Triton chooses its interpreter when it is imported, and both take seconds."""
    code = "import sys, lightning_snn.functional; print({'triton', 'torch._dynamo'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
