"""Layers and operations on positions: pools, views and slices."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.methods.ttfs.layers import SpikePool2d
from lightning_snn.methods.ttfs.mapping.builder import Place, unpooled
from lightning_snn.methods.ttfs.mapping.signals import (
    Kind,
    Pool,
    Signal,
    Unmappable,
    as_signal,
    over_positions,
    per_channel,
)


def average(place: Place, layer: Any, x: Signal) -> Signal:
    """Average pooling: linear, so that it is folded into the synapses that follow."""
    padded = any(_each(getattr(layer, "padding", 0))) and getattr(layer, "count_include_pad", True)
    keeps = not padded and getattr(layer, "divisor_override", None) is None
    return _pooled(place, x, copy.deepcopy(layer), keeps)


def average_by(kind: type[nn.Module]) -> Callable[..., Signal]:
    """The rule of a function with the arguments of a pooling layer."""
    return lambda place, x, *args, **kwargs: average(place, kind(*args, **kwargs), x)


def mean(place: Place, x: Signal, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Signal:
    """A mean over positions."""
    if dtype is not None:
        raise Unmappable("it changes the dtype")
    axes = {axis % (len(x.shape) + 1) for axis in _each(dim)} if dim is not None else {0}
    if axes & {0, 1}:
        raise Unmappable("it averages over samples or channels; only means over positions have an image")
    pools = {3: nn.AdaptiveAvgPool2d, 2: nn.AdaptiveAvgPool1d}
    if len(axes) != len(x.shape) - 1 or len(x.shape) not in pools:
        raise Unmappable("it averages over some axes of positions only")
    pooled = replace(place, shape=torch.Size((x.shape[0], *(1,) * len(axes))))
    x = _pooled(pooled, x, pools[len(x.shape)](1), True)
    return x if keepdim else reshape(place, x)


def race(place: Place, x: Signal, options: dict[str, Any], sign: Tensor | None = None) -> Signal:
    """Max-pooling: the earliest spike, the latest where a negative scale follows the neurons."""
    if x.kind == "drive":
        x = place.settle(x)
        return replace(x, shape=place.shape, pools=(*x.pools, Pool(place.name, options, x.shape, sign)))
    if x.kind == "sum":
        raise Unmappable("the maximum of averages or sums of spikes is no spike")
    scale, shift = per_channel(x.scale), per_channel(x.shift)
    if (x.scale is not None and scale is None) or (x.shift is not None and shift is None):
        raise Unmappable("it compares positions that are scaled or shifted differently")
    if scale is not None and bool((scale < 0).any()):
        turned = torch.where(scale < 0, -1.0, 1.0)
        sign = turned if sign is None else sign.double() * turned
    if sign is not None and len(x.shape) == 2:
        raise Unmappable("a negative batch-norm scale precedes it; latest spikes are pooled in two dimensions only")
    node = place.layer(place.builder.pool(Pool(place.name, options, x.shape, sign)), x.node)
    wide = [None if v is None else over_positions(v, place.shape) for v in (scale, shift)]
    return Signal(node, place.shape, "spikes", x.nonnegative, wide[0], wide[1])


def max_pool(
    place: Place,
    x: Signal,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Signal:
    if return_indices:
        raise Unmappable("it returns indices")
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    return race(place, x, options | {"dilation": dilation, "ceil_mode": ceil_mode})


def max_pool_layer(place: Place, layer: Any, x: Signal) -> Signal:
    options = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    return max_pool(place, x, *options, return_indices=getattr(layer, "return_indices", False))


def spike_pool(place: Place, layer: SpikePool2d, x: Signal) -> Signal:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return race(place, x, {name: getattr(layer, name) for name in names}, layer.sign)


def adaptive_max_pool(place: Place, x: Signal, output_size: Any, return_indices: bool = False) -> Signal:
    pools = list(zip(x.shape[1:], place.shape[1:], strict=True))
    if any(size % parts for size, parts in pools):
        raise Unmappable(f"its pools of {tuple(x.shape[1:])} positions into {tuple(place.shape[1:])} overlap")
    kernel = tuple(size // parts for size, parts in pools)
    return max_pool(place, x, kernel, kernel, return_indices=return_indices)


def reshape(place: Place, x: Signal, *args: Any, **kwargs: Any) -> Signal:
    """Whatever keeps the order of the elements of a sample: flattening, views, squeezing."""
    if place.rows != place.batch or math.prod(place.shape) != math.prod(x.shape):
        raise Unmappable("it moves elements from sample to sample")
    if place.shape == x.shape:
        return x
    if len(place.shape) == 1:
        return _rearranged(place, x, torch.flatten, 1)
    return _rearranged(place, x, torch.reshape, (-1, *place.shape))


def take(place: Place, x: Any, index: Any) -> Any:
    """Slices of samples."""
    if not isinstance(x, Signal):
        return x[index]
    index = index if isinstance(index, tuple) else (index,)
    plain = all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in index)
    if not plain or not (index[0] is Ellipsis or index[0] == slice(None)) or len(index) > len(x.shape) + 1:
        raise Unmappable("it selects samples or gathers elements; only slices within samples have an image")
    return _rearranged(place, x, operator.getitem, index)


def _rearranged(place: Place, x: Signal, target: Callable[..., Any], *args: Any) -> Signal:
    x = unpooled(x)
    x = place.settle(x) if x.kind == "drive" else x
    scale, shift = (None if v is None else target(v[None], *args)[0] for v in (x.scale, x.shift))
    node = place.function(target, x.node, *args)
    return replace(x, node=node, shape=place.shape, scale=scale, shift=shift, synapses=(), biased=None)


def _pooled(place: Place, x: Signal, layer: nn.Module, keeps_constants: bool) -> Signal:
    x = place.ready(as_signal(x))
    scale = per_channel(x.scale)
    if x.scale is not None and scale is None:
        x = place.settle(x)
    shift = per_channel(x.shift)
    if shift is not None and keeps_constants:
        x = replace(x, shift=over_positions(shift, place.shape))
    elif x.shift is not None:
        x = replace(x, shift=layer(x.shift[None])[0])
    scale = None if scale is None else over_positions(scale, place.shape)
    kind: Kind = "drive" if x.kind == "drive" else "sum"
    biased = x.biased if keeps_constants else None
    return replace(x, node=place.layer(layer, x.node), shape=place.shape, kind=kind, scale=scale, biased=biased)


def _each(value: Any) -> Sequence[int]:
    return value if isinstance(value, (tuple, list)) else (value,)
