r"""What flows between layers while a network is mapped: affine functions of spike trains, ``y = scale * v + shift``.

A tensor y of the ReLU network is known as such a function of a node v of the mapped graph. Batch normalization and the
range of the inputs change scale and shift only; they are folded into the weights of the layer that reads y, or of the
layers whose sum it is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

Kind = Literal["spikes", "sum", "drive"]
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Unmappable(Exception):
    """Why a layer has no exact image in first spike times."""


class OneToOne(nn.Module):
    """Synapses from every train to the neuron at its place, ``w * x + b``: a scaled skip connection.

    Args:
        weight: efficacies, in the shape of a sample or one that broadcasts to it: `[C, 1, 1]` for one a channel.
        bias: threshold offsets in such a shape; None for none.

    Both become parameters.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight if self.bias is None else x * self.weight + self.bias

    def extra_repr(self) -> str:
        return f"shape={tuple(self.weight.shape)}"


@dataclass(frozen=True)
class Pool:
    """A max-pool of potentials, which waits for the rectifier behind it: ``relu(max u) = max relu(u)``.

    Attributes:
        name: of its place in the network.
        options: of `SpikePool2d`.
        shape: of a sample before it.
        sign: per channel, -1 for the minimum; None for the maximum everywhere.
    """

    name: str
    options: dict[str, Any]
    shape: torch.Size
    sign: Tensor | None = None


@dataclass(frozen=True)
class Signal:
    """A tensor y of the ReLU network: ``scale * v + shift``, and then `pools`.

    Attributes:
        node: v, in the mapped graph.
        shape: of a sample of y.
        kind: of v. "spikes": remaining times, one spike at most each. "sum": averages or sums of those. "drive": a
            potential.
        nonnegative: whether y is known to be at least 0.
        scale, shift: float64, in the shape of a sample; None is 1, and 0.
        border: what is added to the shift of a drive near borders, where padding cuts off what its synapses would hear.
        synapses: layers and offset maps of which a drive is the sum, and which nothing else hears: their rows may be
            scaled instead of it.
        biased: the one among them whose bias is a threshold offset of v.
        pools: max-pools that are still to come.
    """

    node: fx.Node
    shape: torch.Size
    kind: Kind
    nonnegative: bool = False
    scale: Tensor | None = None
    shift: Tensor | None = None
    border: Tensor | None = None
    synapses: tuple[nn.Module, ...] = ()
    biased: nn.Module | None = None
    pools: tuple[Pool, ...] = ()


def as_signal(x: Any) -> Signal:
    """A signal.

    Raises:
        Unmappable: if it is anything else.
    """
    if not isinstance(x, Signal):
        raise Unmappable(f"it takes {type(x).__name__} beside activations")
    return x


def per_channel(values: Tensor | None) -> Tensor | None:
    """The values of channels `[C]` if all positions of `[C, ...]` have the same one, else None."""
    if values is None:
        return None
    rows = values.reshape(values.shape[0] if values.dim() else 1, -1)
    return rows[:, 0] if torch.equal(rows, rows[:, :1].expand_as(rows)) else None


def over_positions(values: Tensor, shape: torch.Size) -> Tensor:
    """One value a channel `[C]` in the shape of a sample `[C, ...]`."""
    return values.view(-1, *(1,) * (len(shape) - 1)).expand(shape)


def product(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Of scales: None is 1."""
    return other if one is None else one if other is None else one * other


def total(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Of shifts: None is 0."""
    return other if one is None else one if other is None else one + other


def never_negative(values: Tensor | None) -> bool:
    """Whether a scale or shift is at least 0 everywhere."""
    return values is None or bool((values >= 0).all())


@torch.no_grad()
def scale_rows(layer: nn.Module, values: Tensor) -> None:
    """Multiply what a layer gives, or an offset map adds, by one value a channel."""
    for parameter in layer.parameters():
        parameter.copy_(parameter.double() * values.view(-1, *(1,) * (parameter.dim() - 1)))


@torch.no_grad()
def scale_columns(layer: Any, values: Tensor) -> None:
    """Let a layer multiply what it is given by one value a channel."""
    weight = layer.weight
    if isinstance(layer, nn.Linear):
        weight.copy_(weight.double() * values)
        return
    grouped = weight.double().unflatten(0, (layer.groups, -1))
    factors = values.view(layer.groups, 1, -1, *(1,) * (weight.dim() - 2))
    weight.copy_((grouped * factors).flatten(0, 1))


@torch.no_grad()
def add_bias(layer: Any, values: Tensor) -> None:
    """Add one value a channel to what a layer gives."""
    weight = layer.weight
    shape = (-1, *(1,) * (weight.dim() - 1)) if isinstance(layer, OneToOne) else (-1,)
    values = values.view(shape)
    if layer.bias is None:
        layer.bias = nn.Parameter(values.to(weight), requires_grad=weight.requires_grad)
    else:
        layer.bias.copy_(layer.bias.double() + values)


@torch.no_grad()
def response(layer: nn.Module, image: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    """What a layer without its bias makes of a sample `image`, in float64.

    Returns:
        its output, and None. Of a constant image what it gives far from all borders, and where it pads with zeros the
        difference to that: the border map.
    """
    bare: Any = copy.deepcopy(layer).double()
    bare.bias = None
    if isinstance(layer, nn.Linear):
        return bare(image), None
    values = per_channel(image)
    if values is None:
        return bare(image[None])[0], None
    sums = bare.weight.flatten(2).sum(2).unflatten(0, (bare.groups, -1))
    inside = over_positions((sums * values.view(bare.groups, 1, -1)).sum(2).flatten(), shape)
    # elsewhere padding repeats the image
    padded = bare.padding_mode == "zeros" and any(bare._reversed_padding_repeated_twice)
    return inside, bare(image[None])[0] - inside if padded else None
