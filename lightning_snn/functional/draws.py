"""Random numbers of the shape of a tensor, also in compiled code whose shape is a variable, and under `vmap`."""

from __future__ import annotations

import torch
from torch import Tensor


def normal_like(like: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal numbers.

    Args:
        like: tensor whose shape and device the result has.
        dtype: of the result.
        generator: source of the draw; None is torch's default.

    Example:
        >>> normal_like(torch.zeros(2), torch.float64, torch.Generator().manual_seed(0)).dtype
        torch.float64
    """
    if torch.compiler.is_compiling():  # `torch.randn` takes no generator where the shape is a variable
        return like.new_empty(like.shape, dtype=dtype).normal_(generator=generator)
    return torch.randn(like.shape, dtype=dtype, device=like.device, generator=generator)


def uniform_like(like: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    """Draw numbers from the uniform distribution on [0, 1).

    Args:
        like: tensor whose shape and device the result has.
        dtype: of the result.
        generator: source of the draw; None is torch's default.

    Example:
        >>> uniform_like(torch.zeros(2, 3), torch.float32, None).shape
        torch.Size([2, 3])
    """
    if torch.compiler.is_compiling():
        return like.new_empty(like.shape, dtype=dtype).uniform_(generator=generator)
    return torch.rand(like.shape, dtype=dtype, device=like.device, generator=generator)
