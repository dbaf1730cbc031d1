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
from lightning_snn.nn.registry import layers_in_plain_containers, remedy_for_missing_layers


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


class Holder(nn.Module):
    """Network that holds layers in an attribute of any kind."""

    def __init__(self, layers: object) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2))
        self.inner.layers = layers


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([LIF(), nn.ReLU(), snntorch.Leaky(beta=0.9)], ["inner.layers[0]", "inner.layers[2]"]),
        ((nn.Sequential(nn.Linear(2, 2), LIF()),), ["inner.layers[0]"]),
        ({"a": [LIF()], "b": nn.ReLU()}, ["inner.layers['a'][0]"]),
        (nn.ModuleList([LIF()]), []),
        ([nn.ReLU()], []),
    ],
    ids=["list", "tuple of networks", "nested", "module list", "no neurons"],
)
def test_layers_in_plain_containers_are_found_by_place(layers, expected):
    assert layers_in_plain_containers(Holder(layers)) == expected


def test_a_list_of_layers_that_the_network_has_too_hides_nothing():
    network = nn.Sequential(nn.Linear(2, 2), LIF())
    network.neurons = [network[1]]
    network[1].register_forward_hook(lambda *_: None)
    assert layers_in_plain_containers(network) == []


def test_the_remedy_for_missing_layers_is_one_that_can_help():
    hidden = remedy_for_missing_layers(Holder([LIF()]))
    assert "does not know those in plain lists or dicts, inner.layers[0], nor" in hidden
    assert "nn.ModuleList" in hidden
    assert "register_spiking_layer" not in hidden
    assert remedy_for_missing_layers(nn.Sequential(nn.ReLU())).startswith("Register other types with")
