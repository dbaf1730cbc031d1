"""The Triton kernels of the scans without a GPU: by Triton's interpreter, and built for two generations of GPUs."""

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
from lightning_snn.functional.noisy_lif import NOISE_MODES
from lightning_snn.functional.surrogate import SURROGATES
from tests.support.triton import needs_triton

pytestmark = needs_triton
ROOT = Path(__file__).resolve().parents[3]
ARCHITECTURES = (80, 90)


def interpret(*options: str) -> None:
    """Run the tests of interpreted kernels in a process of their own."""
    files = [str(path) for path in sorted(Path(__file__).parent.glob("interpreted*.py"))]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *options, *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


@pytest.mark.slow  # run in CI by name
def test_interpreted_kernels_equal_the_loops():
    interpret()


@pytest.mark.slow
def test_interpreted_kernels_equal_the_loops_in_every_variant():
    interpret("-m", "slow")


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

    from lightning_snn.functional.scans import triton_lif, triton_noisy, triton_rate

    architecture = request.getfixturevalue("architecture")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    target = SimpleNamespace(
        get_current_device=lambda: architecture,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", architecture, 32),
    )
    monkeypatch.setattr(driver, "_active", target)
    found: list[Any] = []
    for module, names in (
        (triton_lif, ("lif_forward", "lif_backward")),
        (triton_rate, ("rate_scan",)),
        (triton_noisy, ("noisy_forward", "noisy_backward")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Building(getattr(module, name), found))
    return found


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


SHAPE = (4, 2, 3, 8, 8)


def build_lif(
    dynamics: Dynamics, surrogate: str, dtype: torch.dtype, learned: bool, shape: tuple[int, ...] = SHAPE
) -> None:
    """Launch the kernels of the LIF scan on tensors without values."""
    from lightning_snn.functional.scans.triton_lif import backward_kernel, forward_kernel

    x, step = empty(*shape, dtype=dtype), empty(*shape[1:])
    channels = empty(shape[2], *[1] * (len(shape) - 3))
    given = (channels, channels, step, step) if learned else (0.9, 1.0, None, None)
    saves_input = dtype.itemsize == 2
    spikes, final, membranes = forward_kernel(x, *given, dynamics, not saves_input)
    gradients, wanted = (spikes, final if learned else None), 3 * (learned,)
    saved = x if saves_input else membranes
    backward_kernel(saved, *given, *gradients, dynamics, surrogate, 0.5, dtype, *wanted)


def build_rate(
    dynamics: Dynamics, surrogate: str, dtype: torch.dtype, learned: bool, shape: tuple[int, ...] = SHAPE
) -> None:
    """Launch the kernel of the rate scan on tensors without values: from rest, and within a window."""
    from lightning_snn.functional.scans.rate_loop import Trace, tangent_is_shared
    from lightning_snn.functional.scans.triton_rate import rate_kernel

    x, step = empty(*shape, dtype=dtype), empty(*shape[1:])
    channels = empty(shape[2], *[1] * (len(shape) - 3))
    tangent = step
    if tangent_is_shared(dynamics):
        tangent = channels if learned else None
    given = (channels, channels) if learned else (0.9, 1.0)
    traces = 3 * [Trace(step, step) if learned else None]
    if not learned and tangent is None:  # linked windows of neurons whose decay is a number
        traces[2] = Trace(None, step)
    for steps, rested in ((0, True), (3, False)):
        rate_kernel(x, *given, step, step, Trace(tangent, step), *traces, steps, rested, dynamics, surrogate, 0.5)


def build_noisy(
    reset: str,
    detached: bool,
    mode: str,
    dtype: torch.dtype,
    learned: bool,
    shape: tuple[int, ...] = SHAPE,
    weighted: bool = False,
) -> None:
    """Launch the kernels of the noisy scan on tensors without values."""
    from lightning_snn.functional.scans.triton_noisy import noisy_backward_kernel, noisy_forward_kernel

    x, dynamics = empty(*shape, dtype=dtype), Dynamics(reset, detach_reset=detached)
    channels = empty(shape[2], *[1] * (len(shape) - 3))
    given = (channels, channels) if learned else (0.9, 1.0)
    noise = empty(shape[0], x[0].numel())
    spikes, standardized, root, _ = noisy_forward_kernel(x, x, *given, noise, None, dynamics, mode)
    scan = (standardized, root, spikes, standardized if weighted else None, noise if mode == "step" else None)
    gradients = (spikes, standardized if learned else None)
    noisy_backward_kernel(*scan, *given, *gradients, 0.5, dynamics, mode, (dtype, dtype), learned, learned)


def assert_without_fusion(built: list[Any], number: int = 2) -> None:
    assert len(built) == number
    for kernel in built:
        assert len(kernel.asm["cubin"]) > 0
        assert "fma" not in kernel.asm["ptx"]


VARIANTS = list(product(RESETS, ORDERS, (False, True), SURROGATES))
MODES = [("subtract", mode) for mode in NOISE_MODES] + [("zero", "moment"), ("zero", "step")]
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_scan_of_spikes = pytest.mark.parametrize("build", [build_lif, build_rate])


@every_scan_of_spikes
@pytest.mark.parametrize(
    ("architecture", "reset", "order", "detached", "surrogate", "dtype", "learned"),
    [
        (80, "subtract", "reset_then_leak", False, "arctangent", torch.float32, False),
        (90, "subtract", "leak_then_reset", False, "sigmoid", torch.bfloat16, True),
        (90, "zero", "reset_then_leak", True, "triangular", torch.float16, True),
    ],
)
def test_kernels_are_built_without_fused_multiply_adds(
    built, architecture, build, reset, order, detached, surrogate, dtype, learned
):
    build(Dynamics(reset, order, detached), surrogate, dtype, learned)
    assert_without_fusion(built)


@pytest.mark.parametrize(
    ("architecture", "reset", "mode", "dtype", "learned"),
    [(80, "subtract", "moment", torch.float32, False), (90, "zero", "step", torch.bfloat16, True)],
)
def test_noisy_kernels_are_built_without_fused_multiply_adds(built, architecture, reset, mode, dtype, learned):
    build_noisy(reset, False, mode, dtype, learned)
    assert_without_fusion(built)


@pytest.mark.slow
@every_architecture
@every_scan_of_spikes
@pytest.mark.parametrize("learned", [False, True], ids=["numbers", "learned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("reset", "order", "detached", "surrogate"), VARIANTS)
def test_every_variant_is_built(built, architecture, build, reset, order, detached, surrogate, dtype, learned):
    build(Dynamics(reset, order, detached), surrogate, dtype, learned)
    assert_without_fusion(built)


@pytest.mark.slow
@every_architecture
@pytest.mark.parametrize("weighted", [False, True], ids=["iwst", "another_estimator"])
@pytest.mark.parametrize("learned", [False, True], ids=["numbers", "learned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize(("reset", "mode"), MODES)
def test_every_noisy_variant_is_built(built, architecture, reset, mode, detached, dtype, learned, weighted):
    build_noisy(reset, detached, mode, dtype, learned, weighted=weighted)
    assert_without_fusion(built)


LARGE = (3, 2**16, 2**16)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        (90, LARGE),
        *(
            pytest.param(architecture, shape, marks=pytest.mark.slow)
            for architecture in ARCHITECTURES
            for shape in ((1, 1, 1), (2**20, 2**12, 3))
        ),
        pytest.param(80, LARGE, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_sequences_of_any_length_and_number_of_neurons_are_built(built, architecture, shape):
    build_lif(Dynamics(), "arctangent", torch.bfloat16, learned=True, shape=shape)
    build_rate(Dynamics(detach_reset=True), "arctangent", torch.bfloat16, learned=True, shape=shape)
    build_noisy("subtract", False, "step", torch.bfloat16, learned=True, shape=shape)
    assert_without_fusion(built, 6)


@pytest.mark.parametrize("architecture", [90])
def test_with_fusion_kernels_would_hold_fused_multiply_adds(built, architecture, monkeypatch):
    from lightning_snn.functional.scans import triton_lif, triton_noisy, triton_rate

    for module in (triton_lif, triton_rate, triton_noisy):
        monkeypatch.setattr(module, "OPTIONS", {"enable_fp_fusion": True})
    build_lif(Dynamics(), "arctangent", torch.float32, learned=False)
    build_rate(Dynamics(), "arctangent", torch.float32, learned=False)
    build_noisy("subtract", False, "moment", torch.float32, learned=False)
    assert sum("fma" in kernel.asm["ptx"] for kernel in built) > 3
