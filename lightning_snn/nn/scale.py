"""Constant factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Scale(nn.Module):
    """Multiplication by constants: ``y = factor * x``, such as the node Scale of NIR.

    Args:
        factor: one factor per element of a sample `[...]`, or a number; a buffer, so it is saved and not trained.

    Shape:
        input and output `[T*B, ...]`; of `Moments`, mean and variance.

    Example:
        >>> Scale([0.5, 2.0])(torch.ones(1, 2))
        tensor([[0.5000, 2.0000]])
    """

    factor: Tensor

    def __init__(self, factor: Any) -> None:
        super().__init__()
        values = torch.as_tensor(factor).detach().clone()
        self.register_buffer("factor", values if values.is_floating_point() else values.to(torch.get_default_dtype()))

    def forward(self, x: Any) -> Any:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor.item():g}" if self.factor.dim() == 0 else f"shape={tuple(self.factor.shape)}"
