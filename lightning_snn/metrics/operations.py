"""Effective and dense synaptic operations of connection layers."""

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
_PIECE = 2**19  # elements of an input that are processed together


class Effective(NamedTuple):
    """Effective synaptic operations, int64 scalars on the input's device.

    Attributes:
        accumulates: operations of time steps whose inputs are all -1, 0 or 1, each a single addition.
        total: operations of all time steps; those of other time steps also multiply.
    """

    accumulates: Tensor
    total: Tensor


def synaptic_operations(layer: nn.Module, x: Tensor) -> Tensor:
    """Count the effective synaptic operations of one call of a connection layer.

    N = sum_i 1[x_i != 0] fan_out(i)

    Here fan_out(i) is the number of nonzero weights between input i and all outputs. In a linear layer these are the
    weights of one column of its matrix. In a convolution they are the weights of the input's group, counted at every
    output position whose kernel covers the input, so stride, padding, dilation and the edges of the image are exact.
    The weights of Bayesian layers are sampled and count as nonzero.

    Args:
        layer: `nn.Linear`, `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, `BayesLinear`, `BayesConv1d` or `BayesConv2d`, with
            zero padding.
        x: input of the layer, as its `forward` takes it.

    Returns:
        An int64 scalar on the input's device, the sum over all rows of the input.

    Raises:
        TypeError: if the layer has a different type.
        ValueError: if the padding of a convolution is not zero padding.

    Source: J. Yik et al., "The NeuroBench framework for benchmarking neuromorphic computing algorithms and systems",
    Nature Communications 16, 2025.

    Example:
        >>> synaptic_operations(nn.Linear(3, 4), torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]))
        tensor(8)
    """
    if not isinstance(layer, CONNECTIONS):
        expected = ", ".join(kind.__name__ for kind in CONNECTIONS)
        raise TypeError(f"Expected argument `layer` to be one of {expected}, but got {type(layer).__name__}")
    if not pads_with_zeros(layer):
        raise ValueError(f"Expected argument `layer` to have padding_mode 'zeros', but got {layer.padding_mode!r}")
    return effective_operations(x[None], fan_out(layer, x.shape)).total


def dense_operations(layer: nn.Module, shape: torch.Size) -> int:
    """Count the synaptic operations of one row of the input of a connection layer if no input and no weight were zero.

    Args:
        layer: as for `synaptic_operations`, or a `RecurrentLIF`, whose input are its own spikes.
        shape: shape of the layer's input; only its spatial sizes matter.

    Example:
        >>> dense_operations(nn.Conv2d(1, 2, kernel_size=2), torch.Size([1, 1, 3, 3]))
        32
    """
    kind: Any = layer
    if not isinstance(layer, _CONVOLUTIONS):
        weights: int = kind.weight.numel()
        return weights
    covered = (int(_covered(*axis, torch.device("cpu")).sum()) for axis in _axes(kind, shape))
    channel_pairs: int = kind.in_channels // kind.groups * kind.out_channels
    return math.prod(covered) * channel_pairs


def fan_out(layer: nn.Module, shape: torch.Size) -> Tensor:
    """Count the nonzero weights between each input of a connection layer and all outputs.

    Args:
        layer: as for `synaptic_operations`, or a `RecurrentLIF`, whose input are its own spikes.
        shape: shape of the layer's input; only its spatial sizes matter.

    Returns:
        An int64 tensor of the shape of one row: `[N]` for a linear layer, `[C, ...]` for a convolution.

    Example:
        >>> fan_out(nn.Conv1d(1, 1, kernel_size=2), torch.Size([1, 1, 4]))
        tensor([[1, 2, 2, 1]])
    """
    kind: Any = layer
    weight: Tensor = kind.weight.detach()
    nonzero = torch.ones_like(weight, dtype=torch.bool) if isinstance(layer, BayesianLayer) else weight != 0
    if not isinstance(layer, _CONVOLUTIONS):
        return nonzero.sum(0)
    # nonzero weights for each input channel and kernel offset; the channels of a group are consecutive
    fan: Tensor = nonzero.unflatten(0, (kind.groups, -1)).sum(1).flatten(0, 1)
    # Not all devices support matrix products of integers. Floats are exact as long as sums stay below 2^24.
    fan = fan.to(accumulation_dtype(weight.device))
    with torch.autocast(weight.device.type, enabled=False):
        for axis in _axes(kind, shape):
            # Sum over the offsets of this axis; its positions become the last axis.
            fan = torch.tensordot(fan, _covered(*axis, weight.device).to(fan), dims=([1], [1]))
    return fan.round().long()


def effective_operations(steps: Tensor, fan: Tensor) -> Effective:
    """Count the effective synaptic operations of the inputs of a connection layer.

    Args:
        steps: inputs of each time step, shape `[steps, ..., *fan.shape]`.
        fan: number of nonzero weights for each input, from `fan_out`.
    """
    inputs = steps.detach().flatten(1, -fan.dim() - 1) if steps.dim() > fan.dim() + 1 else steps.detach()[:, None]
    costs, spiking = [], []
    # Pieces that fit into the cache are four times as fast as all steps at once.
    for piece in inputs.split(max(1, _PIECE // max(1, inputs[0].numel()))):
        signs = piece.sign()
        spiking.append((piece == signs).flatten(1).all(1))
        busy = signs.abs_().sum(1, dtype=torch.promote_types(signs.dtype, torch.float32))
        costs.append((busy.long() * fan).flatten(1).sum(1))
    cost = torch.cat(costs)
    return Effective((cost * torch.cat(spiking)).sum(), cost.sum())


def pads_with_zeros(layer: nn.Module) -> bool:
    """Return whether a layer has zero padding or no padding."""
    return getattr(layer, "padding_mode", "zeros") == "zeros"


def row_dimensions(layer: nn.Module) -> int:
    """Return the number of dimensions of one row of a connection layer's input."""
    return 1 if isinstance(layer, _LINEAR) else 1 + len(layer.kernel_size)  # type: ignore[arg-type]


_Axis = tuple[int, int, int, int, int, int]


def _axes(layer: Any, shape: torch.Size) -> list[_Axis]:
    """Return size, kernel, stride, dilation, and padding before and after for each axis of a convolution."""
    count = len(layer.kernel_size)
    return [
        (shape[axis - count], layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis], *padding)
        for axis, padding in enumerate(_padding(layer))
    ]


def _padding(layer: Any) -> list[tuple[int, int]]:
    """Return the padding before and after each axis."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [step * (size - 1) for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(width, width) for width in layer.padding]


def _covered(
    size: int, kernel: int, stride: int, dilation: int, before: int, after: int, device: torch.device
) -> Tensor:
    """Return which input positions contribute to an output through which kernel offset, bool `[size, kernel]`.

    For each pair there is at most one output position.
    """
    outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    first = torch.arange(size, device=device)[:, None] + before - dilation * torch.arange(kernel, device=device)
    return (first >= 0) & (first < outputs * stride) & (first % stride == 0)
