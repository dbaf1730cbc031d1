"""Every neuron under every method and every observer: right, or refused by name before training."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_snn import SpikingModule, run
from lightning_snn.callbacks import FiringRateMonitor, MembraneTrace
from lightning_snn.functional import Smooth
from lightning_snn.methods import (
    ExpectationPropagation,
    Method,
    NoisySpikes,
    Progress,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.nn import Moments, Neuron, folded, posterior_noise, register_spiking_layer
from lightning_snn.nn.observation import Traces, named_spiking_layers, observe
from tests.contract.strangers import STRANGERS, Stranger, WithStep, by_hand
from tests.contract.table import LAYERS, LayerRow
from tests.support.training import trainer

STEPS, BATCH, FEATURES, CLASSES = 12, 6, 4, 3
TABLE = [row for row in LAYERS if isinstance(row.make(), Neuron)]
SPIKING = [row for row in TABLE if not isinstance(row.make().surrogate, Smooth)]
METHODS: dict[str, Callable[[], Method]] = {
    "surrogate_gradient": SurrogateGradient,
    "rate_backprop": RateBackprop,
    "rate_backprop_step": lambda: RateBackprop(window="step"),
    "spiking_bayes": SpikingBayes,
    "spiking_bayes_step": lambda: SpikingBayes(noise_mode="step"),
    "noisy_spikes_step": lambda: NoisySpikes(noise_mode="step"),
    "time_to_first_spike": lambda: TimeToFirstSpike(input_range=(0.0, 1.1)),
    "expectation_propagation": ExpectationPropagation,
}
methods = pytest.mark.parametrize("method", METHODS)
strangers = pytest.mark.parametrize("stranger", STRANGERS, ids=lambda stranger: stranger.name)


def network(layer: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network whose hidden neurons spike now and then."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(FEATURES, FEATURES), layer, nn.Linear(FEATURES, CLASSES)).to(dtype)
    nn.init.normal_(made[0].weight, std=0.7)
    nn.init.constant_(made[0].bias, 0.3)
    return made


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.rand(STEPS, BATCH, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype), torch.arange(BATCH) % CLASSES


def built(layer: nn.Module, method: str, dtype: torch.dtype = torch.float32) -> SpikingModule:
    torch.manual_seed(2)
    module = SpikingModule(network(layer, dtype), METHODS[method](), num_classes=CLASSES)
    module.method.progress = Progress(0.5, BATCH)
    return module


def assert_trains_or_refuses(row: LayerRow | Stranger, method: str) -> None:
    """One step has finite gradients that reach every parameter, or `prepare` names the layer and the reason."""
    layer = row.make()
    if method in row.refused_by:
        name = type(METHODS[method]()).__name__
        kind = type(layer).__name__
        expected = rf"Expected a network that {name} can train, but got 1: {kind} \({row.refused_by[method]}\)"
        with pytest.raises(ValueError, match=expected):
            METHODS[method]().prepare(network(layer))
        return
    module = built(layer, method)
    step = module.method.training_step(module.network, *batch())
    assert step.objective.isfinite()
    step.objective.backward()
    gradients = {name: each.grad for name, each in module.network.named_parameters() if each.requires_grad}
    assert gradients
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    exempt = getattr(row, "without_gradient", {}).get(method)
    assert [name for name, gradient in gradients.items() if gradient.abs().max() == 0] == ([exempt] if exempt else [])
    prediction = module.eval().method.predict(module.network, batch()[0])
    assert prediction.mean.shape == (BATCH, CLASSES)


@methods
def test_a_method_trains_a_neuron_or_refuses_it_by_name(row, method):
    assert_trains_or_refuses(row, method)


@methods
@strangers
def test_a_method_trains_a_stranger_or_refuses_it_by_name(stranger, method):
    assert_trains_or_refuses(stranger, method)


def test_a_wrong_declaration_fails():
    accepted, refused = STRANGERS[0], STRANGERS[1]
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        assert_trains_or_refuses(Stranger("", accepted.make, {"rate_backprop": ".+"}), "rate_backprop")
    with pytest.raises(AssertionError, match="does not match|Regex pattern did not match"):
        assert_trains_or_refuses(Stranger("", refused.make, {"rate_backprop": "another reason"}), "rate_backprop")
    with pytest.raises(ValueError, match="OwnForward"):
        assert_trains_or_refuses(Stranger("", refused.make), "rate_backprop")


def test_declared_methods_exist():
    assert {method for row in (*LAYERS, *STRANGERS) for method in row.refused_by} <= set(METHODS)
    assert all(isinstance(row.make(), Neuron) for row in LAYERS if row.refused_by)


# a stranger that is trained is trained by its own equations


class ByHand(nn.Module):
    """A stranger's equations, without the stranger."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return by_hand(self.name, x.unflatten(0, (STEPS, BATCH)))[0].flatten(0, 1)


def gradients_of(module: SpikingModule, x: Tensor, y: Tensor) -> list[Tensor]:
    step = module.method.training_step(module.network, x, y)
    return list(torch.autograd.grad(step.objective, list(module.network.parameters())))


@strangers
def test_surrogate_gradients_of_a_stranger_are_those_of_its_equations(stranger):
    x, y = batch(torch.float64)
    found, expected = (
        gradients_of(built(layer, "surrogate_gradient", torch.float64), x, y)
        for layer in (stranger.make(), ByHand(stranger.name))
    )
    assert all(each.abs().max() > 0 for each in expected)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@strangers
def test_rates_of_a_stranger_have_the_gradient_of_its_equations_on_constant_input(stranger):
    if "rate_backprop" in stranger.refused_by:
        pytest.skip("it is refused")
    x, y = batch(torch.float64)
    constant = x[:1].expand(STEPS, -1, -1)
    found = gradients_of(built(stranger.make(), "rate_backprop", torch.float64), constant, y)
    expected = gradients_of(built(ByHand(stranger.name), "surrogate_gradient", torch.float64), constant, y)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@strangers
def test_noisy_spikes_of_a_stranger_follow_its_equations(stranger):
    if "spiking_bayes_step" in stranger.refused_by:
        pytest.skip("it is refused")
    module, calls = built(stranger.make(), "spiking_bayes_step", torch.float64), []
    with (
        observe(module.network, lambda call: calls.append((call.spikes, call.current)), membranes=True),
        torch.no_grad(),
    ):
        module.method.noisy_output(module.network, batch(torch.float64)[0])
    ((spikes, current),) = calls
    assert 0 < spikes.mean() < 1
    assert torch.equal(by_hand(stranger.name, current)[0], spikes)


# observers


class Seen(NamedTuple):
    spikes: Tensor
    membrane: Tensor | None
    threshold: float | Tensor | None


def observed(made: nn.Module, run_it: Callable[[], object]) -> list[Seen]:
    calls: list[Seen] = []
    with observe(made, lambda call: calls.append(Seen(call.spikes, call.membrane(), call.threshold)), membranes=True):
        run_it()
    return calls


def silent(folder: Path, callback: pl.Callback) -> pl.Trainer:
    return trainer(callback, default_root_dir=folder)


def loader() -> DataLoader:
    return DataLoader([batch()], batch_size=None)


@pytest.mark.parametrize("neuron", SPIKING, ids=lambda row: row.name)
@pytest.mark.parametrize("noisy", [False, True], ids=["plain", "noisy"])
def test_potentials_exceed_the_threshold_where_a_neuron_spikes(neuron, noisy):
    layer, x = neuron.make().double(), 1.5 * batch(torch.float64)[0] - 0.2
    variance = 0.1 + x.square()

    def call() -> None:
        with torch.no_grad():
            if not noisy:
                run(layer, x)
                return
            with posterior_noise(0.5, "step"), folded(STEPS):
                layer(Moments(x.flatten(0, 1), variance.flatten(0, 1)))

    (seen,) = observed(layer, call)
    assert 0 < seen.spikes.mean() < 1
    assert torch.equal(seen.membrane > seen.threshold, seen.spikes.bool())


@pytest.mark.parametrize("neuron", SPIKING, ids=lambda row: row.name)
def test_callbacks_see_the_potentials_and_rates_of_a_neuron(neuron, tmp_path):
    module = built(neuron.make(), "surrogate_gradient")
    (seen,) = observed(module.network, lambda: run(module.network, batch()[0]))
    relative = seen.membrane / seen.threshold
    for callback, expected in (
        (MembraneTrace(folder=tmp_path), {"membrane/val/mean/network.1": relative.mean().item()}),
        (FiringRateMonitor(folder=tmp_path), {"firing_rates/val/rate/network.1": seen.spikes.mean().item()}),
    ):
        (metrics,) = silent(tmp_path, callback).validate(copy.deepcopy(module), loader(), verbose=False)
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, rel=1e-4)


@strangers
def test_an_observer_is_right_about_a_stranger_or_does_not_claim_to_see_it(stranger, tmp_path):
    module = built(stranger.make(), "surrogate_gradient")
    x, _ = batch()
    spikes, potentials, thresholds = by_hand(stranger.name, module.network[0](x).detach())
    traces = Traces(samples=2, membranes=True)
    with traces.recording(module.network):
        calls = observed(module.network, lambda: run(module.network, x))
    if stranger.seen == "nothing":
        assert calls == []
        assert traces.found() == {}
        assert named_spiking_layers(module) == {}
        for callback in (MembraneTrace(folder=tmp_path), FiringRateMonitor(folder=tmp_path)):
            with pytest.raises(ValueError, match="Expected a module with spiking layers"):
                silent(tmp_path, callback).validate(module, loader(), verbose=False)
        return
    (seen,) = calls
    trace = traces.found()["1"]
    assert torch.equal(seen.spikes, spikes)
    assert torch.equal(trace.spikes, spikes[:, :2])
    (metrics,) = silent(tmp_path, FiringRateMonitor(folder=tmp_path)).validate(module, loader(), verbose=False)
    assert metrics["firing_rates/val/rate/network.1"] == pytest.approx(spikes.mean().item(), rel=1e-4)
    if stranger.seen == "spikes":
        assert seen.membrane is seen.threshold is None
        assert trace.membrane is trace.threshold is None
        with pytest.raises(ValueError, match="Expected a spiking layer with a known membrane potential"):
            silent(tmp_path, MembraneTrace(folder=tmp_path)).validate(module, loader(), verbose=False)
        return
    torch.testing.assert_close(seen.membrane, potentials)
    torch.testing.assert_close(seen.threshold, thresholds)
    assert torch.equal(seen.membrane > seen.threshold, spikes.bool())
    assert torch.equal(trace.membrane > trace.threshold, trace.spikes.bool())
    (metrics,) = silent(tmp_path, MembraneTrace(folder=tmp_path)).validate(module, loader(), verbose=False)
    assert metrics["membrane/val/mean/network.1"] == pytest.approx((potentials / thresholds).mean().item(), rel=1e-4)


def test_a_registered_stranger_is_seen_to_spike_and_its_potential_is_reported_as_unknown(tmp_path):
    class Registered(WithStep):
        pass

    register_spiking_layer(Registered)
    module = built(Registered(), "surrogate_gradient")
    x, _ = batch()
    (seen,) = observed(module.network, lambda: run(module.network, x))
    assert torch.equal(seen.spikes, by_hand("with_step", module.network[0](x).detach())[0])
    assert seen.membrane is seen.threshold is None
    with pytest.raises(ValueError, match="Expected a spiking layer with a known membrane potential"):
        silent(tmp_path, MembraneTrace(folder=tmp_path)).validate(module, loader(), verbose=False)


def test_patterns_of_reasons_are_matched_as_they_are_written():
    for row in (*LAYERS, *STRANGERS):
        for pattern in row.refused_by.values():
            assert pattern == ".+" or re.fullmatch(pattern, pattern)
