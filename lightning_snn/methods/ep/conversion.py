"""Networks of linear layers and spiking neurons, prepared for message passing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn

from lightning_snn.functional.ep import Activation
from lightning_snn.methods.ep.chain import MessageNetwork
from lightning_snn.methods.ep.layers import MessageLayer, empty_weights, linear_map_of
from lightning_snn.methods.ep.neurons import MessageNeuron, SpikeOutput, ValueOutput
from lightning_snn.methods.ep.transforms import AnySpike, Transform, WithComplement, transform_of
from lightning_snn.methods.ep.weights import GaussianWeights, LevelWeights
from lightning_snn.nn.module_tree import unnested
from lightning_snn.nn.neurons import LIF

WEIGHTY = (nn.Linear, nn.Conv2d)
Families = Callable[[Sequence[bool]], Sequence[GaussianWeights | LevelWeights]]


def convert(
    network: nn.Module,
    families: Families,
    activation: Activation,
    output: SpikeOutput | ValueOutput,
    hard: bool = False,
) -> MessageNetwork:
    """The network with distributions for weights and one-spike neurons for `LIF`; the given one is left as it is.

    Args:
        network: linear and convolutional layers, each followed by `LIF`, the last one also without; pooling and
            reshaping before the first and behind neurons. Nested in `nn.Sequential` as may be.
        families: gives a kind of weights for each weight layer, told which of them have a bias.
        activation: of hidden neurons.
        output: what stands at the end.
        hard: predict with the most probable weights, where weights are discrete.

    Raises:
        ValueError: naming the layer that message passing cannot train, or the order of layers that it cannot.
    """
    layers = unnested(network)
    weighty = [layer for layer in layers if type(layer) in WEIGHTY]
    if not weighty:
        raise _refusal("at least one Linear or Conv2d", f"{type(network).__name__} without any")
    for index, layer in enumerate(layers):
        if type(layer) in WEIGHTY and any(layer is other for other in layers[:index]):
            raise _refusal("every weight layer once", f"{_name(layers, index)} a second time")
    kinds = iter(families([layer.bias is not None for layer in weighty]))
    if type(layers[-1]) is LIF:
        if isinstance(output, ValueOutput):
            raise _refusal("values to be read from the last weights", f"{_name(layers, -1)} at the end")
        layers = layers[:-1]  # the output spikes by itself
    if type(layers[-1]) not in WEIGHTY:
        raise _refusal("weights at the end, with LIF behind them or nothing", _name(layers, -1))

    made: list[nn.Module] = []
    before: nn.Module | None = None
    averaged = False
    for index, layer in enumerate(layers):
        name, on_potentials = _name(layers, index), isinstance(before, MessageLayer)
        if type(layer) in WEIGHTY:
            if on_potentials:
                raise _refusal("neurons between any two weight layers", f"{name} right behind another")
            before = _with_distribution(layer, next(kinds), hard, name)
        elif type(layer) is LIF:
            if not on_potentials:
                raise _refusal("neurons right behind weights", f"{name} behind something else")
            before, averaged = MessageNeuron(activation), False
        else:
            stage = _stage(layer, name)
            if on_potentials:
                raise _refusal("pooling and reshaping of spikes, behind neurons", f"{name} right behind weights")
            if isinstance(stage, AnySpike) and averaged:
                raise _refusal("max-pooling of spikes", f"{name} of averages")
            if isinstance(stage, WithComplement) and any(isinstance(each, MessageLayer) for each in made):
                raise _refusal("the complement of inputs", f"{name} of spikes, which are not independent of theirs")
            before, averaged = copy.deepcopy(layer), averaged or not stage.keeps_spikes
        made.append(before)
    return MessageNetwork(*made, output)


def _with_distribution(layer: nn.Module, family: GaussianWeights | LevelWeights, hard: bool, name: str) -> MessageLayer:
    assert isinstance(layer, WEIGHTY)
    try:
        linear = linear_map_of(layer)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return MessageLayer(linear, empty_weights(layer), family, hard)


def _stage(layer: nn.Module, name: str) -> Transform:
    try:
        stage = transform_of(layer)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if stage is None:
        raise _refusal("Linear, Conv2d, LIF, reshaping, AvgPool2d, MaxPool2d and nothing else", name)
    return stage


def _name(layers: Sequence[nn.Module], index: int) -> str:
    return f"{type(layers[index]).__name__} (layer {index % len(layers)})"


def _refusal(expected: str, came: str) -> ValueError:
    return ValueError(f"Expectation propagation trains layers in a row: expected {expected}, but got {came}")
