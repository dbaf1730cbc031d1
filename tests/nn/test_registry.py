"""The registry of spiking modules."""

from __future__ import annotations

import pytest
import snntorch
import torch
from torch import nn

from lightning_snn.nn import (
    LIF,
    LeakyIntegrator,
    RecurrentLIF,
    is_spiking_layer,
    register_spiking_layer,
    spiking_layers,
)


def test_our_layers_spike_and_plain_ones_do_not():
    class Mine(LIF):
        pass

    assert all(map(is_spiking_layer, (LIF(), RecurrentLIF(3), Mine())))
    assert not any(map(is_spiking_layer, (nn.ReLU(), nn.Linear(2, 2), LeakyIntegrator(), nn.Sequential(LIF()))))


def test_the_layers_of_a_network_are_found_by_name_in_order():
    network = nn.Sequential(nn.Linear(2, 2), LIF(), nn.Sequential(nn.Linear(2, 2), RecurrentLIF(2)))
    assert [name for name, _ in spiking_layers(network)] == ["1", "2.1"]
    assert [layer for _, layer in spiking_layers(network)] == [network[1], network[2][1]]
    assert [name for name, _ in spiking_layers(LIF())] == [""]


@pytest.mark.parametrize("name", ["Leaky", "Synaptic", "Lapicque", "Alpha"])
def test_layers_of_snntorch_spike(name):
    options = {"alpha": 0.9} if name in ("Synaptic", "Alpha") else {}
    assert is_spiking_layer(getattr(snntorch, name)(beta=0.8, **options))


def test_recurrent_layers_of_snntorch_spike():
    assert is_spiking_layer(snntorch.RLeaky(beta=0.8, linear_features=3))


def test_layers_of_spikingjelly_spike():
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import neuron

    assert all(map(is_spiking_layer, (neuron.LIFNode(), neuron.IFNode(), neuron.ParametricLIFNode())))


def test_a_registered_type_and_its_subclasses_spike():
    @register_spiking_layer
    class ThirdParty(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x > 0).float()

    class Derived(ThirdParty):
        pass

    class Other(nn.Module):
        pass

    assert is_spiking_layer(ThirdParty())
    assert is_spiking_layer(Derived())
    assert not is_spiking_layer(Other())


@pytest.mark.parametrize("kind", [LIF(), int, "LIF"])
def test_what_is_no_module_type_cannot_be_registered(kind):
    with pytest.raises(TypeError, match="Expected argument `kind` to be a subclass of nn.Module, but got"):
        register_spiking_layer(kind)
