"""The mapped graph as it grows, and how pending scales and shifts become weights, offsets or layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_snn.methods.ttfs.layers import FirstSpike, OffsetMap, SpikePool2d
from lightning_snn.methods.ttfs.mapping.signals import (
    OneToOne,
    Pool,
    Signal,
    Unmappable,
    add_bias,
    over_positions,
    per_channel,
    scale_rows,
    total,
)

INPUT, OUTPUT = "encoder", "readout"


class GraphBuilder:
    """A graph of modules by name.

    Args:
        reserved: names that only the modules of the original network may bear.
        like: a parameter whose dtype and device new ones get.
        spiking: whether rectifiers become `FirstSpike` neurons, or stay rectifiers.
    """

    def __init__(self, reserved: Iterable[str], like: Tensor, spiking: bool) -> None:
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.reserved, self.like, self.spiking = set(reserved), like, spiking

    def module(self, name: str, module: nn.Module, *nodes: fx.Node) -> fx.Node:
        """Call a new module, named so or with a number behind it."""
        name = self._free(name, isinstance(module, FirstSpike))
        self.modules[name] = module
        return self.graph.call_module(name, nodes)

    def _free(self, name: str, neurons: bool) -> str:
        taken = set(self.modules) | ({INPUT, OUTPUT} if neurons else set())
        number, free = 0, name
        while free in taken or (number and free in self.reserved):
            number += 1
            free = f"{name}_{number}"
        return free

    def neurons(self) -> nn.Module:
        return FirstSpike().to(self.like.device) if self.spiking else nn.ReLU()

    def pool(self, pool: Pool) -> nn.Module:
        if pool.sign is not None:
            return SpikePool2d(**pool.options, sign=pool.sign.to(self.like))
        if len(pool.shape) == 2:
            return nn.MaxPool1d(**pool.options)
        return SpikePool2d(**pool.options) if self.spiking else nn.MaxPool2d(**pool.options)


@dataclass(frozen=True)
class Place:
    """A place of the original network whose image is being built.

    Attributes:
        builder: the mapped graph.
        name: of the layer or operation there.
        shape: of a sample of what it returns.
        batch: number of samples of the example.
        rows: rows of what it returned for the example; equal to `batch` unless it mixes samples.
    """

    builder: GraphBuilder
    name: str
    shape: torch.Size
    batch: int
    rows: int

    def layer(self, module: nn.Module, *nodes: fx.Node, suffix: str = "") -> fx.Node:
        """Call a module under the name of this place."""
        return self.builder.module(self.name + suffix, module, *nodes)

    def function(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        return self.builder.graph.call_function(target, args)

    def settle(self, x: Signal) -> Signal:
        """The same signal without a pending scale and shift."""
        return self._settle_shift(self.settle_scale(x))

    def settle_scale(self, x: Signal) -> Signal:
        """The same signal without a pending scale: in the rows of its layers, or in synapses of its own."""
        if x.scale is None:
            return x
        values = per_channel(x.scale)
        pools = x.pools if values is None else tuple(_turned(pool, values) for pool in x.pools)
        if x.synapses and values is not None:
            for layer in x.synapses:
                scale_rows(layer, values)
            return replace(x, scale=None, pools=pools)
        weight = x.scale if values is None else values.view(-1, *(1,) * (len(x.shape) - 1))
        synapses = OneToOne(weight.to(self.builder.like).contiguous())
        node = self.layer(synapses, x.node, suffix="_scale")
        return replace(x, node=node, kind="drive", scale=None, synapses=(synapses,), biased=synapses, pools=pools)

    def _settle_shift(self, x: Signal) -> Signal:
        values = per_channel(x.shift)
        if x.biased is not None and values is not None:
            add_bias(x.biased, values)
            x = replace(x, shift=None)
        shift = total(x.shift, x.border)
        if shift is None:
            return x
        if x.pools:
            # settled before them there is nothing left but one value a channel
            assert values is not None
            shift = over_positions(values, x.pools[0].shape)
        offsets = OffsetMap(shift.shape).to(self.builder.like)
        with torch.no_grad():
            offsets.offset.copy_(shift)
        node = self.layer(offsets, x.node, suffix="_offset")
        # a later scale has to reach them too
        synapses = (*x.synapses, offsets) if x.synapses else ()
        return replace(x, node=node, kind="drive", shift=None, border=None, synapses=synapses)

    def ready(self, x: Signal) -> Signal:
        """A signal that a linear map may take: no pools to come, and of a drive nothing pending."""
        x = unpooled(x)
        return self.settle(x) if x.kind == "drive" else x

    def shared(self, x: Signal) -> Signal:
        """The same signal for more than one reader: a drive whose layers stay as they are from here on."""
        return replace(self.settle(x), synapses=(), biased=None) if x.kind == "drive" else x


def unpooled(x: Signal) -> Signal:
    """A signal without pools to come.

    Raises:
        Unmappable: if there are some.
    """
    if x.pools:
        raise Unmappable(f"no rectifier stands between it and {x.pools[-1].name}, a max-pool of potentials")
    return x


def _turned(pool: Pool, values: Tensor) -> Pool:
    """A max-pool that a scale now precedes rather than follows."""
    if not bool((values < 0).any()):
        return pool
    sign = torch.where(values < 0, -1.0, 1.0)
    return replace(pool, sign=sign if pool.sign is None else pool.sign * sign)
