"""Layers that message passing cannot train, by name and with the reason."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from lightning_snn.methods.ep.transforms import TRANSFORM_RULES, pair, transform_of
from lightning_snn.nn.encoders import Complement
from lightning_snn.nn.layer_rules import OWN_FORWARD, Refusal, refuse, replacement_refusal
from lightning_snn.nn.module_tree import unnested
from lightning_snn.nn.neurons import Neuron, one_step_refusal, runs_by_its_equations
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
