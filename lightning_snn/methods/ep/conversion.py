"""Conversion of networks of linear layers and spiking neurons for message passing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn

from lightning_snn.functional.ep import Activation
from lightning_snn.functional.linear_maps import DenseMap
from lightning_snn.methods.ep.chain import MessageNetwork
from lightning_snn.methods.ep.layers import MessageLayer, empty_weights, linear_map_of
from lightning_snn.methods.ep.neurons import MessageNeuron, SpikeOutput, ValueOutput
from lightning_snn.methods.ep.recurrence import LatchedWeights, RecurrentMessageLayer, RecurrentMessageNetwork
from lightning_snn.methods.ep.refusals import WEIGHTED, check_recurrent, check_trainable
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
        network: linear and convolutional layers, each followed by neurons, which are optional after the last one;
            pooling and reshaping before the first and after neurons. `nn.Sequential` may be nested. It is left
            unchanged.
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


def convert_recurrent(
    network: nn.Module,
    families: Families,
    activation: Activation,
    output: SpikeOutput | ValueOutput,
    latch: float,
    hard: bool = False,
) -> RecurrentMessageNetwork:
    """Return a recurrent network with distributions as weights and memoryless neurons in place of its own.

    Args:
        network: `nn.Linear` with bias, `RecurrentLIF` or `Recurrent`, `nn.Linear`, and optionally neurons. It is left
            unchanged.
        families: as in `convert`.
        activation: of the recurrent neurons.
        output: likelihood at the end of the network.
        latch: see `LatchedWeights`.
        hard: predict with the most probable weights of the readout, if they are discrete.

    Raises:
        ValueError: if message passing cannot train the network; the message names each refused layer with its reason.
            Or if the recurrent weights are not Gaussian.

    Example:
        >>> from lightning_snn.nn import RecurrentLIF
        >>> network = nn.Sequential(nn.Linear(3, 4), RecurrentLIF(4), nn.Linear(4, 2))
        >>> families = lambda biases: [GaussianWeights(1.0, 0.2) for _ in biases]
        >>> converted = convert_recurrent(network, families, "probit", SpikeOutput("probit"), latch=4.0)
        >>> converted.chain.blocks[0].layer.precision.shape
        torch.Size([4, 8])
    """
    first, features, readout = check_recurrent(network, isinstance(output, ValueOutput))
    recurrent, last = families([True, readout.bias is not None])
    if not isinstance(recurrent, GaussianWeights):
        raise ValueError(
            f'Expected argument `weights` to be "gaussian" for recurrent neurons, but got {recurrent!r}. Give one kind '
            "per layer to have discrete weights in the readout"
        )
    like = first.weight.new_empty(features, first.in_features + features + 1)
    latched = LatchedWeights(recurrent.variance, recurrent.split, latch)
    return RecurrentMessageNetwork(
        RecurrentMessageLayer(MessageLayer(DenseMap(bias=True), like, latched), activation),
        MessageLayer(linear_map_of(readout), empty_weights(readout), last, hard),
        output,
    )
