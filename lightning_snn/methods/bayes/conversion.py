"""Conversion of plain layers to layers with a posterior, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.methods.bayes.layers import BayesConv1d, BayesConv2d, BayesianLayer, BayesLinear, BayesRecurrentLIF
from lightning_snn.nn.layer_rules import LayerRules
from lightning_snn.nn.neurons import RecurrentLIF

_BUILT_GAIN = 3**-0.5  # standard deviation of the uniform initial weights of a RecurrentLIF times sqrt(fan-in)


class Posterior(NamedTuple):
    """Initial widths of the posterior and prior of a converted layer.

    Attributes:
        gain: see `BayesLinear`.
        kappa: see `BayesLinear`.
        prior_scale: see `BayesianLayer`.

    Example:
        >>> Posterior(gain=1.0, kappa=0.5, prior_scale=1.0).kappa
        0.5
    """

    gain: float
    kappa: float
    prior_scale: float


POSTERIOR_RULES: LayerRules[Callable[[Any, Posterior], BayesianLayer]] = LayerRules(
    unknown="its parameters have no Bayesian counterpart: see `register_posterior`"
)


def register_posterior(kind: type[nn.Module], convert: Callable[[Any, Posterior], BayesianLayer]) -> None:
    """Register the conversion of a layer type to a Bayesian layer.

    Args:
        kind: the layer type.
        convert: returns the Bayesian layer for a layer and the widths of posterior and prior. Device, dtype and frozen
            parameters are copied from the layer afterwards.

    Raises:
        TypeError: if `kind` is not a subclass of `nn.Module`.

    Example:
        >>> class Readout(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x.flatten(1))
        >>> def convert(layer, posterior):
        ...     return BayesLinear(layer.in_features, layer.out_features, **posterior._asdict())
        >>> register_posterior(Readout, convert)
        >>> is_convertible(Readout(4, 3))
        True
    """
    POSTERIOR_RULES.register(kind, convert)


def is_convertible(layer: nn.Module) -> bool:
    """Return whether a layer can get a posterior: it has none yet, a registered type and zero padding.

    Example:
        >>> is_convertible(nn.Linear(4, 3)), is_convertible(nn.BatchNorm1d(4))
        (True, False)
    """
    if isinstance(layer, BayesianLayer) or getattr(layer, "padding_mode", "zeros") != "zeros":
        return False
    return POSTERIOR_RULES.find(layer) is not None


def to_bayesian(layer: nn.Module, posterior: Posterior, keep_weights: bool = False) -> BayesianLayer:
    """Convert a plain layer to a Bayesian one with the same device, dtype and memory format.

    Recurrent weights always keep their values, because with a gain that is large enough for sparse inputs the
    recurrence would diverge. The standard deviation of their posterior starts at `kappa` times their root mean square.
    The prior is that of any other layer: its standard deviation is ``prior_scale / sqrt(fan-in)``.

    Args:
        layer: a layer for which `is_convertible` is True.
        posterior: widths of posterior and prior.
        keep_weights: use the weights of the layer as posterior means instead of drawing them. Frozen weights are always
            kept.

    Example:
        >>> to_bayesian(nn.Linear(4, 3), Posterior(gain=1.0, kappa=0.5, prior_scale=1.0))
        BayesLinear(4, 3, bias=True)
    """
    convert = POSTERIOR_RULES.find(layer)
    assert convert is not None
    made = convert(layer, posterior)
    _follow_layer(made, layer)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if keep_weights or not weight.requires_grad:
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
    # the prior does not depend on the current weights, which a resumed run does not have
    made = BayesRecurrentLIF.around(
        layer, layer.features, gain=own_gain, kappa=posterior.kappa, prior_scale=posterior.prior_scale
    )
    made.weight.data = layer.weight.detach().clone()
    return made


register_posterior(nn.Linear, _linear)
register_posterior(nn.Conv1d, _convolution)
register_posterior(nn.Conv2d, _convolution)
register_posterior(RecurrentLIF, _recurrent)


def to_plain(layer: BayesianLayer, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Convert a Bayesian layer to a plain one with the given weights.

    Args:
        layer: the Bayesian layer.
        weight: weights of the plain layer.
        bias: biases of the plain layer, or None.

    Example:
        >>> layer = BayesLinear(4, 3)
        >>> to_plain(layer, layer.weight, layer.bias)
        Linear(in_features=4, out_features=3, bias=True)
    """
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
    """Copy device, dtype, memory format, training mode and frozen parameters from the plain layer."""
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
