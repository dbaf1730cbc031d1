"""Layers that message passing cannot train, by name and with the reason."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from lightning_snn.methods.ep.transforms import TRANSFORM_RULES, pair, transform_of
from lightning_snn.nn.encoders import Complement
from lightning_snn.nn.layer_rules import OWN_FORWARD, Refusal, refuse, replacement_refusal
from lightning_snn.nn.module_tree import unnested
from lightning_snn.nn.neurons import Neuron, Recurrent, RecurrentLIF, one_step_refusal, runs_by_its_equations
from lightning_snn.nn.phase import has_instance_forward

WEIGHTED = (nn.Linear, nn.Conv2d)


def check_trainable(network: nn.Module, regression: bool) -> None:
    """Check that message passing can train a network.

    Args:
        network: linear and convolutional layers in order, with neurons, pooling and reshaping between them.
        regression: whether its output is a value, read from the last weights.

    Raises:
        ValueError: if it cannot; the message names each refused layer with its reason.
    """
    names = {module: name for name, module in network.named_modules()}
    refuse(
        "ExpectationPropagation",
        [Refusal(names[layer], layer, reason) for layer, reason in _refused(network, unnested(network), regression)],
    )


def check_recurrent(network: nn.Module, regression: bool) -> tuple[nn.Linear, int, nn.Linear]:
    """Check that message passing can train a recurrent network.

    Args:
        network: `nn.Linear` with bias, `RecurrentLIF` or `Recurrent`, `nn.Linear`, and optionally neurons.
        regression: whether its output is a value, read from the last weights.

    Returns:
        the first weights, the number of recurrent neurons, and the readout.

    Raises:
        ValueError: if it cannot; the message names each refused layer with its reason.
    """
    names = {module: name for name, module in network.named_modules()}
    layers = unnested(network)
    recurrent = [index for index, layer in enumerate(layers) if isinstance(layer, Neuron) and not layer.independent]
    refused: list[tuple[nn.Module, str]] = []
    if not recurrent:
        refused.append((network, "it has no RecurrentLIF or Recurrent, which `latch` is for: leave `latch` at None"))
    for index, layer in enumerate(layers):
        reason = None
        if index in recurrent[1:]:
            reason = "it is a second recurrent layer; one is supported"
        elif index in recurrent:
            reason = _refused_recurrence(layer, layers[index - 1] if index else None)
        elif index == 3 and isinstance(layer, Neuron):
            reason = "the values of a regression are read from the last weights" if regression else None
        elif recurrent and (index not in (0, 2) or type(layer) is not nn.Linear):
            reason = "a network with `latch` is Linear, a recurrent layer and Linear, without further layers"
        elif recurrent and index == 0 and layer.bias is None:
            reason = "it has no bias, whose prior mean is half of the latch"
        elif recurrent:
            reason = replacement_refusal(layer)
        if reason is not None:
            refused.append((layer, reason))
    if not refused and len(layers) < 3:
        refused.append((network, "it has no Linear after the recurrent layer to read its spikes"))
    refuse("ExpectationPropagation", [Refusal(names[layer], layer, reason) for layer, reason in refused])
    first, neuron, readout = layers[:3]
    assert isinstance(first, nn.Linear)
    assert isinstance(readout, nn.Linear)
    assert isinstance(neuron, RecurrentLIF | Recurrent)
    return first, neuron.features, readout


def _refused_recurrence(layer: nn.Module, before: nn.Module | None) -> str | None:
    if type(layer) not in (RecurrentLIF, Recurrent):
        return "only RecurrentLIF and Recurrent are supported"
    assert isinstance(layer, RecurrentLIF | Recurrent)
    if not runs_by_its_equations(layer):
        return OWN_FORWARD
    if not isinstance(before, nn.Linear):
        return "it does not follow Linear"
    if before.out_features != layer.features:
        return f"it has {layer.features} neurons, but the Linear before it has {before.out_features} outputs"
    if (lost := replacement_refusal(layer)) is not None:
        return lost
    return one_step_refusal(layer.neuron, (layer.features,)) if isinstance(layer, Recurrent) else None


def _refused(network: nn.Module, layers: list[nn.Module], regression: bool) -> list[tuple[nn.Module, str]]:
    """Return each refused module and the reason."""
    refused: list[tuple[nn.Module, str]] = []
    # None after a layer of unknown output: its position is no reason to refuse the next one
    after_weights: bool | None = False
    averaged = False
    weights: nn.Linear | nn.Conv2d | None = None
    for index, layer in enumerate(layers):
        reason = _refused_options(layer)
        if _is_weighted(layer):
            if layers.index(layer) < index:
                reason = "it is used more than once"
            elif after_weights:
                reason = "it follows other weights without neurons in between"
            assert isinstance(layer, WEIGHTED)
            reason = reason or replacement_refusal(layer)
            after_weights, weights = True, layer
        elif isinstance(layer, Neuron):
            if not runs_by_its_equations(layer):
                reason = OWN_FORWARD
            elif (lost := replacement_refusal(layer)) is not None:
                reason = lost
            elif regression and index == len(layers) - 1:
                reason = "the values of a regression are read from the last weights"
            elif after_weights is False:
                reason = "it does not follow Linear or Conv2d"
            elif after_weights:
                reason = one_step_refusal(layer, _step_shape(weights))
                if isinstance(layer, RecurrentLIF | Recurrent):
                    reason = f"{reason}; `latch=4.0` trains one such layer, which is experimental"
            after_weights = averaged = False
        elif (transform := transform_of(layer)) is not None:
            if after_weights:
                reason = "it follows weights; only inputs and spikes can be pooled and reshaped"
            elif isinstance(layer, nn.MaxPool2d) and averaged:
                reason = "it pools averages; only spikes have a maximum"
            elif isinstance(layer, Complement) and weights is not None:
                reason = "a spike and its complement are not independent; only inputs have one"
            after_weights, averaged = False, averaged or not transform.keeps_spikes
        else:
            reason = TRANSFORM_RULES.reason(layer)
            after_weights = None
        if reason is not None:
            refused.append((layer, reason))
    if refused:
        return refused
    if weights is None:
        return [(network, "it has no Linear or Conv2d layer")]
    last = layers[-2:] if isinstance(layers[-1], Neuron) else layers[-1:]
    if _is_weighted(last[0]):
        return []
    return [(last[0], "the network has to end with weights, or with neurons after them")]


def _is_weighted(layer: nn.Module) -> bool:
    # a parametrization makes a class of its own
    kind = parametrize.type_before_parametrizations(layer)
    return (kind in WEIGHTED or isinstance(layer, nn.LazyLinear | nn.LazyConv2d)) and not has_instance_forward(layer)


def _step_shape(weights: nn.Linear | nn.Conv2d | None) -> tuple[int, ...]:
    if isinstance(weights, nn.Conv2d):
        return weights.out_channels, 1, 1
    return (1,) if weights is None else (weights.out_features,)


def _refused_options(layer: nn.Module) -> str | None:
    """Return the reason why the options of a layer of a supported type are refused, if they are."""
    if isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
        return (
            "its padding has to be a number of zeros, but it has "
            f"padding={layer.padding!r}, padding_mode={layer.padding_mode!r}"
        )
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size not in (1, (1, 1), [1, 1]):
        return f"its windows have to be of one size, but it has output_size={layer.output_size}"
    if isinstance(layer, nn.AvgPool2d) and (
        layer.ceil_mode
        or layer.divisor_override is not None
        or (not layer.count_include_pad and any(pair(layer.padding)))
    ):
        return "its windows have to be of one size: no ceil_mode, no divisor_override, count_include_pad=True"
    if isinstance(layer, nn.MaxPool2d) and (
        layer.ceil_mode or layer.return_indices or layer.dilation not in (1, (1, 1))
    ):
        return "max-pooling with ceil_mode, return_indices or dilation is not supported"
    return None
