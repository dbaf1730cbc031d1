"""Random changes of training batches, on their device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift(x: Tensor, pixels: int, mirror: bool = False) -> Tensor:
    """Shift each sample by up to ``pixels`` in both directions, zeros coming in, and perhaps mirror it left to right.

    Args:
        x: inputs over time, shape ``(T, B, C, H, W)``; all frames of a sample move alike.
        pixels: largest shift.
        mirror: mirror each sample with probability 1/2.

    Returns:
        a tensor of the same shape and type. Randomness comes from torch's generator of the device.
    """
    batch, height, width = x.shape[1], x.shape[3], x.shape[4]
    row, column = torch.randint(0, 2 * pixels + 1, (2, batch, 1), device=x.device)
    rows = row + torch.arange(height, device=x.device)
    columns = column + torch.arange(width, device=x.device)
    if mirror:
        columns = torch.where(torch.rand(batch, 1, device=x.device) < 0.5, columns.flip(1), columns)
    sample = torch.arange(batch, device=x.device)[:, None, None]
    # Indices around the channel slice put their own axes first: (B, H, W, T, C).
    moved = F.pad(x, (pixels,) * 4)[:, sample, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(3, 0, 4, 1, 2)
