"""Spikes of NaN and of infinities in every scan, against a recurrence in numpy that decides NaN explicitly."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_snn.functional import (
    IWST,
    AnalyticalGumbelRao,
    Dynamics,
    GumbelRao,
    GumbelStraightThrough,
    Smooth,
    lif,
    lif_rate,
    lif_step,
    noisy_lif,
    noisy_spikes,
    propagate_nan,
    spike,
    step_rate,
)
from lightning_snn.functional.eligibility import RateState
from lightning_snn.functional.estimators import Estimator
from lightning_snn.functional.scans import buffers, noisy_loop, rate_loop
from lightning_snn.functional.surrogate import SURROGATES, ArcTangent, surrogate_named

STEPS, BATCH, NEURONS = 9, 3, 4
DYNAMICS = [
    Dynamics(reset, order, detach)
    for reset, order, detach in product(("subtract", "zero"), ("reset_then_leak", "leak_then_reset"), (False, True))
]
every_dynamics = pytest.mark.parametrize(
    "dynamics",
    DYNAMICS,
    ids=lambda each: f"{each.reset}-{each.order}-{'detached' if each.detach_reset else 'attached'}",
)
every_block = pytest.mark.parametrize("elements", [1, 30, 1 << 18], ids=["one_step", "few_steps", "all_steps"])
BETA, THRESHOLD = 0.9, 0.8


def currents(nan: bool = True, infinite: bool = True) -> Tensor:
    """Currents `[T, B, N]` that make neurons spike now and then, some of which become NaN or infinite."""
    x = torch.randn(STEPS, BATCH, NEURONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    if nan:
        x[4, 1, 2] = math.nan
        x[0, 2, 0] = math.nan
        x[-1, 2, 1] = math.nan
    if infinite:
        x[2, 0, 0] = math.inf
        x[3, 0, 1] = -math.inf
        x[2, 0, 2], x[5, 0, 2] = math.inf, -math.inf
    return x


def by_hand(x: Tensor, dynamics: Dynamics, threshold: float = THRESHOLD) -> tuple[np.ndarray, np.ndarray]:
    """Spikes and final membrane potential, with 0 * inf = NaN by numpy and NaN for the spike of NaN by decision."""
    membrane, pending, spikes = np.zeros(x.shape[1:]), np.zeros(x.shape[1:]), []
    with np.errstate(invalid="ignore"):
        for current in x.numpy():
            membrane = BETA * membrane + current
            if dynamics.pending_reset:
                membrane = membrane - threshold * pending
            fired = np.where(np.isnan(membrane - threshold), np.nan, np.where(membrane > threshold, 1.0, 0.0))
            spikes.append(fired)
            if dynamics.pending_reset:
                pending = fired
            elif dynamics.reset == "subtract":
                membrane = membrane - threshold * fired
            else:
                membrane = membrane - membrane * fired
    return np.stack(spikes), membrane


def assert_same(found: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isnan(found.numpy()), np.isnan(expected))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


@every_dynamics
@every_block
@pytest.mark.parametrize("trained", [False, True], ids=["evaluated", "trained"])
def test_spikes_and_state_of_a_scan_are_those_by_hand(dynamics, elements, trained, monkeypatch):
    monkeypatch.setattr(buffers, "CACHED_ELEMENTS", elements)
    x = currents()
    spikes, state = lif(x.clone().requires_grad_(trained), BETA, THRESHOLD, dynamics)
    expected, membrane = by_hand(x, dynamics)
    assert_same(spikes.detach(), expected)
    assert_same((state.membrane if dynamics.pending_reset else state).detach(), membrane)
    assert 0 < np.isnan(expected).mean() < 0.5


@every_dynamics
@every_block
def test_the_rate_scan_has_the_spikes_of_the_scan(dynamics, elements, monkeypatch):
    for module in (rate_loop, buffers):
        monkeypatch.setattr(module, "CACHED_ELEMENTS", elements)
    x, state, parts = currents(), None, []
    for part in x.split(4):
        spikes, state = lif_rate(part, BETA, THRESHOLD, dynamics, state)
        parts.append(spikes)
    assert isinstance(state, RateState)
    expected, membrane = by_hand(x, dynamics)
    assert_same(torch.cat(parts), expected)
    assert_same(state.membrane, membrane)
    record = state.record()
    assert_same(record.rate, expected.mean(0))
    assert record.eligibility[torch.from_numpy(np.isnan(expected).any(0))].isnan().all()


@every_dynamics
def test_steps_and_their_rates_have_the_spikes_by_hand(dynamics):
    x, state, spikes = currents(), None, []
    for current in x:
        fired, state = lif_step(current, state, BETA, THRESHOLD, dynamics)
        spikes.append(fired)
    expected, _ = by_hand(x, dynamics)
    assert_same(torch.stack(spikes), expected)
    outputs, rates = step_rate(lambda x, state: lif_step(x, state, BETA, THRESHOLD, dynamics), x)
    assert_same(outputs, expected)
    record = rates.record()
    assert record.eligibility[torch.from_numpy(np.isnan(expected).any(0))].isnan().all()


@every_dynamics
@pytest.mark.parametrize("elements", [1, 1 << 18], ids=["one_step", "all_steps"])
def test_gradients_are_nan_for_the_neuron_and_unchanged_for_others(dynamics, elements, monkeypatch):
    monkeypatch.setattr(buffers, "CACHED_ELEMENTS", elements)
    clean, bad = currents(nan=False, infinite=False), currents(infinite=False)
    unknown = bad.isnan().any(0)
    weight = torch.randn_like(clean)
    weight[:, unknown] = 0.0  # not even a gradient of 0 hides it
    gradients = []
    for x in (clean, bad):
        x.requires_grad_()
        (lif(x, BETA, THRESHOLD, dynamics)[0] * weight).sum().backward()
        gradients.append(x.grad)
    assert gradients[1][bad.isnan()].isnan().all()
    assert torch.equal(gradients[0][:, ~unknown], gradients[1][:, ~unknown])


def test_a_spike_of_nan_reaches_all_neurons_of_its_sample_through_recurrent_weights():
    x, weight = currents(infinite=False), torch.full((NEURONS, NEURONS), 0.1, dtype=torch.float64)
    spikes, state = lif(x, BETA, THRESHOLD, recurrent=weight)
    expected = torch.zeros_like(x, dtype=torch.bool)
    expected[4:, 1, 2], expected[5:, 1], expected[:, 2, 0], expected[1:, 2] = True, True, True, True
    assert torch.equal(spikes.isnan(), expected)
    assert torch.equal(state.spikes.isnan(), expected[-1])
    assert torch.equal(spikes[:, 0], lif(currents(False, False), BETA, THRESHOLD, recurrent=weight)[0][:, 0])


@every_dynamics
def test_a_threshold_of_nan_gives_spikes_of_nan_from_the_first_step_on(dynamics):
    x, threshold = currents(nan=False, infinite=False), torch.full((NEURONS,), THRESHOLD, dtype=torch.float64)
    expected = lif(x, BETA, threshold, dynamics)[0]
    expected[..., 1] = math.nan
    threshold[1] = math.nan
    stepped, state = [], None
    for current in x:
        fired, state = lif_step(current, state, BETA, threshold, dynamics)
        stepped.append(fired)
    for spikes in (
        lif(x, BETA, threshold, dynamics)[0],
        lif_rate(x, BETA, threshold, dynamics)[0],
        torch.stack(stepped),
    ):
        torch.testing.assert_close(spikes, expected, rtol=0, atol=0, equal_nan=True)
    assert lif(x, BETA, threshold[1], dynamics)[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_spikes_keep_nan_and_are_0_or_1_for_all_other_numbers(dtype):
    x = currents().to(dtype)
    for spikes in (lif(x, 0.5)[0], lif_rate(x, 0.5)[0]):
        assert spikes.dtype == dtype
        assert set(spikes[~spikes.isnan()].tolist()) == {0.0, 1.0}
        assert torch.equal(spikes.isnan(), torch.from_numpy(np.isnan(by_hand(currents(), Dynamics())[0])))


NUMBERS = torch.tensor([-math.inf, -1e30, 0.0, 0.5, math.nextafter(0.5, 1), 1e30, math.inf], dtype=torch.float64)


@pytest.mark.parametrize("name", SURROGATES)
def test_public_spikes_are_the_comparison_for_numbers_and_nan_for_nan(name):
    surrogate, unknown = surrogate_named(name), torch.tensor([math.nan], dtype=torch.float64)
    for threshold in (0.5, torch.tensor(0.5, dtype=torch.float64)):
        for fire in (surrogate.spike, lambda v, at: spike(v, at, surrogate)):
            assert torch.equal(fire(NUMBERS, threshold), (NUMBERS > 0.5).double())
            assert fire(unknown, threshold).isnan().all()
    assert surrogate.spike(NUMBERS, torch.full((7,), math.nan, dtype=torch.float64)).isnan().all()
    out = torch.empty(8, dtype=torch.float64)
    assert surrogate.spike(torch.cat([NUMBERS, unknown]), 0.5, out=out) is out
    assert torch.equal(out.isnan(), torch.arange(8) == 7)
    assert surrogate.derivative(unknown).isnan().all()
    assert Smooth(surrogate).spike(unknown, 0.5).isnan().all()
    assert torch.equal((unknown > 0.5).double(), torch.zeros(1, dtype=torch.float64)), "what a comparison gives"


def test_nan_is_propagated_over_the_vectorized_part_of_a_row_and_its_rest():
    for size in (1, 7, 8, 33):
        source = torch.linspace(-2, 2, size)
        for place in range(size):
            one = source.clone()
            one[place] = math.nan
            fired = propagate_nan((one > 0).float(), one)
            assert torch.equal(fired.isnan(), torch.arange(size) == place)
            known = torch.arange(size) != place
            assert torch.equal(fired[known], (source > 0).float()[known])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_the_spike_keep_nan():
    v = torch.tensor([0.2, math.nan, 0.9, math.inf], dtype=torch.float64)

    def fire(each: Tensor) -> Tensor:
        return spike(each, 0.5, ArcTangent())

    expected = torch.tensor([0.0, math.nan, 1.0, 1.0], dtype=torch.float64)
    assert torch.equal(torch.func.vmap(fire)(v).nan_to_num(7), expected.nan_to_num(7))
    value, tangent = torch.func.jvp(fire, (v,), (torch.ones_like(v),))
    assert torch.equal(value.nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(tangent.isnan(), v.isnan())


def test_the_operations_that_the_compiler_traces_agree_on_nan_and_infinities(monkeypatch):
    results = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda answer=compiling: answer)
        v = torch.cat([NUMBERS, torch.tensor([math.nan], dtype=torch.float64)]).requires_grad_()
        spikes = spike(v, 0.5, ArcTangent())
        spikes.sum().backward()
        results.append((spikes.detach(), v.grad))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=0, atol=0, equal_nan=True)
    assert results[0][0][:-1].isfinite().all()
    assert results[0][0][-1].isnan()


@pytest.mark.parametrize("mode", ["moment", "step", "trace"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("elements", [1, 30, 1 << 18], ids=["one_step", "few_steps", "all_steps"])
def test_noisy_spikes_z_and_gradients_are_nan_from_a_mean_of_nan_on(mode, reset, elements, monkeypatch):
    if (mode, reset) == ("trace", "zero"):
        pytest.skip("it does not exist")
    for module in (noisy_loop, buffers):
        monkeypatch.setattr(module, "CACHED_ELEMENTS", elements)
    clean, bad = currents(nan=False, infinite=False), currents(infinite=False)
    unknown = bad.isnan().long().cumsum(0) > 0
    results = []
    for mean in (clean, bad):
        mean, variance = mean.clone().requires_grad_(), torch.full_like(mean, 0.2).requires_grad_()
        torch.manual_seed(1)
        spikes, z = noisy_lif(mean, variance, BETA, THRESHOLD, Dynamics(reset), mode=mode)
        spikes.sum().backward()
        results.append((spikes.detach(), z.detach(), mean.grad, variance.grad))
    for before, after in zip(results[0], results[1], strict=True):
        neurons = unknown.any(0)
        assert torch.equal(after[:, ~neurons], before[:, ~neurons])
    for after in results[1][:2]:
        assert torch.equal(after.isnan(), unknown)
    assert all(after[bad.isnan()].isnan().all() for after in results[1][2:])


@pytest.mark.parametrize("noise", ["gaussian", "logistic"])
@pytest.mark.parametrize(
    "kind", [IWST, AnalyticalGumbelRao, GumbelRao, GumbelStraightThrough], ids=lambda kind: kind.__name__
)
def test_samples_and_weights_of_an_estimator_are_nan_for_nan(kind: type[Estimator], noise):
    estimator = kind(noise=noise)
    clean = torch.linspace(-2, 2, 9, dtype=torch.float64)
    bad = clean.clone()
    bad[4] = math.nan
    found = []
    for t in (clean, bad):
        t.requires_grad_()
        spikes = noisy_spikes(t, estimator, torch.Generator().manual_seed(2))
        spikes.sum().backward()
        found.append((spikes.detach(), t.grad))
        with torch.no_grad():
            again = noisy_spikes(t, estimator, torch.Generator().manual_seed(2))
        assert torch.equal(again.nan_to_num(7), spikes.detach().nan_to_num(7))
    known = torch.arange(9) != 4
    for before, after in zip(*found, strict=True):
        assert torch.equal(after[known], before[known])
        assert after[4].isnan()


@every_dynamics
def test_spikes_of_numbers_are_bit_for_bit_those_of_a_comparison(dynamics):
    x = currents(nan=False, infinite=False).float()
    spikes, _ = lif(x, BETA, THRESHOLD, dynamics)
    membrane = pending = torch.zeros_like(x[0])
    for current, fired in zip(x, spikes, strict=True):
        membrane = BETA * membrane + current
        if dynamics.pending_reset:
            membrane = membrane - THRESHOLD * pending
        expected = (membrane > THRESHOLD).float()
        assert torch.equal(fired, expected)
        assert not torch.signbit(fired).any()
        pending = expected
        if not dynamics.pending_reset:
            kept = membrane * (1 - expected)
            membrane = membrane - THRESHOLD * expected if dynamics.reset == "subtract" else kept
