"""The kernels of the noisy scan, run by Triton's interpreter and compared with the loop; see `interpreted.py`."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from lightning_snn.functional import Dynamics, noisy_lif
from lightning_snn.functional.estimators import IWST
from lightning_snn.functional.noisy_lif import NoiseMode
from lightning_snn.functional.scans import triton_noisy
from lightning_snn.functional.scans.choice import VARIABLE, kernels
from lightning_snn.functional.scans.noisy_loop import noisy_backward_loop
from lightning_snn.functional.scans.variants import tensor_and_number
from tests.functional.scans.test_noisy_operators import MODES, QUICK_CHECKS, check_contract
from tests.functional.scans.test_operators import LAYOUTS, OPERATORS, every_layout
from tests.support.triton import count_launches

assert os.environ.get("TRITON_INTERPRET") == "1"
every_mode = pytest.mark.parametrize(("reset", "mode"), MODES)


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the kernels that are launched from now on."""
    monkeypatch.setenv(VARIABLE, "triton")
    return count_launches(monkeypatch, triton_noisy, "noisy_forward", "noisy_backward")


def assert_equals_the_loop(
    mean: Tensor,
    parameters: tuple[float | Tensor, float | Tensor],
    dynamics: Dynamics,
    mode: NoiseMode,
    monkeypatch: pytest.MonkeyPatch,
    lam: float = 0.5,
    weighted: bool = False,
    given: tuple[bool, bool] = (True, True),
) -> None:
    """Compare a scan exactly with the loop, and its gradients with those of the loop in float64 on what it saves."""
    variance = torch.empty_like(mean).copy_(torch.rand(mean.shape) + 0.1)
    seed = torch.initial_seed()
    arguments = (*tensor_and_number(parameters[0]), *tensor_and_number(parameters[1]))
    scans = []
    for implementation in ("triton", "loop"):
        monkeypatch.setenv(VARIABLE, implementation)
        torch.manual_seed(seed)
        scans.append(OPERATORS.noisy_forward(mean, variance, *arguments, None, None, dynamics.reset, mode))
    for got, expected in zip(*scans, strict=True):
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()
        assert got.dtype == expected.dtype
    spikes, standardized, root, draws = scans[0]
    assert 0 < spikes.mean() < 1
    weight = torch.rand_like(standardized) if weighted else None
    # positive, so that the gradient of a parameter is no small sum of large terms
    cotangents = [
        torch.rand_like(each) if use else None for each, use in zip((spikes, standardized), given, strict=True)
    ]
    saved = (standardized, root, spikes, weight, draws if mode == "step" else None)
    monkeypatch.setenv(VARIABLE, "triton")
    names = (lam, dynamics.reset, dynamics.detach_reset, mode, mean.dtype, variance.dtype, True, True)
    found = OPERATORS.noisy_backward(*saved, *arguments, *cotangents, *names)

    def doubled(values: tuple[object, ...]) -> list[object]:
        return [value.double() if isinstance(value, Tensor) else value for value in values]

    exact = noisy_backward_loop(
        *doubled(saved), *doubled(parameters), None, None, *doubled(cotangents), IWST(lam), dynamics, mode, True, True
    )
    for got, expected in zip(found, exact, strict=True):
        tolerance = 1e-6 if got.dtype == torch.float32 else torch.finfo(got.dtype).eps
        largest = float(expected.abs().max())
        assert largest > 0 or len(mean) == 1
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance * largest)


def channels_last(steps: int = 7) -> Tensor:
    return torch.randn(steps, 2, 4, 5, 3).permute(0, 1, 4, 2, 3) + 0.4


def test_the_kernels_are_what_runs(launches):
    assert kernels("cpu")["noisy_lif"].implementation == "triton"
    mean = torch.randn(4, 2, 3, requires_grad=True)
    noisy_lif(mean, mean.square(), 0.9)[0].sum().backward()
    assert launches == ["noisy_forward", "noisy_backward"]


@every_mode
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_values_and_gradients_are_those_of_the_loop(reset, mode, detached, lam, monkeypatch):
    parameters = (torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5)
    assert_equals_the_loop(channels_last(), parameters, Dynamics(reset, detach_reset=detached), mode, monkeypatch, lam)


@every_mode
def test_with_numbers_and_weights_they_are_those_of_the_loop(reset, mode, monkeypatch):
    # more neurons than a program has
    mean = torch.randn(7, 5, 60) + 0.4
    assert_equals_the_loop(mean, (0.9, 0.8), Dynamics(reset), mode, monkeypatch, weighted=True)


@pytest.mark.parametrize("given", [(True, False), (False, True)], ids=["spikes", "z"])
def test_a_gradient_of_the_spikes_or_of_z_alone_is_that_of_the_loop(given, monkeypatch):
    assert_equals_the_loop(channels_last(), (0.9, 0.8), Dynamics(), "moment", monkeypatch, given=given)


@pytest.mark.parametrize(
    "shape", [(), (1,), (3, 1, 1), (5,), (4, 5), (2, 1, 1, 1), (2, 3, 4, 5), (1, 3, 1, 1)], ids=str
)
def test_decay_and_threshold_broadcast_as_in_the_loop(shape, monkeypatch):
    parameters = (torch.rand(shape), torch.rand(shape) + 0.5)
    assert_equals_the_loop(channels_last(), parameters, Dynamics("zero"), "moment", monkeypatch)


@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layouts_and_dtypes_are_those_of_the_loop(layout, dtype, monkeypatch):
    mean = LAYOUTS[layout]().to(dtype)
    if mean.numel():
        assert_equals_the_loop(mean, (torch.rand(3, 1, 1), 0.8), Dynamics(), "step", monkeypatch)
    else:
        mean.requires_grad_()
        beta = torch.rand(3, 1, 1, requires_grad=True)
        gradients = torch.autograd.grad(noisy_lif(mean, mean.square(), beta)[0].sum(), (mean, beta))
        assert gradients[0].shape == mean.shape
        assert torch.equal(gradients[1], torch.zeros(3, 1, 1))


def test_float64_takes_the_loop(launches):
    for dtypes in ((torch.float64, torch.float64), (torch.float32, torch.float64)):
        mean, variance = (torch.rand(4, 2, 3, dtype=dtype) for dtype in dtypes)
        assert noisy_lif(mean, variance, 0.9)[1].dtype == dtypes[0]
    assert launches == []


@every_mode
@pytest.mark.parametrize("estimator", [0.5, "agr", "gumbel_straight_through"])
def test_a_seed_has_the_same_spikes_and_gradients_by_kernel_and_loop(reset, mode, estimator, monkeypatch):
    inputs = [torch.randn(6, 2, 35) + 0.4, torch.rand(6, 2, 35), torch.rand(35), torch.rand(35) + 0.5]
    found = []
    for implementation in ("triton", "loop"):
        monkeypatch.setenv(VARIABLE, implementation)
        leaves = [each.clone().requires_grad_() for each in inputs]
        torch.manual_seed(4)
        outputs = noisy_lif(*leaves, Dynamics(reset), estimator, mode)
        found.append((*outputs, *torch.autograd.grad(outputs[0].sum(), leaves), torch.rand(1)))
    for index, (got, expected) in enumerate(zip(*found, strict=True)):
        tolerance = 0.0 if index < 2 else 2e-6 * float(expected.abs().max())
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


@every_mode
def test_nan_and_infinities_are_those_of_the_loop(reset, mode, monkeypatch):
    mean = torch.randn(9, 3, 4) + 0.5
    mean[4, 1, 2], mean[0, 2, 0], mean[-1, 2, 1] = torch.nan, torch.nan, torch.nan
    mean[2, 0, 0], mean[3, 0, 1], mean[2, 0, 2], mean[5, 0, 2] = torch.inf, -torch.inf, torch.inf, -torch.inf
    variance = torch.rand(9, 3, 4)
    variance[3, 2, 3] = torch.nan
    beta, threshold = torch.tensor([0.9, 0.8, 0.7, torch.nan]), torch.tensor([0.8, torch.nan, 1.0, 0.9])
    for parameters in ((0.9, 0.8), (beta, threshold)):
        found = []
        for implementation in ("triton", "loop"):
            monkeypatch.setenv(VARIABLE, implementation)
            leaves = [each.clone().requires_grad_() for each in (mean, variance)]
            torch.manual_seed(4)
            outputs = noisy_lif(*leaves, *parameters, Dynamics(reset), mode=mode)
            found.append((*outputs, *torch.autograd.grad(outputs[0].sum(), leaves)))
        assert 0 < found[0][0].isnan().float().mean() < 1
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@every_layout
@pytest.mark.parametrize("mode", ["moment", "step"])
def test_the_kernels_keep_the_contract_of_the_operators(layout, mode):
    check_contract(layout, "subtract", mode, True, QUICK_CHECKS)


def test_a_compiled_scan_by_the_kernels_has_the_noise_of_the_eager_one(launches):
    inputs = [torch.randn(5, 2, 3, 6), torch.rand(5, 2, 3, 6)]
    torch._dynamo.reset()
    found = []
    for scan in (torch.compile(noisy_lif, backend="aot_eager", fullgraph=True), noisy_lif):
        leaves = [each.clone().requires_grad_() for each in inputs]
        torch.manual_seed(4)
        spikes, z = scan(*leaves, 0.9)
        found.append((spikes, z, *torch.autograd.grad(spikes.sum(), leaves)))
    assert all(map(torch.equal, *found))
    assert launches == 2 * ["noisy_forward", "noisy_backward"]
