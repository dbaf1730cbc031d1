"""Construction of the converted graph, in which pending scales and shifts become weights, offsets or layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_snn.methods.ttfs.mapping.signals import (
    Pool,
    Signal,
    Unmappable,
    add_bias,
    over_positions,
    per_channel,
    scale_rows,
    total,
)
from lightning_snn.methods.ttfs.neurons import FirstSpike
from lightning_snn.methods.ttfs.pooling import SpikePool2d
from lightning_snn.methods.ttfs.synapses import OffsetMap, OneToOne

INPUT, OUTPUT = "encoder", "readout"


class GraphBuilder:
    """Graph under construction, with its modules by name.

    Args:
        reserved: names that are reserved for modules of the original network.
        like: a parameter with the dtype and device of new ones.
        spiking: whether ReLU layers become `FirstSpike` neurons, or stay ReLU layers.
    """

    def __init__(self, reserved: Iterable[str], like: Tensor, spiking: bool) -> None:
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.reserved, self.like, self.spiking = set(reserved), like, spiking

    def module(self, name: str, module: nn.Module, *nodes: fx.Node) -> fx.Node:
        """Add a module and a call of it; a number is appended to a name that is taken."""
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
        """Return a new layer of neurons, or a ReLU."""
        return FirstSpike().to(self.like.device) if self.spiking else nn.ReLU()

    def pool(self, pool: Pool) -> nn.Module:
        """Return a new max-pooling layer."""
        if pool.sign is not None:
            return SpikePool2d(**pool.options, sign=pool.sign.to(self.like))
        if len(pool.shape) == 2:
            return nn.MaxPool1d(**pool.options)
        return SpikePool2d(**pool.options) if self.spiking else nn.MaxPool2d(**pool.options)


@dataclass(frozen=True)
class Context:
    """Layer or operation of the original network that is being converted.

    Attributes:
        builder: the converted graph.
        name: of the layer or operation.
        shape: of a sample of its output.
        batch: number of samples of the example.
        rows: length of its output for the example; equal to `batch` unless it mixes samples.
    """

    builder: GraphBuilder
    name: str
    shape: torch.Size
    batch: int
    rows: int

    def layer(self, module: nn.Module, *nodes: fx.Node, suffix: str = "") -> fx.Node:
        """Add a module with the name of this layer, and a call of it."""
        return self.builder.module(self.name + suffix, module, *nodes)

    def function(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        """Add a call of a function."""
        return self.builder.graph.call_function(target, args)

    def apply_pending(self, x: Signal) -> Signal:
        """Return the signal with its pending scale and shift applied."""
        return self._apply_shift(self.apply_scale(x))

    def apply_scale(self, x: Signal) -> Signal:
        """Return the signal with its pending scale applied to the rows of its layers, or by new synapses."""
        if x.scale is None:
            return x
        values = per_channel(x.scale)
        pools = x.pools if values is None else tuple(_scaled_pool(pool, values) for pool in x.pools)
        if x.synapses and values is not None:
            for layer in x.synapses:
                scale_rows(layer, values)
            return replace(x, scale=None, pools=pools)
        weight = x.scale if values is None else values.view(-1, *(1,) * (len(x.shape) - 1))
        synapses = OneToOne(weight.to(self.builder.like).contiguous())
        node = self.layer(synapses, x.node, suffix="_scale")
        return replace(x, node=node, kind="potential", scale=None, synapses=(synapses,), biased=synapses, pools=pools)

    def _apply_shift(self, x: Signal) -> Signal:
        values = per_channel(x.shift)
        if x.biased is not None and values is not None:
            add_bias(x.biased, values)
            x = replace(x, shift=None)
        shift = total(x.shift, x.border)
        if shift is None:
            return x
        if x.pools:
            # what is pending before pools has one value per channel
            assert values is not None
            shift = over_positions(values, x.pools[0].shape)
        offsets = OffsetMap(shift.shape).to(self.builder.like)
        with torch.no_grad():
            offsets.offset.copy_(shift)
        node = self.layer(offsets, x.node, suffix="_offset")
        # a later scale applies to them too
        synapses = (*x.synapses, offsets) if x.synapses else ()
        return replace(x, node=node, kind="potential", shift=None, border=None, synapses=synapses)

    def linear_input(self, x: Signal) -> Signal:
        """Return the signal as input of a linear map: without pending pools, and potentials with nothing pending."""
        x = without_pools(x)
        return self.apply_pending(x) if x.kind == "potential" else x

    def shared(self, x: Signal) -> Signal:
        """Return the signal as input of several layers: the synapses of potentials must not change any more."""
        return replace(self.apply_pending(x), synapses=(), biased=None) if x.kind == "potential" else x


def without_pools(x: Signal) -> Signal:
    """Return a signal without pending pools.

    Raises:
        Unmappable: if it has pending pools.
    """
    if x.pools:
        raise Unmappable(f"no ReLU is between it and {x.pools[-1].name}, a max-pool of potentials")
    return x


def _scaled_pool(pool: Pool, values: Tensor) -> Pool:
    """Return a max-pool before which a scale is applied, in place of after it."""
    if not bool((values < 0).any()):
        return pool
    sign = torch.where(values < 0, -1.0, 1.0)
    return replace(pool, sign=sign if pool.sign is None else pool.sign * sign)
