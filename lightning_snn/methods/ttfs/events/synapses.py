"""Which spikes reach a neuron, when, and with which efficacy.

Spike trains and currents have no batch axis: they are of one sample. All tensors are float64, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Heard(Protocol):
    """What neurons hear from one window, which is of such a length and ends at `end`."""

    @property
    def window(self) -> float: ...

    @property
    def end(self) -> float: ...

    @property
    def synapses(self) -> int:
        """Number K of arrivals of each neuron."""

    def arrivals(self, neurons: Tensor) -> tuple[Tensor, Tensor]:
        """Times, infinite where there is no spike, and efficacies of what reaches neurons `[n]`, each `[n, K]`."""


@dataclass(frozen=True)
class Trains:
    """Spikes of one window. A location holds M of them, each with a factor: M > 1 after average pooling or a sum.

    As `Heard` they are synapses from every location to the neuron in its place.

    Attributes:
        times: `[*shape, M]`, infinite where there is no spike.
        factors: `[*shape, M]`.
        window: length of the window in which they were emitted.
        end: its end, t_max.
    """

    times: Tensor
    factors: Tensor
    window: float
    end: float

    @classmethod
    def emitted(cls, times: Tensor, window: float, end: float) -> Trains:
        """One spike a location, or none."""
        return cls(times[..., None], torch.ones_like(times)[..., None], window, end)

    @property
    def shape(self) -> torch.Size:
        return self.times.shape[:-1]

    @property
    def synapses(self) -> int:
        return self.times.shape[-1]

    def delayed(self, delay: float) -> Trains:
        return Trains(self.times + delay, self.factors, self.window, self.end + delay)

    def arrivals(self, neurons: Tensor) -> tuple[Tensor, Tensor]:
        return self.times.flatten(0, -2)[neurons], self.factors.flatten(0, -2)[neurons]


@dataclass(frozen=True)
class Synapses:
    """A linear layer or a convolution.

    Attributes:
        trains: what is heard.
        weight: efficacies of each output channel, `[C, K]`.
        sources: for each group and position the locations under the kernel, counted from 1; 0 is padding, which
            never spikes. `[G, K, P]`.
    """

    trains: Trains
    weight: Tensor
    sources: Tensor

    @property
    def window(self) -> float:
        return self.trains.window

    @property
    def end(self) -> float:
        return self.trains.end

    @property
    def synapses(self) -> int:
        return self.weight.shape[1] * self.trains.synapses

    def arrivals(self, neurons: Tensor) -> tuple[Tensor, Tensor]:
        groups, _, positions = self.sources.shape
        channel = neurons // positions
        group = channel // (self.weight.shape[0] // groups)
        source = self.sources[group, :, neurons % positions]
        times, factors = self.trains.arrivals((source - 1).clamp(min=0))
        jumps = (self.weight[channel] * (source > 0))[..., None] * factors
        return times.where((source > 0)[..., None], torch.inf).flatten(1), jumps.flatten(1)


@dataclass(frozen=True)
class Mixture:
    """Weighted sums of what neurons would hear: the currents of `members`, `[n, M]`, times their `shares`, `[n, M]`."""

    heard: Heard
    members: Tensor
    shares: Tensor

    @property
    def window(self) -> float:
        return self.heard.window

    @property
    def end(self) -> float:
        return self.heard.end

    @property
    def synapses(self) -> int:
        return self.heard.synapses * self.members.shape[1]

    def arrivals(self, neurons: Tensor) -> tuple[Tensor, Tensor]:
        members, shares = self.members[neurons], self.shares[neurons][..., None]
        times, jumps = (part.view(*members.shape, -1) for part in self.heard.arrivals(members.flatten()))
        return times.where(shares != 0, torch.inf).flatten(1), (jumps * shares).flatten(1)


@dataclass(frozen=True)
class Currents:
    """What neurons hear, from several windows it may be, and their threshold offsets D, of the shape of the neurons."""

    heard: tuple[Heard, ...]
    offset: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.offset.shape

    @property
    def end(self) -> float:
        return max(each.end for each in self.heard)


Signal = Trains | Currents


def float64(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def over_positions(values: Tensor | None, shape: Sequence[int]) -> Tensor:
    """One value a channel, or 0, over the shape of neurons."""
    values = torch.zeros(shape[0], dtype=torch.float64) if values is None else float64(values)
    return values.view(-1, *(1,) * (len(shape) - 1)).expand(*shape)


def connect(layer: Any, signal: Signal) -> Currents:
    """What the neurons behind a linear layer or a convolution hear; its bias is left out.

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
    # layers in a row are one layer: each neuron hears what those before would, in shares
    numbers = Trains.emitted(torch.arange(signal.shape.numel()).view(signal.shape), 0.0, 0.0)
    members, shares = Synapses(numbers, weight.flatten(1), sources).arrivals(torch.arange(shape.numel()))
    mixed = mix(signal, members.where(members.isfinite(), 0).long(), shares, shape)
    assert isinstance(mixed, Currents)
    return mixed


def _under_kernels(layer: Any, shape: torch.Size) -> tuple[Tensor, torch.Size]:
    """Locations under each kernel of a convolution, as `Synapses.sources`, and the shape of the positions."""
    axes = len(shape) - 1
    numbers = torch.arange(1, shape.numel() + 1, dtype=torch.float64).view(1, *shape)
    # locations are padded as the layer pads values: with 0, which is no location, or with their like
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
    """Weighted sums over locations: `members` and `shares` of every one of the new `shape`, `[n, M]`."""
    if isinstance(signal, Currents):
        offset = (signal.offset.flatten()[members] * shares).sum(1)
        return Currents(tuple(Mixture(each, members, shares) for each in signal.heard), offset.view(*shape))
    times, factors = signal.arrivals(members)
    times = times.where(shares[..., None] != 0, torch.inf)
    factors = factors * shares[..., None]
    return Trains(times.reshape(*shape, -1), factors.reshape(*shape, -1), signal.window, signal.end)


def rearrange(signal: Signal, change: Callable[[Tensor], Tensor]) -> Signal:
    """What an operation that only moves elements within a sample makes of the signal."""
    numbers = torch.arange(signal.shape.numel()).view(1, *signal.shape)
    moved = change(numbers)
    if moved.shape[:1] != (1,):
        raise ValueError(f"Expected the axis of the samples to stay the first, but got the shape {tuple(moved.shape)}")
    members = moved.flatten()[:, None]
    return mix(signal, members, torch.ones_like(members, dtype=torch.float64), moved.shape[1:])


def scale(signal: Signal, weight: Tensor) -> Signal:
    """One synapse from every location to the neuron in its place."""
    members = torch.arange(signal.shape.numel())[:, None]
    return mix(signal, members, float64(weight).expand(signal.shape).reshape(-1, 1), signal.shape)


def average(signal: Signal, pool: Callable[[Tensor], Tensor]) -> Signal:
    """Average pooling of each channel: synapses of equal efficacy."""
    members, shares, positions = _pools(pool, signal.shape[1:])
    channels = torch.arange(signal.shape[0])[:, None, None] * signal.shape[1:].numel()
    members, shares = channels + members, shares.expand(len(channels), *shares.shape)
    return mix(signal, members.flatten(0, 1), shares.flatten(0, 1), (len(channels), *positions))


def race(layer: Any, trains: Trains) -> Trains:
    """The earliest spike of each pool; the latest where the layer's sign is negative, and none if a member is silent.

    Raises:
        ValueError: if the spikes were averaged or added before.
    """
    if trains.synapses != 1 or not (trains.factors == 1).all():
        raise ValueError("Expected max-pooling to hear spikes of neurons, but got spikes that were averaged or added")
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    largest = F.max_pool1d if isinstance(layer, nn.MaxPool1d) else F.max_pool2d
    members, shares, positions = _pools(lambda x: largest(x, *geometry), trains.shape[1:])
    times = trains.times.flatten(1)[:, members]
    winner = times.where(shares > 0, torch.inf).amin(2)
    sign = getattr(layer, "sign", None)
    if sign is not None:
        latest = times.where(shares > 0, -torch.inf).amax(2)
        winner = torch.where(sign.cpu().view(-1, 1) < 0, latest, winner)
    return Trains.emitted(winner.view(-1, *positions), trains.window, trains.end)


def _pools(pool: Callable[[Tensor], Tensor], size: torch.Size) -> tuple[Tensor, Tensor, torch.Size]:
    """Members of each pool and their shares, `[P, M]`, found with one image a position, and the shape of the pools."""
    pooled = pool(torch.eye(size.numel(), dtype=torch.float64).view(-1, 1, *size))
    matrix = pooled.flatten(1).T
    shares, members = matrix.topk(int((matrix != 0).sum(1).max()), 1)
    return members, shares, pooled.shape[2:]
