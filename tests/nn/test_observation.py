"""Observation of spiking layers of any library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.functional.dynamics import lif_step
from lightning_snn.methods import SpikingBayes
from lightning_snn.nn import RecurrentLIF, register_spiking_layer
from lightning_snn.nn.observation import LayerCall, Traces, named_spiking_layers, observe
from tests.support.membranes import membranes

STEPS, BATCH, FEATURES = 7, 3, 5
X = 0.8 * torch.rand(STEPS, BATCH, FEATURES, generator=torch.Generator().manual_seed(3))


def calls_of(layer: nn.Module, forward: Callable[[Tensor], Any], x: Tensor = X) -> tuple[Tensor, Tensor, Tensor | None]:
    """Spikes, currents and membranes `[T, B, ...]` of a layer, from as many calls as it took."""
    calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def keep(call: LayerCall) -> None:
        assert call.layer is layer
        assert call.current is not None
        calls.append((call.spikes, call.current, call.membrane()))

    with observe(layer, keep, membranes=True) as layers:
        assert layers == {type(layer).__name__: layer}
        forward(x)
    spikes, currents, found = zip(*calls, strict=True)
    known = None if found[0] is None else torch.cat([part.clone() for part in found])
    return torch.cat(spikes), torch.cat(currents), known


def by_hand(x: Tensor, beta: float, threshold: float, rule: str) -> tuple[Tensor, Tensor]:
    """Membranes before reset and spikes, one neuron, one sample and one step at a time."""
    membrane, spikes = torch.zeros_like(x), torch.zeros_like(x)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in x.shape[1:])).tolist():
        carried, before = 0.0, 0.0
        for t in range(len(x)):
            here = (t, *index)
            value = beta * carried + float(x[here]) - (threshold * before if rule == "pending" else 0.0)
            before = float(value > threshold)
            membrane[here], spikes[here] = value, before
            carried = {"subtract": value - threshold * before, "zero": value * (1 - before), "pending": value}[rule]
    return membrane, spikes


@pytest.mark.parametrize("rule", ["subtract", "zero", "pending"])
def test_membranes_of_our_layers_are_those_before_the_reset(rule: str) -> None:
    order = "leak_then_reset" if rule == "pending" else "reset_then_leak"
    layer = LIF(0.7, 0.9, reset="zero" if rule == "zero" else "subtract", order=order)
    spikes, currents, membrane = calls_of(layer, lambda x: run(layer, x))
    expected, fired = by_hand(X, 0.7, 0.9, rule)
    assert fired.sum() > 5
    assert torch.equal(spikes, fired)
    assert torch.equal(currents, X)
    torch.testing.assert_close(membrane, expected)


def test_membranes_follow_the_spikes_that_they_are_given() -> None:
    silent = membranes(X, torch.zeros_like(X), 0.7, 0.9)
    torch.testing.assert_close(silent[-1], sum(0.7 ** (STEPS - 1 - t) * X[t] for t in range(STEPS)))
    once = torch.zeros_like(X)
    once[2] = 1
    reset = membranes(X, once, 0.7, 0.9)
    torch.testing.assert_close(reset[:3], silent[:3])
    torch.testing.assert_close(silent[3] - reset[3], torch.full_like(X[3], 0.7 * 0.9))


def test_recurrent_neurons_receive_their_own_spikes() -> None:
    layer = RecurrentLIF(FEATURES, 0.7)
    spikes, _, membrane = calls_of(layer, lambda x: run(layer, 2 * x))
    state, expected = None, []
    for x in 2 * X:
        current = x if state is None else x + state[1] @ layer.weight.t()
        expected.append(current if state is None else 0.7 * state[0] + current)
        fired, after = lif_step(current, None if state is None else state[0], 0.7)
        state = (after, fired)
    assert spikes.sum() > 5
    torch.testing.assert_close(membrane, torch.stack(expected).detach())


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("delay", [False, True])
def test_snntorch_is_found_step_by_step(hidden: bool, delay: bool) -> None:
    layer = snntorch.Leaky(beta=0.7, threshold=0.9, init_hidden=hidden, reset_delay=delay)

    def forward(x: Tensor) -> None:
        membrane = torch.zeros_like(x[0])
        for current in x:
            if hidden:
                layer(current)
            else:
                _, membrane = layer(current, membrane)

    spikes, currents, membrane = calls_of(layer, forward)
    expected, fired = by_hand(X, 0.7, 0.9, "pending" if delay else "subtract")
    assert fired.sum() > 5
    assert torch.equal(spikes, fired)
    assert torch.equal(currents, X)
    torch.testing.assert_close(membrane, expected)


def test_a_graded_spike_subtracts_the_threshold_once() -> None:
    graded, plain = (
        snntorch.Leaky(beta=0.7, threshold=0.9, init_hidden=True, reset_delay=False, graded_spikes_factor=factor)
        for factor in (2.5, 1.0)
    )
    found = [calls_of(layer, lambda x, layer=layer: [layer(step) for step in x]) for layer in (graded, plain)]
    assert set(found[0][0].unique().tolist()) == {0.0, 2.5}
    expected, fired = by_hand(X, 0.7, 0.9, "subtract")
    for spikes, _, membrane in found:
        assert torch.equal(spikes != 0, fired.bool())
        torch.testing.assert_close(membrane, expected)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("hard", [False, True])
def test_spikingjelly_is_found_in_both_modes(mode: str, hard: bool) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    layer = neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=0.9, v_reset=0.0 if hard else None, step_mode=mode)
    spikes, currents, membrane = calls_of(layer, lambda x: layer(x) if mode == "m" else [layer(step) for step in x])
    expected, fired = by_hand(X, 0.5, 0.9, "zero" if hard else "subtract")
    assert fired.sum() > 5
    assert torch.equal(spikes, fired)
    assert torch.equal(currents, X)
    if hard:
        # it keeps the membrane after the reset only
        expected = expected * (1 - fired)
    torch.testing.assert_close(membrane, expected)
    assert layer.store_v_seq is False


def test_membranes_of_multi_step_neurons_are_unknown_unless_asked_for() -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    layer, found = neuron.LIFNode(step_mode="m"), []
    with observe(layer, lambda call: found.append(call.membrane())):
        layer(X)
    assert found == [None]


def test_a_registered_layer_is_found_as_it_was_registered() -> None:
    class Counter(nn.Module):
        level, limit = torch.zeros(()), 2.0

        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            self.level = x.cumsum(0)[-1]
            return (x > 0.5).float(), "more"

    register_spiking_layer(Counter, membrane="level", threshold="limit")
    layer, calls = Counter(), []
    with observe(layer, calls.append):
        layer(x=X[0])
    assert calls[0].spikes.shape == (1, BATCH, FEATURES)
    assert torch.equal(calls[0].current[0], X[0])
    assert calls[0].threshold == 2.0
    assert calls[0].membrane() is None  # not of the spikes' shape
    register_spiking_layer(Counter, all_steps=True)
    with observe(layer, calls.append):
        layer(X)
    assert calls[1].spikes.shape == X.shape


def test_neurons_that_fire_by_noise_have_the_mean_membrane_of_their_spikes() -> None:
    method = SpikingBayes(samples=2)
    module = method.prepare(nn.Sequential(nn.Linear(FEATURES, 4), LIF(0.7), nn.Linear(4, 2)))
    calls: list[tuple[Tensor, Tensor, Tensor | None]] = []
    with observe(module, lambda call: calls.append((call.spikes, call.current, call.membrane()))), torch.no_grad():
        method.predict(module, X)
    spikes, current, membrane = calls[0]
    assert spikes.sum() > 0
    torch.testing.assert_close(membrane, membranes(current, spikes, 0.7, 1.0))


def test_gradients_flow_through_what_is_found() -> None:
    network, calls = nn.Sequential(nn.Linear(FEATURES, 4), LIF(), nn.Linear(4, 4), LIF()), []
    with observe(network, calls.append):
        run(network, X)
    assert [call.name for call in calls] == ["1", "3"]
    assert torch.equal(calls[0].output.view_as(calls[0].spikes), calls[0].spikes)
    (gradient,) = torch.autograd.grad(calls[1].output.sum(), calls[0].output)
    assert gradient.abs().sum() > 0


def test_names_are_those_of_the_network_and_of_a_single_layer_its_type() -> None:
    network = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), LIF()), "b": snntorch.Leaky(beta=0.5)})
    assert list(named_spiking_layers(network)) == ["a.1", "b"]
    assert list(named_spiking_layers(LIF())) == ["LIF"]


def test_traces_keep_the_first_samples_of_a_batch_and_the_first_run_of_it() -> None:
    network = nn.Sequential(nn.Linear(FEATURES, 4), LIF(0.7, [0.5, 1.0, 1.5, 2.0]))
    traces = Traces(samples=2, membranes=True)
    with traces.recording(network):
        spikes = run(network, 3 * X)
        run(network, 5 * X)
    trace = traces.found()["1"]
    assert torch.equal(trace.spikes, spikes[:, :2])
    assert trace.membrane.shape == (STEPS, 2, 4)
    assert torch.equal(trace.threshold, torch.tensor([0.5, 1.0, 1.5, 2.0]))
    assert torch.equal(trace.membrane > trace.threshold, trace.spikes.bool())


def test_traces_join_the_steps_of_layers_that_are_called_step_by_step() -> None:
    layer, traces = snntorch.Leaky(beta=0.7, init_hidden=True), Traces(membranes=True)
    with traces.recording(layer):
        expected = torch.stack([layer(x) for x in X])
    trace = traces.found()["Leaky"]
    assert torch.equal(trace.spikes, expected[:, :1].detach())
    assert trace.membrane.shape == (STEPS, 1, FEATURES)
    assert trace.threshold == 1.0


@pytest.mark.parametrize("width", [FEATURES, 2])
def test_of_a_layer_in_two_places_traces_keep_the_calls_of_the_first_shape(width: int) -> None:
    layer, traces = snntorch.Leaky(beta=0.7), Traces(membranes=True)
    membranes = [torch.zeros(BATCH, FEATURES), torch.zeros(BATCH, width)]
    expected: list[Tensor] = []
    with traces.recording(layer):
        for x in X:
            for place, given in enumerate((x, 2 * x[:, :width])):
                spikes, membranes[place] = layer(given, membranes[place])
                if place == 0 or width == FEATURES:
                    expected.append(spikes)
    trace = traces.found()["Leaky"]
    assert torch.equal(trace.spikes[:, 0], torch.stack(expected)[:, 0])
    assert trace.membrane.shape == trace.spikes.shape == (STEPS * (2 if width == FEATURES else 1), 1, FEATURES)
    assert trace.shape == (FEATURES,)


@pytest.mark.parametrize("shape", [(), (1,), (FEATURES,), (1, FEATURES), (BATCH, 1), (BATCH, FEATURES)])
def test_thresholds_of_traces_are_those_of_the_neurons_of_the_first_sample(shape: tuple[int, ...]) -> None:
    class Limited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.limit = 1.0 + torch.arange(float(torch.Size(shape).numel())).view(shape)
            self.v = torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            self.v = x
            return (x > self.limit).float()

    register_spiking_layer(Limited, membrane="v", threshold="limit")
    layer, traces = Limited(), Traces(membranes=True)
    with traces.recording(layer):
        for x in 9 * X:
            layer(x)
    trace = traces.found()["Limited"]
    assert 0 < trace.spikes.mean() < 1
    assert torch.equal((trace.membrane > trace.threshold).float(), trace.spikes)


def test_no_hook_outlives_the_context_even_after_an_exception() -> None:
    layer = LIF()

    def fail(call: LayerCall) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError), observe(layer, fail):
        run(layer, X)
    assert not layer._forward_hooks
