"""Synaptic operations of a connection layer: what its inputs cost, and what they would cost if all were busy."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.methods.bayes.layers import BayesConv1d, BayesConv2d, BayesianLayer, BayesLinear
from lightning_snn.metrics.functional import accumulation_dtype

_LINEAR = (nn.Linear, BayesLinear)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, BayesConv1d, BayesConv2d)
CONNECTIONS = (*_LINEAR, *_CONVOLUTIONS)
_PIECE = 2**19  # elements of an input that are looked at together


class Effective(NamedTuple):
    """Effective synaptic operations, int64 scalars on the input's device.

    Attributes:
        accumulates: those of time steps whose inputs are all -1, 0 or 1: an addition each.
        total: with those of all other time steps, whose multiplications are not saved.
    """

    accumulates: Tensor
    total: Tensor


def synaptic_operations(layer: nn.Module, x: Tensor) -> Tensor:
    """Effective synaptic operations of one call of a connection layer.

    N = sum_i 1[x_i != 0] fan_out(i), where fan_out(i) is the number of nonzero weights that input i meets, once for
    each output that it reaches through them: of a linear layer those of a column of its matrix; of a convolution those
    of its group, at all output positions whose kernel covers it, so that stride, padding, dilation and the image's rim
    are accounted for exactly. Weights of Bayesian layers are taken for nonzero: they are drawn.

    Args:
        layer: `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, `BayesLinear`, `BayesConv1d` or `BayesConv2d`, with
            zero padding.
        x: input of the layer, as its `forward` takes it.

    Returns:
        An int64 scalar on the input's device, summed over all rows of the input.

    Raises:
        TypeError: if the layer is of another kind.
        ValueError: if a convolution pads with anything but zeros.

    Source: J. Yik et al., "The NeuroBench framework for benchmarking neuromorphic computing algorithms and systems",
    Nature Communications 16, 2025.
    """
    if not isinstance(layer, CONNECTIONS):
        expected = ", ".join(kind.__name__ for kind in CONNECTIONS)
        raise TypeError(f"Expected argument `layer` to be one of {expected}, but got {type(layer).__name__}")
    if not pads_with_zeros(layer):
        raise ValueError(f"Expected argument `layer` to have padding_mode 'zeros', but got {layer.padding_mode!r}")
    return effective_operations(x[None], fan_out(layer, x.shape)).total


def dense_operations(layer: nn.Module, shape: torch.Size) -> int:
    """Synaptic operations of one row of a call of a connection layer if no input and no weight were zero.

    Args:
        layer: as for `synaptic_operations`, or a `RecurrentLIF`, whose spikes are its input.
        shape: of the layer's input, of which the sizes of its space count.
    """
    kind: Any = layer
    if not isinstance(layer, _CONVOLUTIONS):
        return kind.weight.numel()
    covered = (int(_covered(*axis, torch.device("cpu")).sum()) for axis in _axes(kind, shape))
    return math.prod(covered) * kind.in_channels // kind.groups * kind.out_channels


def fan_out(layer: nn.Module, shape: torch.Size) -> Tensor:
    """The number of nonzero weights that each input of a connection layer meets.

    Args:
        layer: as for `synaptic_operations`, or a `RecurrentLIF`, whose spikes are its input.
        shape: of the layer's input, of which the sizes of its space count.

    Returns:
        int64, of the shape of one row: `[N]` of a linear layer, `[C, ...]` of a convolution.
    """
    kind: Any = layer
    weight = kind.weight.detach()
    nonzero = torch.ones_like(weight, dtype=torch.bool) if isinstance(layer, BayesianLayer) else weight != 0
    if not isinstance(layer, _CONVOLUTIONS):
        return nonzero.sum(0)
    # weights of an input channel and kernel offset; groups take theirs one after the other
    fan = nonzero.unflatten(0, (kind.groups, -1)).sum(1).flatten(0, 1)
    # matrix products of integers are not to be had on all devices; as long as sums stay below 2^24 floats are exact
    fan = fan.to(accumulation_dtype(weight.device))
    with torch.autocast(weight.device.type, enabled=False):
        for axis in _axes(kind, shape):
            # sums over the offsets of this axis, whose positions come last
            fan = torch.tensordot(fan, _covered(*axis, weight.device).to(fan), dims=([1], [1]))
    return fan.round().long()


def effective_operations(steps: Tensor, fan: Tensor) -> Effective:
    """What the inputs of a connection cost.

    Args:
        steps: inputs of each time step, shape `[steps, ..., *fan.shape]`.
        fan: from `fan_out`.
    """
    inputs = steps.detach().flatten(1, -fan.dim() - 1) if steps.dim() > fan.dim() + 1 else steps.detach()[:, None]
    costs, spiking = [], []
    # in pieces that stay in the cache: four times as fast as all steps at once
    for piece in inputs.split(max(1, _PIECE // max(1, inputs[0].numel()))):
        signs = piece.sign()
        spiking.append((piece == signs).flatten(1).all(1))
        busy = signs.abs_().sum(1, dtype=torch.promote_types(signs.dtype, torch.float32))
        costs.append((busy.long() * fan).flatten(1).sum(1))
    cost = torch.cat(costs)
    return Effective((cost * torch.cat(spiking)).sum(), cost.sum())


def pads_with_zeros(layer: nn.Module) -> bool:
    """Whether a layer pads with zeros, if at all."""
    return getattr(layer, "padding_mode", "zeros") == "zeros"


def row_dimensions(layer: nn.Module) -> int:
    """Dimensions of one row of a connection layer's input."""
    return 1 if isinstance(layer, _LINEAR) else 1 + len(layer.kernel_size)  # type: ignore[arg-type]


_Axis = tuple[int, int, int, int, int, int]


def _axes(layer: Any, shape: torch.Size) -> list[_Axis]:
    """Size, kernel, stride, dilation and padding, before and after, of each axis of a convolution."""
    count = len(layer.kernel_size)
    return [
        (shape[axis - count], layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis], *padding)
        for axis, padding in enumerate(_padding(layer))
    ]


def _padding(layer: Any) -> list[tuple[int, int]]:
    """Padding before and after each axis."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [step * (size - 1) for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(width, width) for width in layer.padding]


def _covered(
    size: int, kernel: int, stride: int, dilation: int, before: int, after: int, device: torch.device
) -> Tensor:
    """Whether an output position sees an input position of this axis through a kernel offset, bool `[size, kernel]`;
    no two of them do."""
    outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    first = torch.arange(size, device=device)[:, None] + before - dilation * torch.arange(kernel, device=device)
    return (first >= 0) & (first < outputs * stride) & (first % stride == 0)
