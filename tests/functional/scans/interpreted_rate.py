"""The Triton kernel of the rate scan, run by Triton's interpreter and compared with the loop; see `interpreted.py`."""

from __future__ import annotations

import os
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_snn.functional import Dynamics, lif
from lightning_snn.functional.dynamics import ORDERS, RESETS
from lightning_snn.functional.eligibility import RateState, lif_rate
from lightning_snn.functional.scans import triton_rate
from lightning_snn.functional.scans.choice import VARIABLE, kernels
from lightning_snn.functional.surrogate import SURROGATES
from tests.functional.scans.test_operators import LAYOUTS, every_layout
from tests.functional.scans.test_rate_operator import QUICK_CHECKS, check_contract, every_dynamics
from tests.support.triton import count_launches

assert os.environ.get("TRITON_INTERPRET") == "1"
BOTH = (True, True)


@pytest.fixture(autouse=True)
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the kernels that are launched from now on."""
    monkeypatch.setenv(VARIABLE, "triton")
    return count_launches(monkeypatch, triton_rate, "rate_scan")


def fields(spikes: Tensor, state: RateState) -> tuple[list[Tensor], list[Tensor]]:
    """Return all results that are exact, then all that are derivatives."""
    return [spikes, state.membrane, state.spikes], [each for each in state.record()[1:] if each is not None]


def links(state: RateState) -> list[Tensor]:
    """Return the derivatives that link a window with its neighbors, which are 0 after a reset to zero."""
    return [each for each in tree_leaves(tuple(state.link_record())) if isinstance(each, Tensor)]


def assert_equals_the_loop(
    parts: list[Tensor],
    parameters: list[float | Tensor],
    dynamics: Dynamics,
    monkeypatch: pytest.MonkeyPatch,
    wanted: tuple[bool, bool] = BOTH,
    windows: bool = False,
    tolerance: float = 1e-6,
) -> None:
    """Compare kernel and loop after every part: values exactly, derivatives with those in float64."""
    states: list[RateState | None] = [None, None, None]
    for part in parts:
        found = []
        for index, implementation in enumerate(("triton", "loop", "loop")):
            monkeypatch.setenv(VARIABLE, implementation)
            x, given = part, parameters
            if index == 2:
                x = part.double()
                given = [each.double() if isinstance(each, Tensor) else each for each in parameters]
            spikes, states[index] = lif_rate(x, *given, dynamics, states[index], wanted, link=True)
            found.append((*fields(spikes, states[index]), links(states[index])))
            if windows:
                states[index] = states[index].next_window()
        for got, expected in zip(found[0][0], found[1][0], strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
            assert got.stride() == expected.stride()
        assert torch.equal(found[0][0][0].double(), found[2][0][0])  # no rounding decides a spike
        for got, expected, exact in zip(found[0][1], found[1][1], found[2][1], strict=True):
            assert got.stride() == expected.stride()
            assert len(part) == 1 or exact.abs().max() > 0  # the decay acts from the second step on
            torch.testing.assert_close(got.double(), exact, rtol=0, atol=tolerance * float(exact.abs().max()))
        for got, expected, exact in zip(found[0][2], found[1][2], found[2][2], strict=True):
            assert got.stride() == expected.stride()
            torch.testing.assert_close(got.double(), exact, rtol=0, atol=tolerance * max(1.0, float(exact.abs().max())))


def channels_last(steps: int = 7) -> Tensor:
    return torch.randn(steps, 2, 4, 5, 3).permute(0, 1, 4, 2, 3) + 0.4


def test_the_kernel_is_what_runs(launches):
    assert kernels("cpu")["lif_rate"].implementation == "triton"
    lif_rate(torch.randn(4, 2, 3), 0.9)
    assert launches == ["rate_scan"]


@every_dynamics
def test_values_and_derivatives_are_those_of_the_loop(dynamics, monkeypatch):
    parameters = [torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5]
    assert_equals_the_loop([channels_last()], parameters, dynamics, monkeypatch)


@every_dynamics
def test_with_numbers_and_without_traces_they_are_those_of_the_loop(dynamics, monkeypatch):
    # more neurons than a program has
    assert_equals_the_loop([torch.randn(7, 5, 60)], [0.9, 0.8], dynamics, monkeypatch, (False, False))


@pytest.mark.parametrize("windows", [False, True], ids=["one_window", "a_window_each"])
@pytest.mark.parametrize("shape", [None, (), (3, 1, 1), (3, 4, 5), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_parts_continue_as_in_the_loop(order, detached, shape, windows, monkeypatch):
    parameters = [0.7, 0.8] if shape is None else [torch.rand(shape), torch.rand(shape) + 0.5]
    dynamics = Dynamics(order=order, detach_reset=detached)
    parts = list((channels_last(6) + 0.3).split([1, 3, 2]))
    assert_equals_the_loop(parts, parameters, dynamics, monkeypatch, windows=windows, tolerance=2e-6)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_each_trace_is_computed_alone(wanted, monkeypatch):
    assert_equals_the_loop([channels_last()], [0.9, 0.8], Dynamics("zero"), monkeypatch, wanted)


@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layouts_and_dtypes_are_those_of_the_loop(layout, dtype, monkeypatch):
    x = LAYOUTS[layout]().to(dtype)
    if x.numel():
        assert_equals_the_loop([x, x.contiguous()], [torch.rand(3, 1, 1), 0.8], Dynamics(), monkeypatch)
    else:
        spikes, state = lif_rate(x, 0.9, wanted=BOTH)
        assert spikes.shape == x.shape
        assert state.record().beta.shape == x.shape[1:]


def test_float64_takes_the_loop(launches):
    assert lif_rate(torch.randn(4, 2, 3, dtype=torch.float64), 0.9)[1].membrane.dtype == torch.float64
    assert launches == []


@pytest.mark.parametrize(("reset", "order"), list(product(RESETS, ORDERS)))
@pytest.mark.parametrize("detached", [False, True])
def test_nan_and_infinities_are_those_of_the_loop(reset, order, detached, monkeypatch):
    x = torch.randn(9, 3, 4) + 0.5
    x[4, 1, 2], x[0, 2, 0], x[-1, 2, 1] = torch.nan, torch.nan, torch.nan
    x[2, 0, 0], x[3, 0, 1], x[2, 0, 2], x[5, 0, 2] = torch.inf, -torch.inf, torch.inf, -torch.inf
    beta, threshold = torch.tensor([0.9, 0.8, 0.7, torch.nan]), torch.tensor([0.8, torch.nan, 1.0, 0.9])
    for parameters in ((0.9, 0.8), (beta, threshold)):
        found = []
        for implementation in ("triton", "loop"):
            monkeypatch.setenv(VARIABLE, implementation)
            state, parts = None, []
            for part in x.split([4, 5]):
                spikes, state = lif_rate(part, *parameters, Dynamics(reset, order, detached), state, BOTH)
                parts += [spikes, state.membrane.clone(), *state.record()]
            found.append(parts)
        assert 0 < found[0][0].isnan().float().mean() < 1
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_threshold_below_zero_resets_nothing_at_rest(monkeypatch):
    dynamics = Dynamics(order="leak_then_reset")
    assert_equals_the_loop([torch.randn(3, 2, 3) for _ in range(2)], [0.9, -0.5], dynamics, monkeypatch)
    assert torch.equal(lif_rate(x := torch.randn(3, 2, 3), 0.9, -0.5, dynamics)[0], lif(x, 0.9, -0.5, dynamics)[0])


@every_layout
@pytest.mark.parametrize("learned", [False, True], ids=["numbers", "learned"])
def test_the_kernel_keeps_the_contract_of_the_operator(layout, learned):
    check_contract(layout, Dynamics(detach_reset=learned), learned, QUICK_CHECKS)


@pytest.mark.parametrize("name", SURROGATES)
def test_a_compiled_scan_by_the_kernel_equals_the_eager_one(name, launches):
    x, dynamics = torch.randn(5, 2, 3, 6), Dynamics(surrogate=SURROGATES[name]())

    def scan(x: Tensor) -> tuple[Tensor, RateState]:
        return lif_rate(x, 0.9, 0.8, dynamics, wanted=BOTH)

    torch._dynamo.reset()
    (spikes, state), (expected, eager) = torch.compile(scan, backend="aot_eager", fullgraph=True)(x), scan(x)
    assert torch.equal(spikes, expected)
    assert all(map(torch.equal, state.record(), eager.record()))
    assert launches == 2 * ["rate_scan"]
