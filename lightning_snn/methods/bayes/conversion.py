"""Plain layers and their Bayesian twins, in both directions."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_snn.methods.bayes.layers import BayesConv1d, BayesConv2d, BayesianLayer, BayesLinear, BayesRecurrentLIF
from lightning_snn.nn.lif import RecurrentLIF

_BUILT_GAIN = 3**-0.5  # of the uniform draw of a RecurrentLIF: its standard deviation times sqrt(fan-in)

CONVERTIBLE = (nn.Linear, nn.Conv1d, nn.Conv2d, RecurrentLIF)


def is_convertible(layer: nn.Module) -> bool:
    """Whether the layer has a Bayesian twin: Linear, Conv1d, Conv2d with zero padding, RecurrentLIF; not one yet."""
    if isinstance(layer, BayesianLayer):
        return False
    return isinstance(layer, CONVERTIBLE) and getattr(layer, "padding_mode", "zeros") == "zeros"


def bayesian_twin(
    layer: nn.Module, gain: float, kappa: float, prior_scale: float, keep_weights: bool = False
) -> BayesianLayer:
    """The Bayesian layer that stands where `layer` stood, on its device, in its dtype and memory format.

    Recurrent weights keep the values that they were built with, whatever `keep_weights`: a gain that wakes a layer
    would make its recurrence explode. Their posterior starts `kappa` times as wide as their root mean square, and their
    prior is ``prior_scale / gain`` times as wide as the uniform draw that a `RecurrentLIF` begins with.

    Args:
        layer: a layer for which `is_convertible` holds.
        gain, kappa, prior_scale: of the posterior and the prior, see `BayesLinear`.
        keep_weights: take the layer's weights as posterior means instead of drawing them; frozen ones are kept anyway.
    """
    options = {"gain": gain, "kappa": kappa, "prior_scale": prior_scale}
    made: BayesianLayer
    if isinstance(layer, RecurrentLIF):
        own_gain = layer.weight.detach().square().mean().mul(layer.features).sqrt().item() or _BUILT_GAIN
        # the prior does not depend on the weights at hand, which a resumed run does not have
        prior = prior_scale * _BUILT_GAIN / gain
        made = _like_recurrent(BayesRecurrentLIF, layer, gain=own_gain, kappa=kappa, prior_scale=prior)
    elif isinstance(layer, nn.Linear):
        made = BayesLinear(layer.in_features, layer.out_features, layer.bias is not None, **options)
    else:
        kind: Any = BayesConv1d if isinstance(layer, nn.Conv1d) else BayesConv2d
        made = kind(*_geometry(layer), layer.bias is not None, **options)
    _follow_layer(made, layer)
    if keep_weights or not layer.weight.requires_grad:  # in the dtype of the layer by now
        made.weight.data.copy_(cast(Tensor, layer.weight))
        if made.bias is not None:
            made.bias.data.copy_(layer.bias)  # type: ignore[arg-type]
    return made


def plain_twin(layer: BayesianLayer, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The ordinary layer with the given weights that stands where a Bayesian one stood."""
    made: nn.Module
    if isinstance(layer, BayesRecurrentLIF):
        made = _like_recurrent(RecurrentLIF, layer)
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


def _like_recurrent(kind: type[RecurrentLIF], layer: RecurrentLIF, **options: Any) -> Any:
    """A recurrent layer of another kind with the same neurons."""
    # the values come with the state: a learned decay may have rounded to 1, with which no layer can be built
    beta, threshold = (
        torch.full_like(value, 0.5) if isinstance(value, Tensor) else value for value in (layer.beta, layer.threshold)
    )
    learned: dict[str, Any] = {"learn_beta": layer.learn_beta, "learn_threshold": layer.learn_threshold}
    made = kind(layer.features, beta, threshold, **learned, **options)
    made.dynamics = layer.dynamics
    # what differs is the posterior; `assign` keeps device and dtype of each
    made.load_state_dict(copy.deepcopy(layer.state_dict()), strict=False, assign=True)
    for name, parameter in layer.named_parameters():
        if name in dict(made.named_parameters()):
            made.get_parameter(name).requires_grad_(parameter.requires_grad)
    return made


def _geometry(layer: Any) -> tuple[Any, ...]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return tuple(getattr(layer, name) for name in names)


def _follow_layer(made: BayesianLayer, layer: nn.Module) -> None:
    """Give the twin the device, dtype, memory format, training mode and frozen parameters of the layer."""
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
