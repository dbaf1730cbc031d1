"""Random changes of training batches, on their device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def cutout(x: Tensor, size: int, fill: Sequence[float] | None = None) -> Tensor:
    """Blank a square of each sample, anywhere; the part of it that lies outside is lost (after DeVries & Taylor 2017).

    Args:
        x: inputs over time, shape ``(T, B, C, H, W)``; all frames of a sample lose the same square.
        size: side of the square in pixels, from 0; its center is any pixel with the same probability.
        fill: what a channel holds there, C numbers; zeros if not given.

    Returns:
        a tensor of the same shape and type. Randomness comes from torch's CPU generator.

    Raises:
        ValueError: if ``size`` is out of range, or ``fill`` is not of C numbers.
    """
    samples, channels, height, width = x.shape[1:]
    check_integer("size", size, minimum=0)
    fill = [0.0] * channels if fill is None else fill
    if len(fill) != channels:
        raise ValueError(f"Expected argument `fill` to hold {channels} numbers, one a channel, but got {list(fill)}")
    inside = []
    for side in (height, width):
        start = torch.randint(side, (samples, 1)).to(x.device) - size // 2
        position = torch.arange(side, device=x.device)
        inside.append((position >= start) & (position < start + size))
    rows, columns = inside
    square = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(square, x.new_tensor(fill)[:, None, None], x)


class AutoAugment:
    """The policy found for CIFAR-10 by AutoAugment (Cubuk et al. 2019), by kornia, which must be installed.

    Every sample gets one of the 25 sub-policies at random, and each of the sub-policy's two changes (of color or of
    geometry) with the probability that was found for it.

    Raises:
        ImportError: if kornia is not installed.
    """

    def __init__(self) -> None:
        try:
            from kornia.augmentation import auto
        except ImportError as error:
            raise ImportError(
                "AutoAugment needs kornia, which is not installed: pip install 'lightning-snn[augmentation]'"
            ) from error
        self.sub_policies: list[Callable[[Tensor], Tensor]] = list(auto.AutoAugment("cifar10").children())

    def __call__(self, images: Tensor) -> Tensor:
        """Changed images of the same shape.

        Args:
            images: shape ``(B, 3, H, W)``, values in [0, 1], which they keep.
        """
        # kornia would give one sub-policy to the whole batch
        chosen = torch.randint(len(self.sub_policies), (len(images),))
        changed = torch.empty_like(images)
        for number in chosen.unique().tolist():
            members = (chosen == number).nonzero()[:, 0].to(images.device)
            changed[members] = self.sub_policies[number](images[members])
        return changed
