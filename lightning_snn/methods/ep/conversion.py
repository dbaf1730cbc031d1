"""Conversion of networks of linear layers and spiking neurons for message passing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn

from lightning_snn.functional.ep import Activation
from lightning_snn.methods.ep.chain import MessageNetwork
from lightning_snn.methods.ep.layers import MessageLayer, empty_weights, linear_map_of
from lightning_snn.methods.ep.neurons import MessageNeuron, SpikeOutput, ValueOutput
from lightning_snn.methods.ep.refusals import WEIGHTED, check_trainable
from lightning_snn.methods.ep.weights import GaussianWeights, LevelWeights
from lightning_snn.nn.module_tree import unnested
from lightning_snn.nn.neurons import Neuron

Families = Callable[[Sequence[bool]], Sequence[GaussianWeights | LevelWeights]]


def convert(
    network: nn.Module,
    families: Families,
    activation: Activation,
    output: SpikeOutput | ValueOutput,
    hard: bool = False,
) -> MessageNetwork:
    """Return a copy of a network with distributions as weights and one-spike neurons in place of its own.

    Args:
        network: linear and convolutional layers, each followed by neurons, which are optional after the last one; pooling
            and reshaping before the first and after neurons. `nn.Sequential` may be nested. It is left unchanged.
        families: returns the kind of weights of each weight layer; its argument holds for each whether it has a bias.
        activation: of hidden neurons.
        output: likelihood at the end of the network.
        hard: predict with the most probable weights, if they are discrete.

    Raises:
        ValueError: if message passing cannot train the network; the message names each refused layer with its reason.

    Example:
        >>> from lightning_snn.nn import LIF
        >>> network = nn.Sequential(nn.Linear(8, 4), LIF(), nn.Linear(4, 3))
        >>> families = lambda biases: [GaussianWeights(1.0, 0.2) for _ in biases]
        >>> converted = convert(network, families, "probit", SpikeOutput("probit"))
        >>> [type(layer).__name__ for layer in converted]
        ['MessageLayer', 'MessageNeuron', 'MessageLayer', 'SpikeOutput']
    """
    check_trainable(network, isinstance(output, ValueOutput))
    layers = unnested(network)
    if isinstance(layers[-1], Neuron):
        layers = layers[:-1]  # the output stands for these neurons
    kinds = iter(families([layer.bias is not None for layer in layers if isinstance(layer, WEIGHTED)]))
    converted: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, WEIGHTED):
            converted.append(MessageLayer(linear_map_of(layer), empty_weights(layer), next(kinds), hard))
        elif isinstance(layer, Neuron):
            converted.append(MessageNeuron(activation))
        else:
            converted.append(copy.deepcopy(layer))
    return MessageNetwork(*converted, output)
