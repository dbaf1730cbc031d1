"""Numbers as tensors on a device, written there: `torch.tensor(number, device=...)` copies from the CPU and waits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def value_like(value: float | Tensor, like: Tensor) -> Tensor:
    """Return a number as a scalar tensor, or a tensor as it is, in the dtype and on the device of another tensor.

    Args:
        value: a number, or a tensor of any shape.
        like: tensor whose dtype and device the result has.

    Example:
        >>> value_like(0.5, torch.zeros(2, dtype=torch.float64))
        tensor(0.5000, dtype=torch.float64)
    """
    return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)


def values_like(values: Sequence[float], like: Tensor) -> Tensor:
    """Return a few numbers as a tensor `[N]` in the dtype and on the device of another tensor.

    Args:
        values: N numbers, at least one; one operation each.
        like: tensor whose dtype and device the result has.

    Example:
        >>> values_like([-1, 1], torch.zeros(2))
        tensor([-1.,  1.])
    """
    return torch.stack([like.new_full((), value) for value in values])
