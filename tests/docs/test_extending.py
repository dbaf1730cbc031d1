"""The neuron of the documentation works as it stands, from a file outside the package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import SpikingModule, run
from lightning_snn.callbacks import MembraneTrace
from lightning_snn.methods import (
    ExpectationPropagation,
    Method,
    NoisySpikes,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.nn import posterior_noise
from lightning_snn.nn.observation import observe
from tests.docs.blocks import ROOT, python_blocks
from tests.support.training import trainer

STEPS, INPUTS, CLASSES = 60, 16, 4


@pytest.fixture(scope="module")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[nn.Module]]:
    """The class, imported from a file that holds nothing but the block of the documentation."""
    (text,) = (block for block in python_blocks(ROOT / "docs" / "extending.md") if "class Izhikevich" in block)
    path: Path = tmp_path_factory.mktemp("outside") / "my_neuron.py"
    path.write_text(text)
    specification = importlib.util.spec_from_file_location("my_neuron", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["my_neuron"] = module
    specification.loader.exec_module(module)
    yield module.Izhikevich
    del sys.modules["my_neuron"]


def test_the_neuron_is_short(neuron):
    (text,) = (block for block in python_blocks(ROOT / "docs" / "extending.md") if "class Izhikevich" in block)
    assert len([line for line in text.splitlines() if line.strip()]) <= 30


def patterns(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Spike trains `[N, T, 16]` of four classes, each with higher firing rates on four channels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % CLASSES
    rates = torch.full((CLASSES, INPUTS), 0.1)
    for channels, rate in enumerate(rates):
        rate[4 * channels : 4 * channels + 4] = 0.4
    probabilities = rates[labels][:, None].expand(-1, STEPS, -1)
    return torch.bernoulli(probabilities, generator=generator), labels


def batches(samples: int, seed: int) -> DataLoader:
    def time_first(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.stack([x for x, _ in parts], 1), torch.stack([y for _, y in parts])

    return DataLoader(TensorDataset(*patterns(samples, seed)), 32, collate_fn=time_first)


def network(neuron: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 32), neuron(), nn.Linear(32, CLASSES))


TRAINED_BY = {
    "surrogate_gradient": SurrogateGradient,
    "rate_backprop": RateBackprop,
    "spiking_bayes": lambda: SpikingBayes(noise_mode="step", kl_weight=1e-3),
    "noisy_spikes": lambda: NoisySpikes(noise_mode="step"),
}


@pytest.mark.parametrize("name", TRAINED_BY)
def test_it_trains_under_a_stock_trainer(name, neuron):
    module = SpikingModule(network(neuron), TRAINED_BY[name](), num_classes=CLASSES, learning_rate=5e-2)
    fitting = trainer(max_epochs=6)
    before = fitting.validate(module, batches(64, 2), verbose=False)[0]["val/accuracy"]
    fitting.fit(module, batches(128, 1))
    after = fitting.validate(module, batches(64, 2), verbose=False)[0]["val/accuracy"]
    assert before < 0.6
    assert after >= 0.95


def observed(made: nn.Module, call: Callable[[], object]) -> list[tuple[Tensor, Tensor, float]]:
    """Spikes, potentials and thresholds of the calls of the neuron."""
    found: list = []
    with observe(made, lambda seen: found.append((seen.spikes, seen.membrane(), seen.threshold)), membranes=True):
        call()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_observers_see_the_potential_that_was_compared_with_the_threshold(neuron, dtype):
    layer, x = neuron(), torch.randn(STEPS, 8, 5, dtype=dtype) + 0.5
    ((spikes, potential, threshold),) = observed(layer, lambda: run(layer, x))
    assert 0.01 < spikes.mean() < 0.5
    assert torch.equal(spikes, run(layer, x))
    assert threshold == 30.0
    assert potential.min() > -200
    assert torch.equal(potential > threshold, spikes.bool())


def test_observers_see_the_drawn_potential_under_noise(neuron):
    prepared = SpikingBayes(noise_mode="step").prepare(network(neuron))
    x = patterns(16, 3)[0].transpose(0, 1)
    with posterior_noise(0.5, "step"):
        ((spikes, potential, threshold),) = observed(prepared, lambda: run(prepared, x))
    assert spikes.sum() > 10
    assert torch.equal(potential > threshold, spikes.bool())


def test_the_membrane_trace_shows_its_potentials(neuron, tmp_path):
    module = SpikingModule(network(neuron), num_classes=CLASSES)
    running = trainer(MembraneTrace(folder=tmp_path))
    (metrics,) = running.validate(module, batches(32, 2), verbose=False)
    # on a scale where rest, -70 mV, is 0 and the threshold, 30 mV, is 1
    (seen,) = observed(module.network, lambda: run(module.network, patterns(32, 2)[0].transpose(0, 1)))
    expected = ((seen[1] + 70) / 100).mean().item()
    assert metrics["membrane/val/mean/network.1"] == pytest.approx(expected, abs=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["membrane_val.png"]


REFUSED_BY = {
    TimeToFirstSpike: "no first spike time in closed form",
    ExpectationPropagation: "at rest its distance to the threshold is not its current plus a constant",
}


@pytest.mark.parametrize("method", REFUSED_BY, ids=lambda kind: kind.__name__)
def test_a_method_that_needs_more_than_the_equations_refuses_it_by_name(method: type[Method], neuron):
    expected = f"Expected a network that {method.__name__} can train, but got 1: Izhikevich ({REFUSED_BY[method]})"
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        method().prepare(network(neuron))
    assert str(raised.value).startswith(expected)


def test_a_noise_mode_that_it_does_not_know_is_refused_with_the_remedy(neuron):
    with pytest.raises(ValueError, match=r'Izhikevich \(fires by noise in mode "step" only: noise_mode="step"\)'):
        SpikingBayes().prepare(network(neuron))
