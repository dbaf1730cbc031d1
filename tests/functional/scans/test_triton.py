"""The Triton kernels of the LIF scan without a GPU: by Triton's interpreter, and built for two generations of GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_snn.functional import Dynamics
from lightning_snn.functional.dynamics import ORDERS, RESETS
from lightning_snn.functional.surrogate import SURROGATES
from tests.support.triton import needs_triton

pytestmark = needs_triton
ROOT = Path(__file__).resolve().parents[3]
ARCHITECTURES = (80, 90)


def test_interpreted_kernels_equal_the_loop():
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(Path(__file__).parent)]
    command[-1] += "/interpreted.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


class Building:
    """Stands in for a kernel, and builds what would be launched."""

    def __init__(self, kernel: Any, built: list[Any]) -> None:
        self.kernel = kernel
        self.built = built

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def build(*arguments: Any, **options: Any) -> None:
            self.built.append(self.kernel.warmup(*arguments, grid=grid, **options))

        return build


@pytest.fixture
def built(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the kernels that the launchers ask for, built for the architecture of the test, on a machine without it.

    The arguments go through all that Triton does with them before it launches a kernel.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from lightning_snn.functional.scans import triton_lif

    architecture = request.getfixturevalue("architecture")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    target = SimpleNamespace(
        get_current_device=lambda: architecture,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", architecture, 32),
    )
    monkeypatch.setattr(driver, "_active", target)
    found: list[Any] = []
    for name in ("lif_forward", "lif_backward"):
        monkeypatch.setattr(triton_lif, name, Building(getattr(triton_lif, name), found))
    return found


def build(
    dynamics: Dynamics, surrogate: str, dtype: torch.dtype, learned: bool, shape: tuple[int, ...] = (4, 2, 3, 8, 8)
) -> None:
    """Launch both kernels on tensors without values."""
    from lightning_snn.functional.scans.triton_lif import backward_kernel, forward_kernel

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, step = empty(*shape, dtype=dtype), empty(*shape[1:])
    channels = empty(shape[2], *[1] * (len(shape) - 3))
    given = (channels, channels, step, step) if learned else (0.9, 1.0, None, None)
    spikes, final, membranes = forward_kernel(x, *given, dynamics, True)
    if not learned:
        forward_kernel(x, *given, dynamics, False)
    wanted = (learned, learned, learned)
    backward_kernel(membranes, *given, spikes, final if learned else None, dynamics, surrogate, 0.5, dtype, *wanted)


def assert_without_fusion(built: list[Any], number: int) -> None:
    assert len(built) == number
    for kernel in built:
        assert len(kernel.asm["cubin"]) > 0
        assert "fma" not in kernel.asm["ptx"]


VARIANTS = list(product(RESETS, ORDERS, (False, True), SURROGATES))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("reset", "order", "detached", "surrogate"), VARIANTS)
def test_every_variant_is_built_without_fused_multiply_adds(built, architecture, reset, order, detached, surrogate):
    build(Dynamics(reset, order, detached), surrogate, torch.bfloat16, learned=True)
    assert_without_fusion(built, 2)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("learned", [False, True], ids=["numbers", "learned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("reset", "order", "detached", "surrogate"), VARIANTS)
def test_every_variant_of_every_dtype_is_built(built, architecture, reset, order, detached, surrogate, dtype, learned):
    build(Dynamics(reset, order, detached), surrogate, dtype, learned)
    assert_without_fusion(built, 2 if learned else 3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("learned", [False, True], ids=["numbers", "learned"])
def test_dtypes_and_numbers_are_built(built, architecture, dtype, learned):
    build(Dynamics(), "sigmoid", dtype, learned)
    assert_without_fusion(built, 2 if learned else 3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(3, 2**16, 2**16), (1, 1, 1), (2**20, 2**12, 3)], ids=str)
def test_sequences_of_any_length_and_number_of_neurons_are_built(built, architecture, shape):
    build(Dynamics(), "arctangent", torch.bfloat16, learned=True, shape=shape)
    assert_without_fusion(built, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_fusion_a_kernel_would_hold_fused_multiply_adds(built, architecture, monkeypatch):
    from lightning_snn.functional.scans import triton_lif

    monkeypatch.setattr(triton_lif, "OPTIONS", {"enable_fp_fusion": True})
    build(Dynamics(), "arctangent", torch.float32, learned=False)
    assert any("fma" in kernel.asm["ptx"] for kernel in built)
