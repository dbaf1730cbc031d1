"""Conversion of networks for message passing, and refusals that name the layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from lightning_snn import LIF
from lightning_snn.methods.ep import (
    GaussianWeights,
    LevelWeights,
    MessageLayer,
    MessageNeuron,
    SpikeOutput,
    ValueOutput,
)
from lightning_snn.methods.ep.conversion import convert
from lightning_snn.nn import Complement, LeakyIntegrator, is_spiking_layer
from tests.methods.ep.task import dense, digits, prepared, updated


def gaussian(biases: Sequence[bool]) -> list[GaussianWeights]:
    return [GaussianWeights(1.0, 0.5) for _ in biases]


def converted(*layers: nn.Module, values: bool = False):
    output = ValueOutput(torch.tensor(0.1), False) if values else SpikeOutput("probit")
    return convert(nn.Sequential(*layers), gaussian, "heaviside", output)


def convolutions() -> list[nn.Module]:
    return [
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        LIF(),
        nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 5)),
        LIF(),
        nn.Linear(5, 3),
    ]


def test_weights_neurons_and_stages_stand_in_a_row_with_the_output_last():
    network = converted(*convolutions())
    assert [type(layer).__name__ for layer in network] == [
        "MessageLayer",
        "MessageNeuron",
        "MaxPool2d",
        "AvgPool2d",
        "Flatten",
        "MessageLayer",
        "MessageNeuron",
        "MessageLayer",
        "SpikeOutput",
    ]
    first, second, last = network.chain.blocks
    assert [tuple(block.layer.precision.shape) for block in (first, second, last)] == [(4, 18), (5, 5), (3, 6)]
    assert [len(block.before) for block in (first, second, last)] == [0, 3, 0]
    assert first.neuron is not None
    assert first.neuron.activation == "heaviside"
    assert last.neuron is None
    assert network.chain.output is network[-1]
    assert network(torch.rand(6, 2, 8, 8)).shape == (6, 3)


def test_its_neurons_count_as_spiking_layers():
    network = converted(*convolutions())
    assert [type(layer) for layer in network.modules() if is_spiking_layer(layer)] == [MessageNeuron] * 2


@pytest.mark.parametrize("nested", [False, True])
def test_a_lif_behind_the_last_weights_changes_nothing(nested):
    torch.manual_seed(0)
    without = converted(*dense(4, 5, 3))
    torch.manual_seed(0)
    layers = [*dense(4, 5, 3), LIF()]
    with_neurons = converted(nn.Sequential(*layers)) if nested else converted(*layers)
    assert str(without) == str(with_neurons)
    assert all(torch.equal(a, b) for a, b in zip(without.parameters(), with_neurons.parameters(), strict=True))


def test_the_given_network_is_left_as_it_is_and_shares_nothing():
    layers = convolutions()
    network = nn.Sequential(*layers)
    text, state = repr(network), copy.deepcopy(network.state_dict())
    made = convert(network, gaussian, "probit", SpikeOutput("probit"))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(7.0)
    assert repr(network) == text
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not {id(module) for module in made.modules()} & {id(module) for module in network.modules()}


def test_layers_without_bias_have_no_column_for_one():
    given: list[list[bool]] = []

    def families(biases: Sequence[bool]) -> list[LevelWeights]:
        given.append(list(biases))
        return [LevelWeights([-1.0, 1.0], 0.5, 1.0 if bias else None) for bias in biases]

    layers = nn.Sequential(nn.Linear(4, 5, bias=False), LIF(), nn.Linear(5, 3))
    network = convert(layers, families, "probit", SpikeOutput("probit"))
    assert given == [[False, True]]
    assert [tuple(block.layer.precision.shape) for block in network.chain.blocks] == [(5, 4), (3, 6)]
    x, y = digits(20, 4)
    learned = updated(prepared(dense(4, 5, 3, bias=False)), x, y)
    assert [tuple(natural.precision.shape) for natural in learned.natural] == [(5, 4), (3, 5)]
    assert learned.accepted


def test_the_types_of_the_weights_are_kept():
    layers = [block.layer for block in prepared(dense(4, 5, 3)).chain.blocks]
    assert {layer.precision.dtype for layer in layers} == {torch.float64}
    assert all(isinstance(layer, MessageLayer) for layer in layers)


class Wrapped(nn.Module):
    pass


UNSUPPORTED = "only Sequential, Linear, Conv2d, neurons, reshaping, average pooling and MaxPool2d are supported"
REFUSED = {
    "no weights": ([nn.Flatten()], "the network: Sequential (it has no Linear or Conv2d layer)"),
    "pooling last": (
        [nn.Linear(4, 4), LIF(), nn.Flatten()],
        "2: Flatten (the network has to end with weights, or with neurons after them)",
    ),
    "neurons twice last": ([nn.Linear(4, 4), LIF(), LIF()], "2: LIF (it does not follow Linear or Conv2d)"),
    "weights twice": (
        [nn.Linear(4, 4), nn.Linear(4, 3)],
        "1: Linear (it follows other weights without neurons in between)",
    ),
    "neurons first": ([LIF(), nn.Linear(4, 3)], "0: LIF (it does not follow Linear or Conv2d)"),
    "neurons after pooling": (
        [nn.Conv2d(1, 2, 3), LIF(), nn.AvgPool2d(2), LIF(), nn.Conv2d(2, 3, 1)],
        "3: LIF (it does not follow Linear or Conv2d)",
    ),
    "pooled potentials": (
        [nn.Conv2d(1, 2, 3), nn.Sequential(nn.AvgPool2d(2)), LIF(), nn.Conv2d(2, 3, 1)],
        "1.0: AvgPool2d (it follows weights; only inputs and spikes can be pooled and reshaped); "
        "2: LIF (it does not follow Linear or Conv2d)",
    ),
    "maximum of averages": (
        [nn.Conv2d(1, 2, 3), LIF(), nn.AvgPool2d(2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2)],
        "3: MaxPool2d (it pools averages; only spikes have a maximum)",
    ),
    "another neuron": (
        [nn.Linear(4, 4), LeakyIntegrator(), nn.Linear(4, 3)],
        f"1: LeakyIntegrator ({UNSUPPORTED})",
    ),
    "dropout": ([nn.Linear(4, 4), LIF(), nn.Dropout(), nn.Linear(4, 3)], f"2: Dropout ({UNSUPPORTED})"),
    "a norm": (
        [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), LIF(), nn.Conv2d(2, 3, 1)],
        f"1: BatchNorm2d ({UNSUPPORTED})",
    ),
    "a module of its own": ([nn.Linear(4, 4), LIF(), Wrapped(), nn.Linear(4, 3)], f"2: Wrapped ({UNSUPPORTED})"),
    "one-dimensional": ([nn.Conv1d(1, 2, 3), LIF(), nn.Flatten(), nn.Linear(4, 3)], f"0: Conv1d ({UNSUPPORTED})"),
    "several": (
        [nn.Conv1d(1, 2, 3), LIF(), nn.Flatten(), nn.Linear(4, 3), nn.Tanh()],
        f"0: Conv1d ({UNSUPPORTED}); 4: Tanh ({UNSUPPORTED})",
    ),
    "padding by name": (
        [nn.Conv2d(1, 2, 3, padding="same")],
        "0: Conv2d (its padding has to be a number of zeros, but it has padding='same', padding_mode='zeros')",
    ),
    "padding by reflection": (
        [nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")],
        "0: Conv2d (its padding has to be a number of zeros, but it has padding=(1, 1), padding_mode='reflect')",
    ),
    "pooling to a size": (
        [nn.Conv2d(1, 2, 3), LIF(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 2)],
        "2: AdaptiveAvgPool2d (its windows have to be of one size, but it has output_size=2)",
    ),
    "windows cut off": (
        [nn.Conv2d(1, 2, 3), LIF(), nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(8, 2)],
        "2: AvgPool2d (its windows have to be of one size: no ceil_mode, no divisor_override, count_include_pad=True)",
    ),
    "windows without padding": (
        [nn.Conv2d(1, 2, 3), LIF(), nn.AvgPool2d(2, padding=1, count_include_pad=False), nn.Conv2d(2, 3, 1)],
        "2: AvgPool2d (its windows have to be of one size: no ceil_mode, no divisor_override, count_include_pad=True)",
    ),
    "complement of spikes": (
        [nn.Linear(4, 4), LIF(), Complement(), nn.Linear(8, 3)],
        "2: Complement (a spike and its complement are not independent; only inputs have one)",
    ),
    "dilated maximum": (
        [nn.Conv2d(1, 2, 3), LIF(), nn.MaxPool2d(2, dilation=2), nn.Conv2d(2, 3, 1)],
        "2: MaxPool2d (max-pooling with ceil_mode, return_indices or dilation is not supported)",
    ),
}
shared = nn.Linear(4, 4)
REFUSED["weights used twice"] = ([shared, LIF(), shared], "0: Linear (it is used more than once)")


@pytest.mark.parametrize("case", REFUSED)
def test_networks_that_messages_cannot_train_are_refused_by_name(case):
    layers, message = REFUSED[case]
    with pytest.raises(ValueError, match="that ExpectationPropagation can train") as refusal:
        converted(*layers)
    assert str(refusal.value) == f"Expected a network that ExpectationPropagation can train, but got {message}"


def test_a_regression_is_read_from_weights_not_from_spikes():
    with pytest.raises(ValueError, match=r"got 3: LIF \(the values of a regression are read from the last weights\)$"):
        converted(*dense(4, 5, 1), LIF(), values=True)
    assert isinstance(converted(*dense(4, 5, 1), values=True)[-1], ValueOutput)


def test_a_bare_layer_is_a_network():
    network = convert(nn.Linear(4, 3), gaussian, "probit", SpikeOutput("probit"))
    assert len(network.chain.blocks) == 1
