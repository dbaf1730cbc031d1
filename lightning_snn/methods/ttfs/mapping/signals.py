r"""Tensors of the ReLU network as affine functions of spike trains, ``y = scale * v + shift``.

During conversion each tensor y is such a function of a node v of the converted graph. Batch normalization and the range
of the inputs change scale and shift only. These are folded into the weights of the layer that receives y, or of the
layers whose sum y is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from lightning_snn.methods.ttfs.synapses import OneToOne

Kind = Literal["spikes", "sum", "potential"]
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Unmappable(Exception):
    """Reason why a layer has no TTFS equivalent."""


@dataclass(frozen=True)
class Pool:
    """Pending max-pool of potentials, which is moved after the next ReLU: ``relu(max u) = max relu(u)``.

    Attributes:
        name: of its layer in the network.
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
    """Tensor y of the ReLU network: ``scale * v + shift``, and then `pools`.

    Attributes:
        node: v, in the converted graph.
        shape: of a sample of y.
        kind: of v. "spikes": remaining times of at most one spike each. "sum": averages or sums of those. "potential":
            membrane potentials.
        nonnegative: whether y is known to be at least 0.
        scale: float64, in the shape of a sample; None is 1.
        shift: float64, in the shape of a sample; None is 0.
        border: correction of the shift of potentials near borders, where padding replaces inputs of their synapses.
        synapses: layers and offset maps whose outputs add up to the potentials and have no other use, so that their
            rows may be scaled in place of v.
        biased: the one of these layers whose bias is a threshold offset of v.
        pools: pending max-pools.
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
    """Return x.

    Raises:
        Unmappable: if it is not a signal.
    """
    if not isinstance(x, Signal):
        raise Unmappable(f"its input is {type(x).__name__} and not an activation")
    return x


def per_channel(values: Tensor | None) -> Tensor | None:
    """Return one value per channel `[C]` if all positions of `[C, ...]` have the same, else None."""
    if values is None:
        return None
    rows = values.reshape(values.shape[0] if values.dim() else 1, -1)
    return rows[:, 0] if torch.equal(rows, rows[:, :1].expand_as(rows)) else None


def over_positions(values: Tensor, shape: torch.Size) -> Tensor:
    """Return one value per channel `[C]`, expanded to the shape of a sample `[C, ...]`."""
    return values.view(-1, *(1,) * (len(shape) - 1)).expand(shape)


def product(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the product of two scales, where None is 1."""
    return other if one is None else one if other is None else one * other


def total(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the sum of two shifts, where None is 0."""
    return other if one is None else one if other is None else one + other


def never_negative(values: Tensor | None) -> bool:
    """Return whether a scale or shift is at least 0 everywhere."""
    return values is None or bool((values >= 0).all())


@torch.no_grad()
def scale_rows(layer: nn.Module, values: Tensor) -> None:
    """Multiply the outputs of a layer, or the values of an offset map, by one value per channel."""
    for parameter in layer.parameters():
        parameter.copy_(parameter.double() * values.view(-1, *(1,) * (parameter.dim() - 1)))


@torch.no_grad()
def scale_columns(layer: Any, values: Tensor) -> None:
    """Multiply the inputs of a layer by one value per channel, in its weights."""
    weight = layer.weight
    if isinstance(layer, nn.Linear):
        weight.copy_(weight.double() * values)
        return
    grouped = weight.double().unflatten(0, (layer.groups, -1))
    factors = values.view(layer.groups, 1, -1, *(1,) * (weight.dim() - 2))
    weight.copy_((grouped * factors).flatten(0, 1))


@torch.no_grad()
def add_bias(layer: Any, values: Tensor) -> None:
    """Add one value per channel to the outputs of a layer."""
    weight = layer.weight
    shape = (-1, *(1,) * (weight.dim() - 1)) if isinstance(layer, OneToOne) else (-1,)
    values = values.view(shape)
    if layer.bias is None:
        layer.bias = nn.Parameter(values.to(weight), requires_grad=weight.requires_grad)
    else:
        layer.bias.copy_(layer.bias.double() + values)


@torch.no_grad()
def response(layer: nn.Module, image: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Return the output of a layer without its bias for a sample `image`, in float64.

    Args:
        layer: a linear layer or a convolution.
        image: a sample `[C, ...]`.
        shape: of the output.

    Returns:
        The output, and None. If channels of the image are constant: the output far from all borders, and for padding
        with zeros the difference of the output to that, which is the border map.
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
    # other padding modes repeat the image
    padded = bare.padding_mode == "zeros" and any(bare._reversed_padding_repeated_twice)
    return inside, bare(image[None])[0] - inside if padded else None
