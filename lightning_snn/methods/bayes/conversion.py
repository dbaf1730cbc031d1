"""Conversion between plain layers and layers with a posterior, in both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.methods.bayes.layers import BayesConv1d, BayesConv2d, BayesianLayer, BayesLinear, BayesRecurrentLIF
from lightning_snn.nn.layer_rules import LayerRules
from lightning_snn.nn.neurons import RecurrentLIF

_BUILT_GAIN = 3**-0.5  # of the uniform draw of a RecurrentLIF: its standard deviation times sqrt(fan-in)


class Posterior(NamedTuple):
    """How wide posterior and prior of a converted layer start, see `BayesLinear`."""

    gain: float
    kappa: float
    prior_scale: float


POSTERIOR_RULES: LayerRules[Callable[[Any, Posterior], BayesianLayer]] = LayerRules(
    unknown="its parameters have no Bayesian counterpart: see `register_posterior`"
)


def register_posterior(kind: type[nn.Module], convert: Callable[[Any, Posterior], BayesianLayer]) -> None:
    """Set how layers of a type get a posterior.

    Args:
        kind: the layer type.
        convert: from a layer and the widths of posterior and prior to the Bayesian layer in its place. Device, dtype
            and frozen parameters follow the layer afterwards.

    Raises:
        TypeError: if `kind` is not a subclass of `nn.Module`.
    """
    POSTERIOR_RULES.register(kind, convert)


def is_convertible(layer: nn.Module) -> bool:
    """Return whether the layer can get a posterior: a registered type with zero padding that has none yet."""
    if isinstance(layer, BayesianLayer) or getattr(layer, "padding_mode", "zeros") != "zeros":
        return False
    return POSTERIOR_RULES.find(layer) is not None


def to_bayesian(layer: nn.Module, posterior: Posterior, keep_weights: bool = False) -> BayesianLayer:
    """Return the Bayesian layer in place of a plain one, on its device, in its dtype and memory format.

    Recurrent weights keep the values that they were built with, whatever `keep_weights`: a gain large enough for sparse
    inputs would make the recurrence explode. Their posterior starts `kappa` times as wide as their root mean square,
    and their prior is ``prior_scale / gain`` times as wide as the uniform draw of a new `RecurrentLIF`.

    Args:
        layer: a layer for which `is_convertible` holds.
        posterior: widths of posterior and prior.
        keep_weights: take the layer's weights as posterior means instead of drawing them; frozen ones are always kept.
    """
    convert = POSTERIOR_RULES.find(layer)
    assert convert is not None
    made = convert(layer, posterior)
    _follow_layer(made, layer)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if keep_weights or not weight.requires_grad:  # in the dtype of the layer by now
        made.weight.data.copy_(weight)
        if made.bias is not None:
            made.bias.data.copy_(layer.bias)  # type: ignore[arg-type]
    return made


def _linear(layer: nn.Linear, posterior: Posterior) -> BayesianLayer:
    return BayesLinear(layer.in_features, layer.out_features, layer.bias is not None, **posterior._asdict())


def _convolution(layer: nn.Conv1d | nn.Conv2d, posterior: Posterior) -> BayesianLayer:
    kind: Any = BayesConv1d if isinstance(layer, nn.Conv1d) else BayesConv2d
    made: BayesianLayer = kind(*_geometry(layer), layer.bias is not None, **posterior._asdict())
    return made


def _recurrent(layer: RecurrentLIF, posterior: Posterior) -> BayesianLayer:
    own_gain = layer.weight.detach().square().mean().mul(layer.features).sqrt().item() or _BUILT_GAIN
    # the prior does not depend on the weights at hand, which a resumed run does not have
    prior_scale = posterior.prior_scale * _BUILT_GAIN / posterior.gain
    made = BayesRecurrentLIF.around(
        layer, layer.features, gain=own_gain, kappa=posterior.kappa, prior_scale=prior_scale
    )
    made.weight.data = layer.weight.detach().clone()
    return made


register_posterior(nn.Linear, _linear)
register_posterior(nn.Conv1d, _convolution)
register_posterior(nn.Conv2d, _convolution)
register_posterior(RecurrentLIF, _recurrent)


def to_plain(layer: BayesianLayer, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return the plain layer with the given weights in place of a Bayesian one."""
    made: nn.Module
    if isinstance(layer, BayesRecurrentLIF):
        made = RecurrentLIF.around(layer, layer.features)
    elif isinstance(layer, BayesLinear):
        made = nn.Linear(layer.in_features, layer.out_features, bias is not None)
    else:
        assert isinstance(layer, (BayesConv1d, BayesConv2d))
        kind: Any = layer.plain
        made = kind(*_geometry(layer), bias is not None)
    kept = weight.detach().clone(memory_format=torch.preserve_format)
    made.weight = nn.Parameter(kept, requires_grad=layer.weight.requires_grad)
    if bias is not None:
        assert layer.bias is not None
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=layer.bias.requires_grad)
    return made.train(layer.training)


def _geometry(layer: Any) -> tuple[Any, ...]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return tuple(getattr(layer, name) for name in names)


def _follow_layer(made: BayesianLayer, layer: nn.Module) -> None:
    """Give the new layer the device, dtype, memory format, training mode and frozen parameters of the layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    made.to(weight)
    for parameter in (made.weight, made.weight_log_std):
        parameter.data = torch.empty_like(weight).copy_(parameter)
        parameter.requires_grad_(weight.requires_grad)
    bias = getattr(layer, "bias", None)
    for bias_parameter in (made.bias, made.bias_log_std):
        if bias_parameter is not None and bias is not None:
            bias_parameter.requires_grad_(bias.requires_grad)
    made.train(layer.training)
