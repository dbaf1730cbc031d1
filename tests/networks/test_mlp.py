"""Fully connected networks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_snn import LIF, run
from lightning_snn.networks import MLP
from lightning_snn.nn import AdaptiveLIF, Neuron
from lightning_snn.nn.observation import observe


def test_the_layers_are_as_asked_for():
    network = MLP(6, 3, hidden=(5, 4), neuron=partial(LIF, 0.5, reset="zero"))
    assert [type(layer) for layer in network] == [nn.Flatten, nn.Linear, LIF, nn.Linear, LIF, nn.Linear]
    assert [tuple(layer.weight.shape) for layer in network if isinstance(layer, nn.Linear)] == [(5, 6), (4, 5), (3, 4)]
    assert [(layer.beta, layer.dynamics.reset) for layer in network if isinstance(layer, LIF)] == [(0.5, "zero")] * 2


def test_images_are_flattened():
    network = MLP((2, 4, 4), 3, hidden=[5])
    x = torch.rand(7, 2, 2, 4, 4)
    assert run(network, x).shape == (7, 2, 3)
    torch.testing.assert_close(run(network, x.flatten(2)), run(network, x))


def test_without_hidden_layers_it_is_linear():
    network, x = MLP(6, 3, hidden=()), torch.rand(4, 2, 6)
    torch.testing.assert_close(run(network, x), network[-1](x))


def test_the_defaults_are_for_mnist():
    assert run(MLP(), torch.rand(2, 3, 1, 28, 28)).shape == (2, 3, 10)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"input_shape": 0}, "input_shape"),
        ({"input_shape": (2, 0)}, "input_shape"),
        ({"num_classes": 2.0}, "num_classes"),
        ({"hidden": [5, 0]}, "hidden"),
    ],
    ids=str,
)
def test_bad_sizes_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be an integer of at least 1"):
        MLP(**options)


@pytest.mark.parametrize("density", [0.1, 0.3])
def test_every_layer_of_a_deep_network_is_active_with_the_default_weights(density):
    x = (torch.rand(10, 16, 784) < density).float()

    def rates(network):
        found = []
        with observe(network, lambda call: found.append(call.spikes.mean().item())):
            run(network, x)
        return found

    active = rates(MLP(hidden=(128,) * 8))
    assert len(active) == 8
    assert all(0.02 < rate < 0.3 for rate in active)
    # a third of it is the scale of PyTorch's weights
    assert rates(MLP(hidden=(128,) * 8, gain=3**-0.5))[2:] == [0.0] * 6


def test_weights_start_with_the_gain_over_the_root_of_the_fan_in_and_biases_at_zero():
    *hidden, readout = [layer for layer in MLP(400, 300, (400, 300), gain=1.5) if isinstance(layer, nn.Linear)]
    for layer in hidden:
        assert layer.weight.std().item() == pytest.approx(1.5 / 400**0.5, rel=0.02)
        assert layer.weight.mean().abs() < 1e-3
    assert readout.weight.std().item() == pytest.approx((1 / (3 * 300)) ** 0.5, rel=0.02)
    assert not any(layer.bias.any() for layer in (*hidden, readout))
    with pytest.raises(ValueError, match="`gain` to be a finite number larger than 0, but got 0"):
        MLP(gain=0)


def test_bad_options_of_the_neurons_are_refused_by_name():
    with pytest.raises(ValueError, match="argument `beta` to be a number from 0 to 1, but got 2"):
        MLP(neuron=partial(LIF, beta=2))


def test_any_neuron_stands_where_a_lif_does():
    network = MLP(6, 3, hidden=(5, 4), neuron=partial(AdaptiveLIF, rho=0.5))
    neurons = [layer for layer in network if isinstance(layer, Neuron)]
    assert [(type(layer), layer.value("rho")) for layer in neurons] == [(AdaptiveLIF, 0.5)] * 2
    assert neurons[0] is not neurons[1]
    assert run(network, torch.rand(4, 2, 6)).shape == (4, 2, 3)


@pytest.mark.parametrize(
    ("neuron", "message"),
    [
        (LIF(), "argument `neuron` to be a function that makes neurons, but got LIF"),
        ("lif", "argument `neuron` to be a function that makes neurons, but got 'lif'"),
        (lambda: 1.0, "argument `neuron` to make modules, but got float"),
    ],
)
def test_what_makes_no_neurons_is_refused_by_name(neuron, message):
    with pytest.raises(TypeError, match=message):
        MLP(neuron=neuron)
