"""Synapses that act on each position: threshold offsets and scaled skip connections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class OffsetMap(nn.Module):
    """Threshold offsets that depend on the position: ``u + D(i, p)``.

    Args:
        shape: shape of the offsets without the batch, `[C, H, W]` for images; they are initialized with 0.

    Attributes:
        offset: D, a parameter.

    Example:
        >>> OffsetMap((2, 4, 4))(torch.ones(1, 2, 4, 4)).shape
        torch.Size([1, 2, 4, 4])
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(*shape))

    def forward(self, u: Tensor) -> Tensor:
        return u + self.offset

    def extra_repr(self) -> str:
        return f"shape={tuple(self.offset.shape)}"


class OneToOne(nn.Module):
    """Synapses from each neuron to the neuron at the same position, ``w * x + b``: a scaled skip connection.

    Args:
        weight: efficacies, in the shape of a sample or one that broadcasts to it: `[C, 1, 1]` for one per channel.
        bias: threshold offsets in such a shape; None for none.

    Attributes:
        weight: efficacies w, a parameter.
        bias: threshold offsets b, a parameter or None.

    Example:
        >>> OneToOne(torch.tensor([2.0, -1.0]))(torch.tensor([[0.5, 0.5]])).detach()
        tensor([[ 1.0000, -0.5000]])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight if self.bias is None else x * self.weight + self.bias

    def extra_repr(self) -> str:
        return f"shape={tuple(self.weight.shape)}"
