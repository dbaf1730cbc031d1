"""The image of every layer and operation: what it makes of signals, and why it has none."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.methods.ttfs.layers import FirstSpike, OffsetMap, SpikePool2d
from lightning_snn.methods.ttfs.mapping.builder import Place, unpooled
from lightning_snn.methods.ttfs.mapping.positions import (
    adaptive_max_pool,
    average,
    average_by,
    max_pool,
    max_pool_layer,
    mean,
    reshape,
    spike_pool,
    take,
)
from lightning_snn.methods.ttfs.mapping.signals import (
    Kind,
    OneToOne,
    Signal,
    Unmappable,
    as_signal,
    never_negative,
    over_positions,
    per_channel,
    product,
    response,
    scale_columns,
    total,
)
from lightning_snn.nn.neurons import LIF

Rule = Callable[..., Any]
_NUMBER = (int, float)


def rectify(place: Place, x: Signal, inplace: bool = False) -> Signal:
    """Neurons; none where nothing is negative. A rectifier never falls, so that it moves before pending max-pools."""
    if x.kind != "drive" and x.nonnegative:
        return x
    x = place.settle(x)
    node = place.layer(place.builder.neurons(), x.node)
    for pool in x.pools:
        node = place.builder.module(pool.name, place.builder.pool(pool), node)
    return Signal(node, x.shape, "spikes", nonnegative=True)


def weighted(place: Place, layer: Any, x: Signal) -> Signal:
    """A weight layer: scales before it go into its columns, shifts become biases or border maps."""
    x = place.ready(as_signal(x))
    scale = x.scale
    if isinstance(layer, nn.Linear):
        if len(x.shape) != 1:
            raise Unmappable(f"it is applied to samples of shape {tuple(x.shape)}; only flat ones have an image")
    elif scale is not None:
        scale = per_channel(scale)
        x = place.settle(x) if scale is None else x
    shift, border = (None, None) if x.shift is None else response(layer, x.shift, place.shape)
    synapses = copy.deepcopy(layer)
    if scale is not None:
        scale_columns(synapses, scale)
    node = place.layer(synapses, x.node)
    return Signal(node, place.shape, "drive", shift=shift, border=border, synapses=(synapses,), biased=synapses)


def one_to_one(place: Place, layer: OneToOne, x: Signal) -> Signal:
    """Scaled skip connections."""
    x = place.settle(unpooled(x))
    synapses = copy.deepcopy(layer)
    node = place.layer(synapses, x.node)
    return Signal(node, x.shape, "drive", synapses=(synapses,), biased=synapses)


def normalize(place: Place, layer: Any, x: Signal) -> Signal:
    r"""Batch normalization, :math:`\kappa = \gamma / \sqrt{\sigma^2 + \epsilon}`, shift :math:`\beta - \mu \kappa`."""
    if layer.running_mean is None:
        raise Unmappable("it normalizes by the statistics of each batch, and has none of its own")
    kappa = (layer.running_var.double() + layer.eps).rsqrt()
    kappa = kappa if layer.weight is None else kappa * layer.weight.detach().double()
    shift = -layer.running_mean.double() * kappa
    shift = shift if layer.bias is None else shift + layer.bias.detach().double()
    return affine(x, over_positions(kappa, x.shape), over_positions(shift, x.shape))


def affine(x: Signal, scale: Tensor | None = None, shift: Tensor | None = None) -> Signal:
    """``scale * x + shift``."""
    nonnegative = x.nonnegative and never_negative(scale) and never_negative(shift)
    moved, border = (v if scale is None or v is None else scale * v for v in (x.shift, x.border))
    shift = total(moved, shift)
    return replace(x, scale=product(scale, x.scale), shift=shift, border=border, nonnegative=nonnegative)


def offset(place: Place, layer: OffsetMap, x: Signal) -> Signal:
    """Border maps. Where two of them cancel up to rounding there is none."""
    x = unpooled(x)
    added = layer.offset.detach()
    if x.kind != "drive":
        return affine(x, shift=added.double())
    x = place.settle_scale(x)
    border = added.double() if x.border is None else x.border + added.double()
    rounding = 16 * torch.finfo(added.dtype).eps * added.abs().amax().double()
    return replace(x, border=None if bool((border.abs() <= rounding).all()) else border)


def add(place: Place, one: Any, other: Any, *, alpha: float = 1) -> Signal:
    """Sums with a number, of spike trains, and of potentials."""
    if alpha != 1:
        other = multiply(place, other, alpha)
    if isinstance(one, _NUMBER) or isinstance(other, _NUMBER):
        x, number = (other, one) if isinstance(one, _NUMBER) else (one, other)
        x = as_signal(x)
        return affine(x, shift=_filled(place, x, number))
    one, other = unpooled(as_signal(one)), unpooled(as_signal(other))
    if one.shape != other.shape:
        raise Unmappable(f"it adds samples of the shapes {tuple(one.shape)} and {tuple(other.shape)}")
    if one.kind != "drive" and other.kind != "drive" and _equal(one.scale, other.scale):
        node = place.function(operator.add, one.node, other.node)
        nonnegative = one.nonnegative and other.nonnegative
        return Signal(node, one.shape, "sum", nonnegative, one.scale, total(one.shift, other.shift))
    settled = [place.settle(x) if x.biased is not None else place.settle_scale(x) for x in (one, other)]
    node = place.function(operator.add, *(x.node for x in settled))
    # a scale is spread over all that is added, or over nothing
    synapses = (
        tuple(dict.fromkeys(layer for x in settled for layer in x.synapses)) if all(x.synapses for x in settled) else ()
    )
    biased = next((x.biased for x in settled if x.biased is not None), None)
    shift, border = total(*(x.shift for x in settled)), total(*(x.border for x in settled))
    return Signal(node, one.shape, "drive", shift=shift, border=border, synapses=synapses, biased=biased)


def subtract(place: Place, one: Any, other: Any) -> Signal:
    return add(place, one, -other if isinstance(other, _NUMBER) else multiply(place, other, -1))


def multiply(place: Place, one: Any, other: Any) -> Signal:
    """By a number only."""
    x, number = (other, one) if isinstance(one, _NUMBER) else (one, other)
    if not isinstance(number, _NUMBER):
        raise Unmappable("it multiplies activations with one another, which no synapse does")
    x = as_signal(x)
    return affine(x, scale=_filled(place, x, number))


def divide(place: Place, one: Any, other: Any) -> Signal:
    if not isinstance(other, _NUMBER):
        raise Unmappable("it divides by activations, which no synapse does")
    return multiply(place, one, 1 / other)


def concatenate(place: Place, tensors: Sequence[Any], dim: int = 0) -> Signal:
    """Trains of several layers side by side."""
    parts = [unpooled(as_signal(x)) for x in tensors]
    axis = dim if dim >= 0 else dim + len(place.shape) + 1
    if axis == 0:
        raise Unmappable("it concatenates samples")
    if any(x.kind == "drive" for x in parts):
        parts = [place.settle(x) for x in parts]
        node = place.function(torch.cat, [x.node for x in parts], axis)
        return Signal(node, place.shape, "drive")
    node = place.function(torch.cat, [x.node for x in parts], axis)
    kind: Kind = "spikes" if all(x.kind == "spikes" for x in parts) else "sum"

    def joined(values: list[Tensor | None], empty: float) -> Tensor | None:
        if all(value is None for value in values):
            return None
        like = next(value for value in values if value is not None)
        filled = [like.new_full(x.shape, empty) if v is None else v for x, v in zip(parts, values, strict=True)]
        return torch.cat(filled, axis - 1)

    scale, shift = joined([x.scale for x in parts], 1.0), joined([x.shift for x in parts], 0.0)
    return Signal(node, place.shape, kind, all(x.nonnegative for x in parts), scale, shift)


def dropout_layer(place: Place, layer: Any, x: Signal) -> Signal:
    """Masks spikes in training."""
    x = place.ready(as_signal(x))
    return replace(x, node=place.layer(copy.deepcopy(layer), x.node), biased=None)


def dropout(kind: type[nn.Module]) -> Rule:
    def rule(place: Place, x: Signal, p: float = 0.5, training: bool = True, inplace: bool = False) -> Signal:
        if training:
            raise Unmappable("it does not end with training; use `training=self.training`")
        return dropout_layer(place, kind(p), x)

    return rule


def same(place: Place, x: Signal, *args: Any, **kwargs: Any) -> Signal:
    return x


def _filled(place: Place, x: Signal, number: float) -> Tensor:
    return torch.full(x.shape, float(number), dtype=torch.float64, device=place.builder.like.device)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _plain(rule: Rule) -> Rule:
    """The rule of a layer that an operation without options stands for."""
    return lambda place, layer, x: rule(place, x)


MODULES: dict[type[nn.Module], Rule] = {
    nn.Linear: weighted,
    nn.Conv1d: weighted,
    nn.Conv2d: weighted,
    OneToOne: one_to_one,
    OffsetMap: offset,
    nn.BatchNorm1d: normalize,
    nn.BatchNorm2d: normalize,
    nn.SyncBatchNorm: normalize,
    nn.ReLU: _plain(rectify),
    LIF: _plain(rectify),
    FirstSpike: _plain(rectify),
    nn.MaxPool1d: max_pool_layer,
    nn.MaxPool2d: max_pool_layer,
    SpikePool2d: spike_pool,
    nn.AdaptiveMaxPool2d: lambda place, layer, x: adaptive_max_pool(place, x, None, layer.return_indices),
    nn.AvgPool1d: average,
    nn.AvgPool2d: average,
    nn.AdaptiveAvgPool1d: average,
    nn.AdaptiveAvgPool2d: average,
    nn.Dropout: dropout_layer,
    nn.Dropout1d: dropout_layer,
    nn.Dropout2d: dropout_layer,
    nn.Flatten: _plain(reshape),
    nn.Unflatten: _plain(reshape),
    nn.Identity: _plain(same),
}


OPERATIONS: dict[Any, Rule] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), rectify),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), subtract),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), multiply),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), divide),
    **dict.fromkeys((torch.cat, torch.concat), concatenate),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d), max_pool),
    F.adaptive_max_pool2d: adaptive_max_pool,
    F.avg_pool1d: average_by(nn.AvgPool1d),
    F.avg_pool2d: average_by(nn.AvgPool2d),
    F.adaptive_avg_pool1d: average_by(nn.AdaptiveAvgPool1d),
    F.adaptive_avg_pool2d: average_by(nn.AdaptiveAvgPool2d),
    **dict.fromkeys((torch.mean, "mean"), mean),
    F.dropout: dropout(nn.Dropout),
    F.dropout2d: dropout(nn.Dropout2d),
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze), reshape),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze"), reshape),
    operator.getitem: take,
    **dict.fromkeys(("contiguous", "clone"), same),
}
