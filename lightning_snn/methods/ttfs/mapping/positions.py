"""Rules for layers and operations on positions: pools, views and slices."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.methods.ttfs.mapping.builder import Context, without_pools
from lightning_snn.methods.ttfs.mapping.signals import (
    Kind,
    Pool,
    Signal,
    Unmappable,
    as_signal,
    over_positions,
    per_channel,
)
from lightning_snn.methods.ttfs.pooling import SpikePool2d


def average(context: Context, layer: Any, x: Signal) -> Signal:
    """Convert average pooling, which is linear and so becomes part of the next synapses."""
    padded = any(_each(getattr(layer, "padding", 0))) and getattr(layer, "count_include_pad", True)
    keeps = not padded and getattr(layer, "divisor_override", None) is None
    return _pooled(context, x, copy.deepcopy(layer), keeps)


def average_by(kind: type[nn.Module]) -> Callable[..., Signal]:
    """Return the rule of a function that has the arguments of a pooling layer."""
    return lambda context, x, *args, **kwargs: average(context, kind(*args, **kwargs), x)


def mean(context: Context, x: Signal, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Signal:
    """Convert a mean over positions."""
    if dtype is not None:
        raise Unmappable("it changes the dtype")
    axes = {axis % (len(x.shape) + 1) for axis in _each(dim)} if dim is not None else {0}
    if axes & {0, 1}:
        raise Unmappable("it averages over samples or channels; only means over positions have a TTFS equivalent")
    pools = {3: nn.AdaptiveAvgPool2d, 2: nn.AdaptiveAvgPool1d}
    if len(axes) != len(x.shape) - 1 or len(x.shape) not in pools:
        raise Unmappable("it averages over some of the axes of positions only")
    pooled = replace(context, shape=torch.Size((x.shape[0], *(1,) * len(axes))))
    x = _pooled(pooled, x, pools[len(x.shape)](1), True)
    return x if keepdim else reshape(context, x)


def pool_spikes(context: Context, x: Signal, options: dict[str, Any], sign: Tensor | None = None) -> Signal:
    """Convert max-pooling to the earliest spike, or to the latest if a negative scale follows the neurons."""
    if x.kind == "potential":
        x = context.apply_pending(x)
        return replace(x, shape=context.shape, pools=(*x.pools, Pool(context.name, options, x.shape, sign)))
    if x.kind == "sum":
        raise Unmappable("the maximum of averages or sums of spikes is not a spike")
    scale, shift = per_channel(x.scale), per_channel(x.shift)
    if (x.scale is not None and scale is None) or (x.shift is not None and shift is None):
        raise Unmappable("it compares positions with different scales or shifts")
    if scale is not None and bool((scale < 0).any()):
        signs = torch.where(scale < 0, -1.0, 1.0)
        sign = signs if sign is None else sign.double() * signs
    if sign is not None and len(x.shape) == 2:
        raise Unmappable("it follows a negative batch-norm scale; latest spikes are pooled in two dimensions only")
    node = context.layer(context.builder.pool(Pool(context.name, options, x.shape, sign)), x.node)
    wide = [None if v is None else over_positions(v, context.shape) for v in (scale, shift)]
    return Signal(node, context.shape, "spikes", x.nonnegative, wide[0], wide[1])


def max_pool(
    context: Context,
    x: Signal,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Signal:
    """Convert a function for max-pooling."""
    if return_indices:
        raise Unmappable("it returns indices")
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    return pool_spikes(context, x, options | {"dilation": dilation, "ceil_mode": ceil_mode})


def max_pool_layer(context: Context, layer: Any, x: Signal) -> Signal:
    """Convert a max-pooling layer."""
    options = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    return max_pool(context, x, *options, return_indices=getattr(layer, "return_indices", False))


def spike_pool(context: Context, layer: SpikePool2d, x: Signal) -> Signal:
    """Convert max-pooling of spikes."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return pool_spikes(context, x, {name: getattr(layer, name) for name in names}, layer.sign)


def adaptive_max_pool(context: Context, x: Signal, output_size: Any, return_indices: bool = False) -> Signal:
    """Convert a function for adaptive max-pooling."""
    pools = list(zip(x.shape[1:], context.shape[1:], strict=True))
    if any(size % parts for size, parts in pools):
        raise Unmappable(f"its pools of {tuple(x.shape[1:])} positions into {tuple(context.shape[1:])} overlap")
    kernel = tuple(size // parts for size, parts in pools)
    return max_pool(context, x, kernel, kernel, return_indices=return_indices)


def reshape(context: Context, x: Signal, *args: Any, **kwargs: Any) -> Signal:
    """Convert an operation that keeps the order of the elements of a sample: flattening, views, squeezing."""
    if context.rows != context.batch or math.prod(context.shape) != math.prod(x.shape):
        raise Unmappable("it moves elements from sample to sample")
    if context.shape == x.shape:
        return x
    if len(context.shape) == 1:
        return _rearranged(context, x, torch.flatten, 1)
    return _rearranged(context, x, torch.reshape, (-1, *context.shape))


def select(context: Context, x: Any, index: Any) -> Any:
    """Convert a slice of each sample."""
    if not isinstance(x, Signal):
        return x[index]
    index = index if isinstance(index, tuple) else (index,)
    plain = all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in index)
    if not plain or not (index[0] is Ellipsis or index[0] == slice(None)) or len(index) > len(x.shape) + 1:
        raise Unmappable("it selects samples or gathers elements; only slices within samples have a TTFS equivalent")
    return _rearranged(context, x, operator.getitem, index)


def _rearranged(context: Context, x: Signal, target: Callable[..., Any], *args: Any) -> Signal:
    x = without_pools(x)
    x = context.apply_pending(x) if x.kind == "potential" else x
    scale, shift = (None if v is None else target(v[None], *args)[0] for v in (x.scale, x.shift))
    node = context.function(target, x.node, *args)
    return replace(x, node=node, shape=context.shape, scale=scale, shift=shift, synapses=(), biased=None)


def _pooled(context: Context, x: Signal, layer: nn.Module, keeps_constants: bool) -> Signal:
    x = context.linear_input(as_signal(x))
    scale = per_channel(x.scale)
    if x.scale is not None and scale is None:
        x = context.apply_pending(x)
    shift = per_channel(x.shift)
    if shift is not None and keeps_constants:
        x = replace(x, shift=over_positions(shift, context.shape))
    elif x.shift is not None:
        x = replace(x, shift=layer(x.shift[None])[0])
    scale = None if scale is None else over_positions(scale, context.shape)
    kind: Kind = "potential" if x.kind == "potential" else "sum"
    biased = x.biased if keeps_constants else None
    return replace(x, node=context.layer(layer, x.node), shape=context.shape, kind=kind, scale=scale, biased=biased)


def _each(value: Any) -> Sequence[int]:
    return value if isinstance(value, (tuple, list)) else (value,)
