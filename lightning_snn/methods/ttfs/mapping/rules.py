"""Conversion rules of layers and operations: functions of signals that raise `Unmappable` with a reason."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.methods.ttfs.mapping.builder import Context, without_pools
from lightning_snn.methods.ttfs.mapping.positions import (
    adaptive_max_pool,
    average,
    average_by,
    max_pool,
    max_pool_layer,
    mean,
    reshape,
    select,
    spike_pool,
)
from lightning_snn.methods.ttfs.mapping.signals import (
    Kind,
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
from lightning_snn.methods.ttfs.neurons import FirstSpike
from lightning_snn.methods.ttfs.pooling import SpikePool2d
from lightning_snn.methods.ttfs.synapses import OffsetMap, OneToOne
from lightning_snn.nn.layer_rules import LayerRules
from lightning_snn.nn.neurons import LIF

Rule = Callable[..., Any]
_NUMBER = (int, float)


def relu(context: Context, x: Signal, inplace: bool = False) -> Signal:
    """Convert a ReLU to neurons, or to nothing if no value is negative; as it is monotonic, it may precede pools."""
    if x.kind != "potential" and x.nonnegative:
        return x
    x = context.apply_pending(x)
    node = context.layer(context.builder.neurons(), x.node)
    for pool in x.pools:
        node = context.builder.module(pool.name, context.builder.pool(pool), node)
    return Signal(node, x.shape, "spikes", nonnegative=True)


def weighted(context: Context, layer: Any, x: Signal) -> Signal:
    """Convert a weight layer: scales before it become part of its columns, shifts become biases or border maps."""
    x = context.linear_input(as_signal(x))
    scale = x.scale
    if isinstance(layer, nn.Linear):
        if len(x.shape) != 1:
            raise Unmappable(f"it is applied to samples of shape {tuple(x.shape)}; only flat samples are supported")
    elif scale is not None:
        scale = per_channel(scale)
        x = context.apply_pending(x) if scale is None else x
    shift, border = (None, None) if x.shift is None else response(layer, x.shift, context.shape)
    synapses = copy.deepcopy(layer)
    if scale is not None:
        scale_columns(synapses, scale)
    node = context.layer(synapses, x.node)
    return Signal(node, context.shape, "potential", shift=shift, border=border, synapses=(synapses,), biased=synapses)


def one_to_one(context: Context, layer: OneToOne, x: Signal) -> Signal:
    """Convert a scaled skip connection."""
    x = context.apply_pending(without_pools(x))
    synapses = copy.deepcopy(layer)
    node = context.layer(synapses, x.node)
    return Signal(node, x.shape, "potential", synapses=(synapses,), biased=synapses)


def normalize(context: Context, layer: Any, x: Signal) -> Signal:
    r"""Convert batch normalization.

    The scale is :math:`\kappa = \gamma / \sqrt{\sigma^2 + \epsilon}` and the shift :math:`\beta - \mu \kappa`.
    """
    if layer.running_mean is None:
        raise Unmappable("it normalizes by the statistics of each batch and has no running statistics")
    kappa = (layer.running_var.double() + layer.eps).rsqrt()
    kappa = kappa if layer.weight is None else kappa * layer.weight.detach().double()
    shift = -layer.running_mean.double() * kappa
    shift = shift if layer.bias is None else shift + layer.bias.detach().double()
    return affine(x, over_positions(kappa, x.shape), over_positions(shift, x.shape))


def affine(x: Signal, scale: Tensor | None = None, shift: Tensor | None = None) -> Signal:
    """Return ``scale * x + shift``."""
    nonnegative = x.nonnegative and never_negative(scale) and never_negative(shift)
    moved, border = (v if scale is None or v is None else scale * v for v in (x.shift, x.border))
    shift = total(moved, shift)
    return replace(x, scale=product(scale, x.scale), shift=shift, border=border, nonnegative=nonnegative)


def offset(context: Context, layer: OffsetMap, x: Signal) -> Signal:
    """Convert threshold offsets; two border maps that cancel up to rounding are removed."""
    x = without_pools(x)
    added = layer.offset.detach()
    if x.kind != "potential":
        return affine(x, shift=added.double())
    x = context.apply_scale(x)
    border = added.double() if x.border is None else x.border + added.double()
    rounding = 16 * torch.finfo(added.dtype).eps * added.abs().amax().double()
    return replace(x, border=None if bool((border.abs() <= rounding).all()) else border)


def add(context: Context, one: Any, other: Any, *, alpha: float = 1) -> Signal:
    """Convert a sum with a number, of spike trains, or of potentials."""
    if alpha != 1:
        other = multiply(context, other, alpha)
    if isinstance(one, _NUMBER) or isinstance(other, _NUMBER):
        x, number = (other, one) if isinstance(one, _NUMBER) else (one, other)
        x = as_signal(x)
        return affine(x, shift=_filled(context, x, number))
    one, other = without_pools(as_signal(one)), without_pools(as_signal(other))
    if one.shape != other.shape:
        raise Unmappable(f"it adds samples of the shapes {tuple(one.shape)} and {tuple(other.shape)}")
    if one.kind != "potential" and other.kind != "potential" and _equal(one.scale, other.scale):
        node = context.function(operator.add, one.node, other.node)
        nonnegative = one.nonnegative and other.nonnegative
        return Signal(node, one.shape, "sum", nonnegative, one.scale, total(one.shift, other.shift))
    applied = [context.apply_pending(x) if x.biased is not None else context.apply_scale(x) for x in (one, other)]
    node = context.function(operator.add, *(x.node for x in applied))
    # a scale applies to all terms or to none
    synapses = (
        tuple(dict.fromkeys(layer for x in applied for layer in x.synapses)) if all(x.synapses for x in applied) else ()
    )
    biased = next((x.biased for x in applied if x.biased is not None), None)
    shift, border = total(*(x.shift for x in applied)), total(*(x.border for x in applied))
    return Signal(node, one.shape, "potential", shift=shift, border=border, synapses=synapses, biased=biased)


def subtract(context: Context, one: Any, other: Any) -> Signal:
    """Convert a difference."""
    return add(context, one, -other if isinstance(other, _NUMBER) else multiply(context, other, -1))


def multiply(context: Context, one: Any, other: Any) -> Signal:
    """Convert a product with a number."""
    x, number = (other, one) if isinstance(one, _NUMBER) else (one, other)
    if not isinstance(number, _NUMBER):
        raise Unmappable("it multiplies activations with each other, which synapses cannot do")
    x = as_signal(x)
    return affine(x, scale=_filled(context, x, number))


def divide(context: Context, one: Any, other: Any) -> Signal:
    """Convert a quotient by a number."""
    if not isinstance(other, _NUMBER):
        raise Unmappable("it divides by activations, which synapses cannot do")
    return multiply(context, one, 1 / other)


def concatenate(context: Context, tensors: Sequence[Any], dim: int = 0) -> Signal:
    """Convert a concatenation."""
    parts = [without_pools(as_signal(x)) for x in tensors]
    axis = dim if dim >= 0 else dim + len(context.shape) + 1
    if axis == 0:
        raise Unmappable("it concatenates samples")
    if any(x.kind == "potential" for x in parts):
        parts = [context.apply_pending(x) for x in parts]
        node = context.function(torch.cat, [x.node for x in parts], axis)
        return Signal(node, context.shape, "potential")
    node = context.function(torch.cat, [x.node for x in parts], axis)
    kind: Kind = "spikes" if all(x.kind == "spikes" for x in parts) else "sum"

    def joined(values: list[Tensor | None], empty: float) -> Tensor | None:
        if all(value is None for value in values):
            return None
        like = next(value for value in values if value is not None)
        filled = [like.new_full(x.shape, empty) if v is None else v for x, v in zip(parts, values, strict=True)]
        return torch.cat(filled, axis - 1)

    scale, shift = joined([x.scale for x in parts], 1.0), joined([x.shift for x in parts], 0.0)
    return Signal(node, context.shape, kind, all(x.nonnegative for x in parts), scale, shift)


def dropout_layer(context: Context, layer: Any, x: Signal) -> Signal:
    """Convert dropout, which masks spikes while training."""
    x = context.linear_input(as_signal(x))
    return replace(x, node=context.layer(copy.deepcopy(layer), x.node), biased=None)


def dropout(kind: type[nn.Module]) -> Rule:
    """Return the rule of a function that has the arguments of a dropout layer."""

    def rule(context: Context, x: Signal, p: float = 0.5, training: bool = True, inplace: bool = False) -> Signal:
        if training:
            raise Unmappable("it is active in evaluation too; use `training=self.training`")
        return dropout_layer(context, kind(p), x)

    return rule


def same(context: Context, x: Signal, *args: Any, **kwargs: Any) -> Signal:
    """Convert an identity."""
    return x


def _filled(context: Context, x: Signal, number: float) -> Tensor:
    return torch.full(x.shape, float(number), dtype=torch.float64, device=context.builder.like.device)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _plain(rule: Rule) -> Rule:
    """Return the rule of a layer with the rule of an operation without options."""
    return lambda context, layer, x: rule(context, x)


TTFS_RULES: LayerRules[Rule] = LayerRules(unknown="it has no TTFS equivalent")


def register_ttfs_rule(kind: type[nn.Module], rule: Rule) -> None:
    """Set how layers of a type are converted to time-to-first-spike.

    Args:
        kind: the layer type.
        rule: ``rule(context, layer, x) -> signal``; it raises `Unmappable` with a reason for what it cannot convert.

    Raises:
        TypeError: if `kind` is not a subclass of `nn.Module`.
    """
    TTFS_RULES.register(kind, rule)


_RULES_OF_LAYERS: dict[type[nn.Module], Rule] = {
    nn.Linear: weighted,
    nn.Conv1d: weighted,
    nn.Conv2d: weighted,
    OneToOne: one_to_one,
    OffsetMap: offset,
    nn.BatchNorm1d: normalize,
    nn.BatchNorm2d: normalize,
    nn.SyncBatchNorm: normalize,
    nn.ReLU: _plain(relu),
    LIF: _plain(relu),
    FirstSpike: _plain(relu),
    nn.MaxPool1d: max_pool_layer,
    nn.MaxPool2d: max_pool_layer,
    SpikePool2d: spike_pool,
    nn.AdaptiveMaxPool2d: lambda context, layer, x: adaptive_max_pool(context, x, None, layer.return_indices),
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
for _kind, _rule in _RULES_OF_LAYERS.items():
    register_ttfs_rule(_kind, _rule)


OPERATIONS: dict[Any, Rule] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), relu),
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
    operator.getitem: select,
    **dict.fromkeys(("contiguous", "clone"), same),
}
