"""Rates and latencies of spike trains, against counts by hand."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

import lightning_snn.metrics.spikes as spike_metrics
from lightning_snn.metrics import DecisionLatency, FiringRate, FirstSpikeLatency, SpikesPerNeuron
from lightning_snn.metrics.spikes import decision_latency, firing_rate, first_spike_latency, spikes_of_neurons
from lightning_snn.metrics.ttfs import spikes_per_neuron
from tests.support.processes import on_two_processes

METRICS = {
    "firing_rate": (FiringRate, firing_rate),
    "spikes_per_neuron": (SpikesPerNeuron, spikes_per_neuron),
    "first_spike_latency": (FirstSpikeLatency, first_spike_latency),
    "decision_latency": (DecisionLatency, decision_latency),
}
every_metric = pytest.mark.parametrize(("build", "function"), METRICS.values(), ids=METRICS.keys())


def trains(samples: int = 11, steps: int = 7) -> Tensor:
    """Spikes `[T, B, 5]`, sparse enough for some neurons to keep silent; distinct graded values, so that they order
    classes too."""
    values = torch.rand(steps, samples, 5, generator=torch.Generator().manual_seed(samples))
    return values * (values > 0.8)


def first_steps(spikes: np.ndarray) -> list[int]:
    """The first step, from 1 on, of each neuron and sample that spikes."""
    found = []
    for index in np.ndindex(spikes.shape[1:]):
        steps = [t + 1 for t in range(len(spikes)) if spikes[(t, *index)] != 0]
        found += steps[:1]
    return found


def decided(probabilities: np.ndarray) -> list[int]:
    """For each sample the first step, from 1 on, after which the most probable class never changes."""
    found = []
    for sample in range(probabilities.shape[1]):
        classes = [int(np.argmax(step[sample])) for step in probabilities]
        step = len(classes)
        while step > 1 and classes[step - 2] == classes[-1]:
            step -= 1
        found.append(step)
    return found


def test_rates_are_spikes_over_neurons_samples_and_steps() -> None:
    spikes = trains()
    count = int(np.count_nonzero(spikes.numpy()))
    assert 0 < count < spikes.numel()
    assert firing_rate(spikes).item() == count / (7 * 11 * 5)
    assert spikes_per_neuron(spikes).item() == count / (11 * 5)
    assert firing_rate(-spikes) == firing_rate(spikes) == firing_rate(spikes != 0)


def test_the_first_spike_counts_from_one_and_silent_neurons_do_not_enter() -> None:
    spikes = trains()
    steps = first_steps(spikes.numpy())
    assert min(steps) == 1
    assert len(steps) < 11 * 5
    assert first_spike_latency(spikes).item() == pytest.approx(np.mean(steps), abs=1e-15)
    last = torch.zeros(4, 2, 3)
    last[3] = 1
    assert first_spike_latency(last) == 4
    assert first_spike_latency(torch.zeros(4, 2, 3)).isnan()


def test_a_decision_is_made_when_the_class_changes_for_the_last_time() -> None:
    probabilities = torch.rand(9, 30, 3, generator=torch.Generator().manual_seed(0)).cumsum(0)
    steps = decided(probabilities.numpy())
    assert {1, 9} <= set(decision_latency(probabilities, "none").tolist())
    assert decision_latency(probabilities, "none").tolist() == steps
    assert decision_latency(probabilities).item() == pytest.approx(np.mean(steps), abs=1e-15)


def test_a_class_that_comes_back_was_no_decision() -> None:
    classes = torch.tensor([[1, 0, 2], [0, 0, 2], [1, 0, 1], [1, 0, 2]])
    assert decision_latency(nn.functional.one_hot(classes).float(), "none").tolist() == [3, 1, 4]


def test_among_equal_probabilities_the_first_class_counts() -> None:
    assert decision_latency(torch.tensor([[[0.5, 0.5]], [[0.9, 0.1]]])) == 1
    assert decision_latency(torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]])) == 2


@pytest.mark.parametrize("shape", [(3,), (2, 4, 3), ()])
@pytest.mark.parametrize("samples", [1, 100])
def test_spikes_of_neurons_are_summed_over_steps_and_samples(shape: tuple[int, ...], samples: int) -> None:
    spikes = (torch.rand(6, samples, *shape, generator=torch.Generator().manual_seed(0)) < 0.9) * -0.5
    expected = np.count_nonzero(spikes.numpy(), axis=(0, 1))
    assert samples == 1 or expected.max() > 255
    found = spikes_of_neurons(spikes)
    assert found.dtype == torch.long
    np.testing.assert_array_equal(found.numpy(), expected)


def test_spikes_of_neurons_do_not_depend_on_the_order_of_memory() -> None:
    folded = (torch.rand(6 * 100, 3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    spikes = folded.to(memory_format=torch.channels_last).unflatten(0, (6, 100))
    assert not spikes.is_contiguous()
    np.testing.assert_array_equal(spikes_of_neurons(spikes).numpy(), folded.numpy().sum(0))


def test_counts_of_graph_carrying_spikes_carry_none() -> None:
    spikes = trains().requires_grad_()
    assert not spikes_of_neurons(spikes).requires_grad
    assert not firing_rate(spikes).requires_grad


@every_metric
def test_batches_of_unequal_size_give_the_value_of_all_samples_at_once(build, function) -> None:
    spikes, metric = trains(), build()
    for part in spikes.split([6, 4, 1], 1):
        metric.update(part)
    assert metric.compute() == function(spikes)
    assert metric.compute() != function(spikes[:, :6])
    assert metric.compute().dtype == torch.float64
    metric.reset()
    assert metric.compute().isnan()


def test_rates_weigh_every_step_of_sequences_of_unequal_length_alike() -> None:
    metric = FiringRate()
    metric.update(torch.ones(1, 2, 3))
    metric.update(torch.zeros(9, 2, 3))
    assert metric.compute() == 0.1


def test_metrics_live_side_by_side_in_a_collection() -> None:
    collection = MetricCollection({name: build() for name, (build, _) in METRICS.items()})
    collection.update(trains())
    collection.update(trains(4))
    whole = torch.cat([trains(), trains(4)], 1)
    assert collection.compute() == {name: function(whole) for name, (_, function) in METRICS.items()}


@every_metric
def test_counts_stay_exact_in_a_module_that_is_cast_to_half_precision(build, function) -> None:
    module = nn.ModuleDict({"weights": nn.Linear(2, 2), "score": build()}).bfloat16()
    spikes = torch.zeros(3, 1000, 3)
    spikes[1] = 1
    for _ in range(5):
        module["score"].update(spikes)
    module["score"].update(trains(1))
    expected = build()
    for batch in (torch.cat([spikes] * 5, 1), trains(1)):
        expected.update(batch)
    assert module["score"].compute() == expected.compute() != function(spikes)


def test_spike_trains_have_no_layers() -> None:
    with pytest.raises(ValueError, match="`spikes` to hold emissions by layer for layer='1', but got one tensor"):
        spikes_per_neuron(trains(), "1")
    with pytest.raises(ValueError, match="but got one tensor"):
        SpikesPerNeuron("1").update(trains())


@pytest.mark.parametrize(
    "function", [firing_rate, first_spike_latency, spikes_per_neuron, spikes_of_neurons], ids=lambda f: f.__name__
)
def test_tensors_without_samples_are_refused(function) -> None:
    with pytest.raises(ValueError, match=r"argument `spikes` to be of shape \(T, B, \.\.\.\), but got \(4,\)"):
        function(torch.ones(4))


def test_what_orders_no_classes_over_time_is_refused() -> None:
    for shape in ((3, 4), (0, 4, 3), (3, 4, 0)):
        with pytest.raises(ValueError, match=r"`probabilities` to be of shape \(T, B, C\)"):
            decision_latency(torch.ones(shape))
    with pytest.raises(ValueError, match="`reduction` to be one of 'mean', 'none', but got 'sum'"):
        decision_latency(torch.ones(2, 3, 4), "sum")
    assert decision_latency(torch.ones(2, 0, 4)).isnan()


def test_a_refused_batch_leaves_the_counts_as_they_were() -> None:
    metric = FiringRate()
    metric.update(trains())
    with pytest.raises(ValueError, match="argument `spikes`"):
        metric.update(torch.ones(4))
    assert metric.compute() == firing_rate(trains())


def _count_every_second_sample(rank: int) -> dict[str, Tensor]:
    found = {}
    for name, (build, _) in METRICS.items():
        metric = build()
        metric.update(trains()[:, rank::2])
        found[name] = metric.compute()
    return found


def test_two_processes_with_unequal_shares_get_the_value_of_all_samples(tmp_path: Path) -> None:
    of_ranks = on_two_processes(_count_every_second_sample, tmp_path)
    for name, (_, function) in METRICS.items():
        assert function(trains()) != function(trains()[:, ::2])
        for found in of_ranks:
            assert found[name] == function(trains()), name


def test_the_examples_in_the_docstrings_are_right() -> None:
    result = doctest.testmod(spike_metrics)
    assert result.attempted >= 9
    assert result.failed == 0


@pytest.mark.parametrize(
    "function",
    [firing_rate, first_spike_latency, spikes_per_neuron, spikes_of_neurons, FiringRate().update],
    ids=["rate", "latency", "per_neuron", "of_neurons", "metric"],
)
def test_nan_is_neither_a_spike_nor_silence(function) -> None:
    spikes = trains()
    spikes[0, 0] = torch.nan
    count = int(spikes.isnan().sum())
    with pytest.raises(ValueError, match=f"`spikes` to hold numbers, but got {count} nan"):
        function(spikes)
    assert count > 0


def test_nan_is_of_no_class() -> None:
    probabilities = torch.tensor([[[0.9, 0.1]], [[torch.nan, 0.6]]])
    with pytest.raises(ValueError, match="`probabilities` to hold numbers, but got 1 nan"):
        decision_latency(probabilities)
    with pytest.raises(ValueError, match="`probabilities` to hold numbers"):
        DecisionLatency().update(probabilities)
