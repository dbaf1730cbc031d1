"""Spikes per neuron, latency, agreement and overflow of time-to-first-spike networks."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

import lightning_snn.metrics.ttfs as ttfs_metrics
from lightning_snn.methods.ttfs import AlphaLinear, FirstSpike, SpikeEncoder, SpikePool2d
from lightning_snn.methods.ttfs.events import simulate
from lightning_snn.methods.ttfs.mapping import from_relu
from lightning_snn.methods.ttfs.windows import calibrate, cascade
from lightning_snn.metrics.ttfs import (
    Agreement,
    Emission,
    Latency,
    OverflowFraction,
    SpikesPerNeuron,
    agreement,
    emitting_layers,
    latency,
    overflow_fraction,
    record_emissions,
    spikes_per_neuron,
    time_steps,
)


def relu_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 12), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(12, 3)).double().eval()


def images(number: int = 7) -> Tensor:
    return torch.rand(number, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def emissions_of(network: nn.Module, x: Tensor) -> dict[str, Emission]:
    with record_emissions(network) as emissions:
        network(x)
    return emissions


def test_spikes_per_neuron_are_positive_activations_of_the_relu_network_before_pooling():
    relu, x = relu_network(), images()
    network = from_relu(relu, -1, 1, x)
    first = relu[:2](x)
    second = relu[:6](x)
    emissions = emissions_of(network, x)
    assert list(emissions) == ["encoder", "1", "5"]
    total = ((first > 0).sum() + (second > 0).sum()) / (first.numel() + second.numel())
    assert spikes_per_neuron(emissions).item() == pytest.approx(total.item(), abs=1e-7)
    assert spikes_per_neuron(emissions, "1").item() == (first > 0).double().mean().item()
    assert spikes_per_neuron(emissions, "5").item() == (second > 0).double().mean().item()
    pooled = relu[:3](x)
    assert spikes_per_neuron(emissions, "1") != (pooled > 0).double().mean()
    assert spikes_per_neuron(emissions, "encoder").item() == (x > -1).double().mean().item()


def test_spikes_per_neuron_are_those_that_the_event_simulator_emits():
    relu, x = relu_network(), images()
    network = from_relu(relu, -1, 1, x)
    calibrate(network, [x])
    emissions, record = emissions_of(network, x), simulate(network, x)
    for layer, name in enumerate(record.layers):
        table = record.spikes()
        assert spikes_per_neuron(emissions, name).item() == pytest.approx(
            (table.layer == layer).sum() / record.times[name].numel(), abs=1e-15
        )
    assert 0 < spikes_per_neuron(emissions) < 1


def test_batches_of_unequal_size_give_the_fraction_of_all_at_once():
    network, x = from_relu(relu_network(), -1, 1, images()), images()
    metrics = SpikesPerNeuron.by_layer(network)
    overflow = OverflowFraction()
    for part in x.split([4, 2, 1]):
        emissions = emissions_of(network, part)
        metrics.update(emissions)
        overflow.update(emissions)
    whole = emissions_of(network, x)
    found = metrics.compute()
    assert set(found) == {"all", "encoder", "1", "5"}
    assert found.pop("all") == spikes_per_neuron(whole)
    assert all(value == spikes_per_neuron(whole, name) for name, value in found.items())
    assert overflow.compute() == overflow_fraction(whole)
    assert found["1"] != found["5"]


def test_layers_within_layers_are_named_with_slashes():
    network = nn.Sequential(SpikeEncoder(), nn.Sequential(nn.Linear(4, 3), FirstSpike()))
    metrics = SpikesPerNeuron.by_layer(network)
    metrics.update(emissions_of(network, torch.rand(2, 4)))
    assert set(metrics.compute()) == {"all", "0", "1/1"}


@pytest.mark.parametrize("overflow", ["pass", "clip"])
@pytest.mark.parametrize("training", [True, False])
def test_overflow_counts_drives_above_the_window_even_where_they_are_clipped(overflow: str, training: bool):
    network = nn.Sequential(SpikeEncoder(), FirstSpike(0.5, overflow), FirstSpike(0.9)).train(training)
    emissions = emissions_of(network, torch.tensor([[0.2, 0.6, 1.0, 0.7]]))
    assert overflow_fraction(emissions, "1") == 0.75
    assert overflow_fraction(emissions, "2") == (0.25 if overflow == "pass" else 0)
    assert overflow_fraction(emissions) == (0.5 if overflow == "pass" else 0.375)
    metric = OverflowFraction("2")
    metric.update(emissions)
    assert metric.compute() == overflow_fraction(emissions, "2")


def test_neurons_of_other_slopes_are_counted_too():
    layer = AlphaLinear(4, 6, window=0.3)
    network = nn.Sequential(SpikeEncoder(), layer, nn.Linear(6, 2))
    x = torch.rand(5, 4)
    emissions = emissions_of(network, x)
    remaining = layer(x)
    assert spikes_per_neuron(emissions).item() == pytest.approx((remaining > 0).double().mean().item())
    assert overflow_fraction(emissions).item() == pytest.approx((remaining > 0.3).double().mean().item())
    assert list(emitting_layers(network)) == ["0", "1"]


def test_inputs_do_not_overflow():
    emissions = emissions_of(nn.Sequential(SpikeEncoder(), FirstSpike()), torch.rand(2, 3))
    with pytest.raises(ValueError, match="`layer` to name a layer of neurons, but got an encoder"):
        overflow_fraction(emissions, "0")
    with pytest.raises(ValueError, match="argument `layer` to be one of '0', '1', but got '2'"):
        spikes_per_neuron(emissions, "2")


def test_no_hook_outlives_the_record_even_after_an_exception():
    network = nn.Sequential(SpikeEncoder(), nn.Linear(4, 3), FirstSpike())
    with pytest.raises(RuntimeError), record_emissions(network):
        network(torch.rand(2, 5))
    assert not any(layer._forward_hooks for layer in network.modules())


def test_nothing_recorded_gives_nan():
    assert spikes_per_neuron({}).isnan()
    assert overflow_fraction({}).isnan()


def test_agreement_equals_a_loop_over_samples():
    generator = torch.Generator().manual_seed(0)
    outputs, reference = torch.randn(40, 5, generator=generator), torch.randn(40, 5, generator=generator)
    reference[:25] = 3 * outputs[:25] + 1
    equal = [
        max(range(5), key=a.__getitem__) == max(range(5), key=b.__getitem__)
        for a, b in zip(outputs.tolist(), reference.tolist(), strict=True)
    ]
    assert agreement(outputs, reference).item() == sum(equal) / 40
    assert agreement(outputs, reference, "none").tolist() == equal
    metric = Agreement()
    for part in torch.arange(40).split([30, 7, 3]):
        metric.update(outputs[part], reference[part])
    assert metric.compute().item() == pytest.approx(sum(equal) / 40, abs=1e-15)


def test_a_mapped_network_agrees_with_its_relu_network():
    relu, x = relu_network(), images(20)
    assert agreement(from_relu(relu, -1, 1, x)(x), relu(x)) == 1
    assert agreement(-relu(x), relu(x)) < 1


def test_agreement_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"the same shape \(N, C\), but got \(3, 2\) and \(3, 4\)"):
        agreement(torch.ones(3, 2), torch.ones(3, 4))


def test_latency_is_the_sum_of_the_windows():
    network = nn.Sequential(SpikeEncoder(), nn.Linear(4, 3), FirstSpike(2.5), nn.Linear(3, 3), FirstSpike(0.25))
    cascade(network)
    assert latency(network) == 3.75
    metric = Latency()
    metric.update(network)
    network[2].window.fill_(1.0)
    cascade(network)
    metric.update(network)
    assert metric.compute() == 3.75
    metric.reset()
    metric.update(network)
    assert metric.compute() == 2.25


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first = self.layers[0](x).relu()
        return self.layers[2](self.layers[1](first).relu() + first)


def test_a_clock_ticks_through_the_windows_in_a_row():
    chain = nn.Sequential(SpikeEncoder(), nn.Linear(4, 3), FirstSpike(), nn.Linear(3, 3), FirstSpike())
    assert time_steps(chain, 4) == 3 * 16
    network = from_relu(Skip(), 0, 1, torch.rand(2, 4))
    assert time_steps(network, 1) == 3 * 2
    with pytest.raises(ValueError, match="`time_bits` to be an integer of at least 1"):
        time_steps(network, 0)


def test_metrics_live_side_by_side_in_a_collection():
    network = nn.Sequential(SpikeEncoder(), FirstSpike(0.5), FirstSpike(0.9))
    collection = MetricCollection(
        {"first": SpikesPerNeuron("1"), "second": SpikesPerNeuron("2"), "late": OverflowFraction()}
    )
    for x in (torch.ones(2, 3), torch.zeros(2, 3)):
        collection.update(emissions_of(network, x))
    network[1].window.fill_(2.0)
    found = collection.compute()
    assert found["first"] == found["second"] == 0.5


@pytest.mark.parametrize("metric", [SpikesPerNeuron(), OverflowFraction()])
def test_counts_stay_exact_in_a_module_that_is_cast_to_half_precision(metric: SpikesPerNeuron):
    module = nn.ModuleDict({"weights": nn.Linear(2, 2), "score": metric}).bfloat16()
    emission = Emission(torch.ones(1000, 3), torch.ones(1000, 3, dtype=torch.bool))
    for _ in range(5):
        module["score"].update({"1": emission})
    module["score"].update({"1": Emission(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool))})
    assert module["score"].compute().item() == 15000 / 15001


def test_pools_emit_nothing_of_their_own():
    network = nn.Sequential(SpikeEncoder(), FirstSpike(), SpikePool2d(2))
    assert list(emissions_of(network, torch.rand(1, 1, 4, 4))) == ["0", "1"]


def test_the_examples_in_the_docstrings_are_right():
    tests = [
        test
        for test in doctest.DocTestFinder().find(ttfs_metrics, globs={**vars(ttfs_metrics), "torch": torch, "nn": nn})
        if test.name.rpartition(".")[2] in ("SpikesPerNeuron", "OverflowFraction", "Agreement", "Latency")
    ]
    assert len(tests) == 4
    assert [doctest.DocTestRunner().run(test).failed for test in tests] == [0] * 4


def test_nan_is_of_no_class_and_neither_a_spike_nor_silence():
    bad = torch.tensor([[0.3, torch.nan], [0.0, 1.0]])
    for pair, name in (((bad, bad.nan_to_num()), "outputs"), ((bad.nan_to_num(), bad), "reference")):
        with pytest.raises(ValueError, match=f"`{name}` to hold numbers, but got 1 nan"):
            agreement(*pair)
    network = nn.Sequential(SpikeEncoder(), nn.Linear(2, 3), FirstSpike(overflow="clip"))
    with record_emissions(network) as emissions:
        network(bad)
    for function in (spikes_per_neuron, overflow_fraction):
        with pytest.raises(ValueError, match="`remaining` to hold numbers, but got 3 nan"):
            function(emissions)
