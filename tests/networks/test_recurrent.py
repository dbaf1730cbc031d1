"""The recurrent network for speech."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_snn import run
from lightning_snn.methods import SpikingBayes
from lightning_snn.networks import RecurrentNet
from lightning_snn.nn import posterior_noise
from lightning_snn.nn.neurons import LeakyIntegrator, RecurrentLIF
from tests.support.networks import spikes_of


def words(samples: int = 8, time_steps: int = 100, channels: int = 140) -> torch.Tensor:
    """Counts `[T, B, C]` like those of spoken words: some 8,000 spikes in three gliding bands and a background."""
    phase = torch.linspace(-0.3, 1.2, time_steps)[:, None, None, None]
    start, stop = 120 * torch.rand(2, samples, 1, 3) + 10
    distance = torch.arange(channels)[:, None] - start - (stop - start) * phase.clamp(0, 1)
    spoken = ((phase > 0) & (phase < 1)).squeeze(-1)
    rate = (2.5 * torch.exp(-((distance / 5) ** 2) / 2).sum(-1) + 0.4) * spoken
    return torch.poisson(rate * 8000 / rate.sum((0, 2)).mean())


def rates(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Spikes per step of each neuron and sample, `[B, N]`, layer by layer."""
    return [spikes.mean(0) for spikes in spikes_of(network, x)]


def test_the_layers_are_as_asked_for():
    network = RecurrentNet(6, 3, hidden=(5, 4, 7))
    layers = [nn.Linear, RecurrentLIF]
    assert [type(layer) for layer in network] == [nn.Flatten, *layers * 3, nn.Linear, LeakyIntegrator]
    shapes = {kind: [tuple(layer.weight.shape) for layer in network if isinstance(layer, kind)] for kind in layers}
    assert shapes == {nn.Linear: [(5, 6), (4, 5), (7, 4), (3, 7)], RecurrentLIF: [(5, 5), (4, 4), (7, 7)]}


def test_the_defaults_are_for_spoken_digits():
    assert run(RecurrentNet(), torch.zeros(2, 3, 140)).shape == (2, 3, 20)


def test_inputs_of_any_shape_are_flattened():
    network, x = RecurrentNet((2, 4, 3), 3, hidden=[5]), torch.rand(7, 2, 2, 4, 3)
    assert run(network, x).shape == (7, 2, 3)
    torch.testing.assert_close(run(network, x.flatten(2)), run(network, x))


def test_weights_start_with_the_gain_over_the_root_of_the_fan_in():
    network = RecurrentNet(400, 300, hidden=(400, 300), gain=1.5)
    fan_in = {nn.Linear: lambda layer: layer.in_features, RecurrentLIF: lambda layer: layer.features}
    for layer in network:
        if type(layer) in fan_in:
            expected = 1.5 / fan_in[type(layer)](layer) ** 0.5
            # 5 standard errors of a standard deviation
            tolerance = 5 * expected / (2 * layer.weight.numel()) ** 0.5
            assert abs(layer.weight.std().item() - expected) < tolerance
            assert abs(layer.weight.mean().item()) < 5 * expected / layer.weight.numel() ** 0.5
            if isinstance(layer, nn.Linear):
                assert not layer.bias.any()


def test_decays_start_spread_over_the_range_and_are_learned():
    network = RecurrentNet(4, 3, hidden=(5,), beta_range=(0.2, 0.6))
    torch.testing.assert_close(network[2].beta, torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6]))
    run(network, 3 * torch.rand(6, 2, 4)).sum().backward()
    assert network[2].beta_logit.grad.abs().sum() > 0
    assert network[2].weight.grad.abs().sum() > 0
    assert network[4].beta_logit.grad.abs() > 0


def test_spoken_words_wake_a_fresh_network_without_saturating_it():
    x = words()
    assert 7000 < x.sum((0, 2)).mean() < 9000
    for rate in rates(RecurrentNet(), x):
        assert 0.02 < rate.mean() < 0.35
        assert (rate.amax(0) == 0).float().mean() < 0.2, "most neurons answer some word"
        assert (rate > 0.9).float().mean() < 0.05
    # negative controls: weights too small leave the second layer silent, weights too large make it fire all the time
    assert rates(RecurrentNet(gain=0.1), x)[1].mean() < 0.002
    assert (rates(RecurrentNet(gain=20.0), x)[1] > 0.4).float().mean() > 0.2
    with posterior_noise(1.0):
        for rate in rates(SpikingBayes(gain=1.0, kappa=0.3).prepare(RecurrentNet()), x):
            assert 0.02 < rate.mean() < 0.4


def test_the_order_of_the_inputs_changes_the_output():
    network, x = RecurrentNet(), words()
    assert not torch.allclose(run(network, x).mean(0), run(network, x.flip(0)).mean(0))


def test_a_layer_receives_its_own_spikes():
    network, x = RecurrentNet(hidden=(32,)), words()
    output = run(network, x)
    with torch.no_grad():
        network[2].weight.zero_()
    assert not torch.allclose(run(network, x), output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": 0}, "`input_shape` to be an integer of at least 1"),
        ({"input_shape": (2, 0)}, "`input_shape` to be an integer of at least 1"),
        ({"num_classes": 2.0}, "`num_classes` to be an integer of at least 1"),
        ({"hidden": [5, 0]}, "`hidden` to be an integer of at least 1"),
        ({"hidden": []}, "`hidden` to hold at least one layer"),
        ({"beta_range": (0.5, 1.0)}, "`beta_range` to be a number between 0 and 1, both excluded, but got 1.0"),
        ({"gain": 0.0}, "`gain` to be a finite number larger than 0"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"Expected argument {message}"):
        RecurrentNet(**options)
