"""Random changes of training batches, on their device."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.checks import check_between, check_integer


def shift(x: Tensor, pixels: int, mirror: bool = False) -> Tensor:
    """Shift each sample by up to ``pixels`` in both directions, zeros coming in, and perhaps mirror it left to right.

    Args:
        x: inputs over time, shape ``(T, B, C, H, W)``; all frames of a sample move alike.
        pixels: largest shift, from 0 to the smaller of H and W.
        mirror: mirror each sample with probability 1/2.

    Returns:
        a tensor of the same shape and type. Randomness comes from torch's CPU generator.

    Raises:
        ValueError: if ``pixels`` is out of range.
    """
    height, width = x.shape[3:]
    check_integer("pixels", pixels, minimum=0)
    check_between("pixels", pixels, 0, min(height, width))
    offsets = torch.randint(-pixels, pixels + 1, (x.shape[1], 2)).tolist()
    mirrored = (torch.rand(x.shape[1]) < 0.5).tolist() if mirror else [False] * x.shape[1]
    shifted = torch.zeros_like(x)
    # one copy of a rectangle a sample: gathering pixels by their indices takes five times as long
    for sample, ((down, right), flipped) in enumerate(zip(offsets, mirrored, strict=True)):
        source = x[:, sample, :, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
        target = shifted[:, sample, :, max(down, 0) : height - max(-down, 0), max(right, 0) : width - max(-right, 0)]
        target.copy_(source)
        if flipped:
            shifted[:, sample] = shifted[:, sample].flip(-1)
    return shifted
