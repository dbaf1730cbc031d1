"""Spikes that arrive at a neuron, with their times and efficacies.

Spike trains and currents are of one sample and have no batch axis. All tensors are float64, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SynapticInput(Protocol):
    """Input of neurons from one window, with its length and its end."""

    @property
    def window(self) -> float:
        """Length of the window."""

    @property
    def end(self) -> float:
        """End of the window."""

    @property
    def synapses(self) -> int:
        """Number K of arrivals of each neuron."""

    def arrivals(self, neurons: Tensor) -> tuple[Tensor, Tensor]:
        """Return times (infinite for no spike) and efficacies of the arrivals at neurons `[n]`, each `[n, K]`."""


@dataclass(frozen=True)
class Trains:
    """Spikes of one window: M spikes per location, each with a factor; M > 1 after average pooling or a sum.

    As `SynapticInput` they are synapses from each location to the neuron at the same location.

    Attributes:
        times: spike times `[*shape, M]`, infinite for no spike.
        factors: factors of the efficacies, `[*shape, M]`.
        window: length of the window in which they were emitted.
        end: its end, t_max.
    """

    times: Tensor
    factors: Tensor
    window: float
    end: float

    @classmethod
    def emitted(cls, times: Tensor, window: float, end: float) -> Trains:
        """Return trains of at most one spike per location."""
        return cls(times[..., None], torch.ones_like(times)[..., None], window, end)

    @property
    def shape(self) -> torch.Size:
        """Shape of a sample."""
        return self.times.shape[:-1]

    @property
    def synapses(self) -> int:
        """Number K of arrivals of each neuron."""
        return self.times.shape[-1]

    def delayed(self, delay: float) -> Trains:
        """Return the trains, later by a delay."""
        return Trains(self.times + delay, self.factors, self.window, self.end + delay)

    def arrivals(self, neurons: Tensor) -> tuple[Tensor, Tensor]:
        """Return times (infinite for no spike) and efficacies of the arrivals at neurons `[n]`, each `[n, K]`."""
        return self.times.flatten(0, -2)[neurons], self.factors.flatten(0, -2)[neurons]


@dataclass(frozen=True)
class Synapses:
    """Linear layer or convolution.

    Attributes:
        trains: presynaptic spikes.
        weight: efficacies of each output channel, `[C, K]`.
        sources: for each group and position the locations under the kernel, counted from 1; 0 is padding, which
            never spikes; `[G, K, P]`.
    """

    trains: Trains
    weight: Tensor
    sources: Tensor

    @property
    def window(self) -> float:
        """Length of the window."""
        return self.trains.window

    @property
    def end(self) -> float:
        """End of the last window."""
        return self.trains.end

    @property
    def synapses(self) -> int:
        """Number K of arrivals of each neuron."""
        return self.weight.shape[1] * self.trains.synapses

    def arrivals(self, neurons: Tensor) -> tuple[Tensor, Tensor]:
        """Return times (infinite for no spike) and efficacies of the arrivals at neurons `[n]`, each `[n, K]`."""
        groups, _, positions = self.sources.shape
        channel = neurons // positions
        group = channel // (self.weight.shape[0] // groups)
        source = self.sources[group, :, neurons % positions]
        times, factors = self.trains.arrivals((source - 1).clamp(min=0))
        jumps = (self.weight[channel] * (source > 0))[..., None] * factors
        return times.where((source > 0)[..., None], torch.inf).flatten(1), jumps.flatten(1)


@dataclass(frozen=True)
class Mixture:
    """Weighted sums of inputs.

    Attributes:
        source: the inputs.
        members: neurons of `source` whose inputs are summed, `[n, M]`.
        shares: their weights, `[n, M]`.
    """

    source: SynapticInput
    members: Tensor
    shares: Tensor

    @property
    def window(self) -> float:
        """Length of the window."""
        return self.source.window

    @property
    def end(self) -> float:
        """End of the last window."""
        return self.source.end

    @property
    def synapses(self) -> int:
        """Number K of arrivals of each neuron."""
        return self.source.synapses * self.members.shape[1]

    def arrivals(self, neurons: Tensor) -> tuple[Tensor, Tensor]:
        """Return times (infinite for no spike) and efficacies of the arrivals at neurons `[n]`, each `[n, K]`."""
        members, shares = self.members[neurons], self.shares[neurons][..., None]
        times, jumps = (part.view(*members.shape, -1) for part in self.source.arrivals(members.flatten()))
        return times.where(shares != 0, torch.inf).flatten(1), (jumps * shares).flatten(1)


@dataclass(frozen=True)
class Currents:
    """Input of neurons, possibly from several windows.

    Attributes:
        inputs: input from each window.
        offset: threshold offsets D, of the shape of the neurons.
    """

    inputs: tuple[SynapticInput, ...]
    offset: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of a sample."""
        return self.offset.shape

    @property
    def end(self) -> float:
        """End of the last window."""
        return max(each.end for each in self.inputs)


Signal = Trains | Currents


def float64(tensor: Tensor) -> Tensor:
    """Return a copy or view of a tensor in float64, detached and on the CPU."""
    return tensor.detach().to("cpu", torch.float64)


def over_positions(values: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Return one value per channel, or 0, expanded to the shape of neurons."""
    values = torch.zeros(shape[0], dtype=torch.float64) if values is None else float64(values)
    return values.view(-1, *(1,) * (len(shape) - 1)).expand(*shape)


def connect(layer: Any, signal: Signal) -> Currents:
    """Return the input of neurons after a linear layer or a convolution, without its bias.

    Raises:
        ValueError: if the inputs of a linear layer have another shape.
    """
    weight = float64(layer.weight)
    if weight.dim() == 2:
        if signal.shape != weight.shape[1:]:
            raise ValueError(
                f"Expected inputs of shape {tuple(weight.shape[1:])} for a linear layer, but got {tuple(signal.shape)}"
            )
        sources, shape = torch.arange(1, weight.shape[1] + 1)[None, :, None], weight.shape[:1]
    else:
        sources, positions = _under_kernels(layer, signal.shape)
        shape = torch.Size((len(weight), *positions))
    if isinstance(signal, Trains):
        synapses = Synapses(signal, weight.flatten(1), sources)
        return Currents((synapses,), torch.zeros(shape, dtype=torch.float64))
    # consecutive layers are one layer: each neuron receives weighted inputs of the neurons before
    numbers = Trains.emitted(torch.arange(signal.shape.numel()).view(signal.shape), 0.0, 0.0)
    members, shares = Synapses(numbers, weight.flatten(1), sources).arrivals(torch.arange(shape.numel()))
    mixed = mix(signal, members.where(members.isfinite(), 0).long(), shares, shape)
    assert isinstance(mixed, Currents)
    return mixed


def _under_kernels(layer: Any, shape: torch.Size) -> tuple[Tensor, torch.Size]:
    """Return the locations under each kernel, as `Synapses.sources`, and the shape of the positions."""
    axes = len(shape) - 1
    numbers = torch.arange(1, shape.numel() + 1, dtype=torch.float64).view(1, *shape)
    # locations are padded as the layer pads values; 0 is no location
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    numbers = F.pad(numbers, layer._reversed_padding_repeated_twice, mode)[0]
    for axis in range(axes):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        numbers = numbers.unfold(axis + 1, reach, layer.stride[axis])[..., :: layer.dilation[axis]]
    positions = numbers.shape[1 : axes + 1]
    # [C, *positions, *kernel] to [G, C / G * kernel, positions]
    numbers = numbers.flatten(axes + 1).flatten(1, axes).transpose(1, 2)
    return numbers.reshape(layer.groups, -1, positions.numel()).long(), positions


def mix(signal: Signal, members: Tensor, shares: Tensor, shape: Sequence[int]) -> Signal:
    """Return weighted sums over locations, with `members` and `shares` `[n, M]` for each location of `shape`."""
    if isinstance(signal, Currents):
        offset = (signal.offset.flatten()[members] * shares).sum(1)
        return Currents(tuple(Mixture(each, members, shares) for each in signal.inputs), offset.view(*shape))
    times, factors = signal.arrivals(members)
    times = times.where(shares[..., None] != 0, torch.inf)
    factors = factors * shares[..., None]
    return Trains(times.reshape(*shape, -1), factors.reshape(*shape, -1), signal.window, signal.end)


def rearrange(signal: Signal, change: Callable[[Tensor], Tensor]) -> Signal:
    """Apply an operation that rearranges the elements of a sample.

    Raises:
        ValueError: if it moves the axis of the samples.
    """
    numbers = torch.arange(signal.shape.numel()).view(1, *signal.shape)
    moved = change(numbers)
    if moved.shape[:1] != (1,):
        raise ValueError(f"Expected the axis of the samples to stay the first, but got the shape {tuple(moved.shape)}")
    members = moved.flatten()[:, None]
    return mix(signal, members, torch.ones_like(members, dtype=torch.float64), moved.shape[1:])


def scale(signal: Signal, weight: Tensor) -> Signal:
    """Return the input through one synapse from each location to the neuron at the same location."""
    members = torch.arange(signal.shape.numel())[:, None]
    return mix(signal, members, float64(weight).expand(signal.shape).reshape(-1, 1), signal.shape)


def average(signal: Signal, pool: Callable[[Tensor], Tensor]) -> Signal:
    """Apply average pooling, which is synapses of equal efficacy."""
    members, shares, positions = _pools(pool, signal.shape[1:])
    channels = torch.arange(signal.shape[0])[:, None, None] * signal.shape[1:].numel()
    members, shares = channels + members, shares.expand(len(channels), *shares.shape)
    return mix(signal, members.flatten(0, 1), shares.flatten(0, 1), (len(channels), *positions))


def max_pool(layer: Any, trains: Trains) -> Trains:
    """Return the earliest spike of each pool; for a negative sign the latest, or none if a member is silent.

    Raises:
        ValueError: if the spikes were averaged or added before.
    """
    if trains.synapses != 1 or not (trains.factors == 1).all():
        raise ValueError(
            "Expected inputs of max-pooling to be spikes of neurons, but got spikes that were averaged or added"
        )
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    largest = F.max_pool1d if isinstance(layer, nn.MaxPool1d) else F.max_pool2d
    members, shares, positions = _pools(lambda x: largest(x, *geometry), trains.shape[1:])
    times = trains.times.flatten(1)[:, members]
    selected = times.where(shares > 0, torch.inf).amin(2)
    sign = getattr(layer, "sign", None)
    if sign is not None:
        latest = times.where(shares > 0, -torch.inf).amax(2)
        selected = torch.where(sign.cpu().view(-1, 1) < 0, latest, selected)
    return Trains.emitted(selected.view(-1, *positions), trains.window, trains.end)


def _pools(pool: Callable[[Tensor], Tensor], size: torch.Size) -> tuple[Tensor, Tensor, torch.Size]:
    """Return the members of each pool and their shares, `[P, M]`, and the shape of the pools."""
    pooled = pool(torch.eye(size.numel(), dtype=torch.float64).view(-1, 1, *size))
    matrix = pooled.flatten(1).T
    shares, members = matrix.topk(int((matrix != 0).sum(1).max()), 1)
    return members, shares, pooled.shape[2:]
