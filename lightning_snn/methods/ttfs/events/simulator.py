"""Simulation of a network of first-spike neurons, sample by sample and layer by layer."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lightning_snn.methods.ttfs.alpha import AlphaConv2d, AlphaLinear
from lightning_snn.methods.ttfs.encoder import SpikeEncoder
from lightning_snn.methods.ttfs.events.neurons import Fired, fire
from lightning_snn.methods.ttfs.events.record import EventRecord
from lightning_snn.methods.ttfs.events.synapses import (
    Currents,
    Signal,
    SynapticInput,
    Trains,
    average,
    connect,
    float64,
    max_pool,
    mix,
    over_positions,
    rearrange,
    scale,
)
from lightning_snn.methods.ttfs.neurons import FirstSpike
from lightning_snn.methods.ttfs.pooling import SpikePool2d
from lightning_snn.methods.ttfs.synapses import OffsetMap, OneToOne
from lightning_snn.nn.tracer import ThreadTracer

# number of arrivals in memory at a time, for wide layers
_ARRIVALS = 2**21
_SYNAPSES = (nn.Linear, nn.Conv1d, nn.Conv2d)
_MAX_POOLS = (SpikePool2d, nn.MaxPool1d, nn.MaxPool2d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_SUMS = (operator.add, operator.iadd, torch.add)
_REARRANGEMENTS = (torch.flatten, torch.reshape, operator.getitem)
_REARRANGING_METHODS = ("flatten", "reshape", "view")


@torch.no_grad()
def simulate(
    network: nn.Module,
    x: Tensor,
    gated: bool = True,
    forced: bool = False,
    single_slope: bool = False,
    delays: bool = True,
) -> EventRecord:
    """Simulate a network of first-spike neurons event by event, in float64.

    The network is left unchanged; dropout is off.

    Args:
        network: a `TTFSNetwork`, or any module that `torch.fx` can trace, whose neurons are `FirstSpike`,
            `AlphaLinear` or `AlphaConv2d` with consecutive windows (`methods.ttfs.cascade`). Linear layers,
            convolutions, pooling, offset maps, sums and concatenations may be between them.
        x: inputs `[B, ...]` of the network's `SpikeEncoder`.
        gated: whether neurons cannot fire before their t_min; otherwise they fire at the first crossing of the
            threshold.
        forced: silent inputs and neurons spike at the end of their window, where a spike adds no potential.
        single_slope: before and after t_min the slope is alpha plus the weights of all spikes so far, with
            ``alpha = B - sum_j W_j``, and the threshold is changed by the contribution of alpha. Exact with `forced`
            only.
        delays: spikes that skip layers wait until the window before the t_min of the next layer. Without delays they
            arrive when they are emitted, and each adds an offset: a control, which has to fail.

    Returns:
        Spikes and potentials of all layers.

    Raises:
        ValueError: if the network has layers without spikes, windows that overlap, or active constraints on times.

    Example:
        >>> network = nn.Sequential(SpikeEncoder(), nn.Linear(2, 3), FirstSpike(10.0), nn.Linear(3, 2))
        >>> x = torch.rand(4, 2)
        >>> record = simulate(network, x)
        >>> torch.allclose(record.outputs.float(), network(x), atol=1e-5)
        True
    """
    module = fx.GraphModule(network, _Tracer().trace(network))
    for name, layer in network.named_modules():
        constraints = getattr(layer, "constraints", None)
        if isinstance(layer, (FirstSpike, SpikeEncoder)) and constraints is not None and constraints.active:
            raise ValueError(f"Expected no constraints on spike times for the event simulator, but got some on {name}")
    names = {layer: name for name, layer in getattr(network, "spiking", ())}
    options = _Options(gated, forced, single_slope, delays)
    samples = [_Sample(module, names, options) for _ in range(len(x))]
    read = [sample.read(sample.run(row[None])) for sample, row in zip(samples, x, strict=True)]

    def stacked(field: str) -> dict[str, Tensor]:
        layers = samples[0].fired
        found = {name: [getattr(sample.fired[name], field) for sample in samples] for name in layers}
        return {name: torch.stack(parts) for name, parts in found.items() if parts[0] is not None}

    return EventRecord(
        torch.stack([potential for potential, _ in read]), read[0][1], *(stacked(field) for field in Fired._fields)
    )


@dataclass(frozen=True)
class _Options:
    gated: bool
    forced: bool
    single_slope: bool
    delays: bool


@dataclass(frozen=True)
class _Neurons:
    """Slopes before and from t_min, thresholds (each `[n]`), and the window of a layer of neurons."""

    before: Tensor
    slope: Tensor
    threshold: Tensor
    t_min: float
    t_max: float


class _Tracer(ThreadTracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = (FirstSpike, SpikeEncoder, OffsetMap, SpikePool2d, AlphaLinear, AlphaConv2d, OneToOne)
        return isinstance(m, ours) or super().is_leaf_module(m, module_qualified_name)


class _Sample(fx.Interpreter):
    """Interpreter of the graph for one sample, as spike trains and currents."""

    def __init__(self, module: fx.GraphModule, names: dict[nn.Module, str], options: _Options) -> None:
        super().__init__(module)
        self.names, self.options = names, options
        self.fired: dict[str, Any] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer, value = self.fetch_attr(target), args[0]
        name = self.names.get(layer, target)
        if isinstance(layer, _IDENTITIES):
            return value
        if isinstance(layer, (nn.Flatten, nn.Unflatten)):
            return _rearranged(value, layer)
        if isinstance(layer, SpikeEncoder) and isinstance(value, Tensor):
            return self._encode(layer, value, name)
        if isinstance(layer, FirstSpike) and isinstance(value, Signal):
            return self._first_spike(layer, _currents(value), name)
        if isinstance(layer, _AVERAGE_POOLS) and isinstance(value, Signal):
            return average(value, layer)
        if isinstance(layer, OffsetMap) and isinstance(value, Signal):
            return _shifted(value, layer.offset)
        if isinstance(layer, OneToOne) and isinstance(value, Signal):
            scaled = scale(value, layer.weight)
            return scaled if layer.bias is None else _shifted(scaled, layer.bias)
        if isinstance(layer, (AlphaLinear, AlphaConv2d)):
            if isinstance(value, Trains):
                return self._alpha(layer, value, name)
        elif isinstance(layer, _SYNAPSES) and isinstance(value, Signal):
            currents = connect(layer, value)
            return _shifted(currents, over_positions(layer.bias, currents.shape))
        if isinstance(layer, _MAX_POOLS) and isinstance(value, Trains):
            return max_pool(layer, value)
        raise _unsupported(f"{target}: {type(layer).__name__}", value)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in _SUMS and len(args) == 2 and not kwargs and all(isinstance(each, Signal) for each in args):
            return self._sum(*args)
        if target in (torch.cat, torch.concat):
            return self._concatenated(*args, **kwargs)
        if target is torch.mean and isinstance(args[0], Signal):
            return _mean(*args, **kwargs)
        if target in _REARRANGEMENTS:
            return _rearranged(args[0], lambda x: target(x, *args[1:], **kwargs))
        raise _unsupported(getattr(target, "__name__", str(target)), args[0] if args else None)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in ("add", "add_") and not kwargs and all(isinstance(each, Signal) for each in args):
            return self._sum(*args)
        if target == "mean" and isinstance(args[0], Signal):
            return _mean(*args, **kwargs)
        if target in _REARRANGING_METHODS:
            return _rearranged(args[0], lambda x: getattr(x, target)(*args[1:], **kwargs))
        raise _unsupported(target, args[0])

    def read(self, value: Any) -> tuple[Tensor, float]:
        """Return the potentials of the readout, and the time at which they are read."""
        if not isinstance(value, Signal):
            raise _unsupported("the output", value)
        currents = _currents(value)
        still = torch.zeros_like(currents.offset).flatten()
        # neurons without slope and threshold sum up the spikes
        neurons = _Neurons(still, still, still + torch.inf, currents.end, currents.end)
        return self._fire(currents, neurons, single_slope=False).potential + currents.offset, currents.end

    def _encode(self, layer: SpikeEncoder, x: Tensor, name: str) -> Trains:
        value = (float64(x[0]) - layer.low) / (layer.high - layer.low)
        times = torch.where(value <= 0, torch.inf, 1 - value.clamp(0, 1))
        return self._emitted(name, Fired(times, *(None,) * 4), 0.0, 1.0)  # type: ignore[arg-type]

    def _first_spike(self, layer: FirstSpike, currents: Currents, name: str) -> Trains:
        window, t_min = layer.window.item(), layer.t_min.item()
        offset = currents.offset.flatten()
        neurons = _Neurons(torch.zeros_like(offset), torch.ones_like(offset), window - offset, t_min, t_min + window)
        return self._layer(currents, neurons, name)

    def _alpha(self, layer: AlphaLinear | AlphaConv2d, trains: Trains, name: str) -> Trains:
        currents = connect(layer, trains)
        window, t_min = layer.window.item(), layer.t_min.item()
        offset = over_positions(layer.bias, currents.shape).flatten()
        slope = over_positions(1 + float64(layer.weight).flatten(1).sum(1), currents.shape).flatten()
        neurons = _Neurons(torch.ones_like(slope), slope, window + trains.window + offset, t_min, t_min + window)
        return self._layer(currents, neurons, name)

    def _layer(self, currents: Currents, neurons: _Neurons, name: str) -> Trains:
        # windows are sums of floats
        if currents.end > neurons.t_min + 1e-9 * neurons.t_max:
            raise ValueError(
                f"Expected the window of {name} to start after those of its inputs, but got a start at "
                f"{neurons.t_min:g} and an end at {currents.end:g}"
            )
        fired = self._fire(currents, neurons, self.options.single_slope)
        return self._emitted(name, fired, neurons.t_min, neurons.t_max)

    def _emitted(self, name: str, fired: Fired, t_min: float, t_max: float) -> Trains:
        if name in self.fired:
            raise ValueError(f"Expected every layer of neurons to be called once, but got {name} twice")
        if self.options.forced:
            fired = fired._replace(times=fired.times.masked_fill(fired.times.isinf(), t_max))
        self.fired[name] = fired
        return Trains.emitted(fired.times, t_max - t_min, t_max)

    def _fire(self, currents: Currents, neurons: _Neurons, single_slope: bool) -> Fired:
        start = neurons.t_min - max(each.window for each in currents.inputs)
        size = max(1, _ARRIVALS // sum(each.synapses for each in currents.inputs))
        parts = []
        for chunk in torch.arange(currents.offset.numel()).split(size):
            arrivals = [self._arrivals(each, chunk, neurons.t_min) for each in currents.inputs]
            times, jumps = (torch.cat(columns, 1) for columns in zip(*arrivals, strict=True))
            before, slope, threshold = neurons.before[chunk], neurons.slope[chunk], neurons.threshold[chunk]
            if single_slope:
                alpha = slope - jumps.sum(1)
                threshold = threshold + (alpha - before) * (neurons.t_min - start)
                before = alpha
            # the slope without input is one more event, at the start of the inputs' window
            times = torch.cat([torch.full_like(before, start)[:, None], times], 1)
            jumps = torch.cat([before[:, None], jumps], 1)
            after = None if single_slope else slope
            parts.append(fire(times, jumps, threshold, after, neurons.t_min, neurons.t_max, self.options.gated))
        return Fired(*(torch.cat(columns).view(currents.shape) for columns in zip(*parts, strict=True)))

    def _arrivals(self, source: SynapticInput, chunk: Tensor, t_min: float) -> tuple[Tensor, Tensor]:
        times, jumps = source.arrivals(chunk)
        return (times + (t_min - source.end) if self.options.delays else times), jumps

    def _sum(self, one: Signal, other: Signal) -> Signal:
        if isinstance(one, Currents) or isinstance(other, Currents):
            one, other = _currents(one), _currents(other)
            return Currents(one.inputs + other.inputs, one.offset + other.offset)
        one, other = self._aligned((one, other))
        times, factors = torch.cat([one.times, other.times], -1), torch.cat([one.factors, other.factors], -1)
        return Trains(times, factors, max(one.window, other.window), one.end)

    def _concatenated(self, parts: Sequence[Any], dim: int = 0) -> Signal:
        """Concatenate signals; currents have the inputs of all parts, with a share of 0 for neurons of other parts."""
        if dim == 0 or not all(isinstance(part, Signal) for part in parts):
            raise _unsupported(f"a concatenation along axis {dim}", parts[0])
        if all(isinstance(part, Trains) for part in parts):
            parts = self._aligned(parts)
            most = max(part.synapses for part in parts)
            # the last axis is that of the spikes of a location
            axis = dim - 1
            times = [F.pad(part.times, (0, most - part.synapses), value=torch.inf) for part in parts]
            factors = [F.pad(part.factors, (0, most - part.synapses)) for part in parts]
            window = max(part.window for part in parts)
            return Trains(torch.cat(times, axis), torch.cat(factors, axis), window, parts[0].end)
        parts = [_currents(part) for part in parts]
        numbers = [torch.arange(part.shape.numel()).view(1, *part.shape) for part in parts]
        members = torch.cat(numbers, dim)[0]
        joined: list[SynapticInput] = []
        offset = torch.zeros(members.shape, dtype=torch.float64)
        for part in parts:
            own = torch.cat(
                [torch.full_like(number, each is part) for each, number in zip(parts, numbers, strict=True)], dim
            )
            shares = own[0].double().flatten()[:, None]
            mixed = mix(part, (members * own[0]).flatten()[:, None], shares, members.shape)
            assert isinstance(mixed, Currents)
            joined, offset = [*joined, *mixed.inputs], offset + mixed.offset
        return Currents(tuple(joined), offset)

    def _aligned(self, trains: Sequence[Trains]) -> list[Trains]:
        """Return spikes of several windows as spikes of the last of these windows, by delays."""
        end = max(each.end for each in trains)
        if self.options.delays:
            return [each.delayed(end - each.end) for each in trains]
        return [Trains(each.times, each.factors, each.window, end) for each in trains]


def _currents(signal: Signal) -> Currents:
    if isinstance(signal, Currents):
        return signal
    return Currents((signal,), torch.zeros(signal.shape, dtype=torch.float64))


def _shifted(signal: Signal, offset: Tensor) -> Currents:
    currents = _currents(signal)
    return Currents(currents.inputs, currents.offset + float64(offset))


def _rearranged(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return rearrange(value, change) if isinstance(value, Signal) else change(value)


def _mean(signal: Signal, dim: Any, keepdim: bool = False) -> Signal:
    axes = [each % (len(signal.shape) + 1) for each in (dim if isinstance(dim, (tuple, list)) else (dim,))]
    if min(axes) < 2:
        raise ValueError(f"Expected a mean over positions, but got axes {dim}, which include samples or channels")
    return average(signal, lambda x: x.mean(axes, keepdim=keepdim))


def _unsupported(layer: str, value: Any) -> ValueError:
    kinds = {Trains: "spikes", Currents: "currents", Tensor: "numbers"}
    got = next((name for kind, name in kinds.items() if isinstance(value, kind)), type(value).__name__)
    return ValueError(f"Expected layers that the event simulator supports, but got {layer} on {got}")
