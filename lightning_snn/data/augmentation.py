"""Random augmentation of training batches, on their device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_snn.checks import check_between, check_integer


def shift(x: Tensor, pixels: int, mirror: bool = False) -> Tensor:
    """Shift each sample at random along both axes, padding with zeros, and mirror it left to right if asked for.

    Args:
        x: inputs over time, shape ``(T, B, C, H, W)``; all frames of a sample are shifted alike.
        pixels: largest shift in pixels, from 0 to the smaller of H and W.
        mirror: mirror each sample with probability 1/2.

    Returns:
        A tensor of the same shape and dtype. Randomness comes from torch's CPU generator.

    Raises:
        ValueError: if ``pixels`` is out of range.
    """
    height, width = x.shape[3:]
    check_integer("pixels", pixels, minimum=0)
    check_between("pixels", pixels, 0, min(height, width))
    offsets = torch.randint(-pixels, pixels + 1, (x.shape[1], 2)).tolist()
    mirrored = (torch.rand(x.shape[1]) < 0.5).tolist() if mirror else [False] * x.shape[1]
    shifted = torch.zeros_like(x)
    # one copy of a rectangle per sample: gathering pixels by their indices takes five times as long
    for sample, ((down, right), flipped) in enumerate(zip(offsets, mirrored, strict=True)):
        source = x[:, sample, :, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
        target = shifted[:, sample, :, max(down, 0) : height - max(-down, 0), max(right, 0) : width - max(-right, 0)]
        target.copy_(source)
        if flipped:
            shifted[:, sample] = shifted[:, sample].flip(-1)
    return shifted


def cutout(x: Tensor, size: int, fill: Sequence[float] | None = None) -> Tensor:
    """Blank a randomly placed square of each sample (after DeVries & Taylor 2017).

    The part of the square outside of the image has no effect.

    Args:
        x: inputs over time, shape ``(T, B, C, H, W)``; all frames of a sample share the square.
        size: side of the square in pixels, from 0; its center is uniformly distributed over the pixels.
        fill: value of each channel in the square, C numbers; None is zeros.

    Returns:
        A tensor of the same shape and dtype. Randomness comes from torch's CPU generator.

    Raises:
        ValueError: if ``size`` is out of range, or ``fill`` does not hold C numbers.
    """
    samples, channels, height, width = x.shape[1:]
    check_integer("size", size, minimum=0)
    fill = [0.0] * channels if fill is None else fill
    if len(fill) != channels:
        raise ValueError(f"Expected argument `fill` to hold {channels} numbers, one per channel, but got {list(fill)}")
    inside = []
    for side in (height, width):
        start = torch.randint(side, (samples, 1)).to(x.device) - size // 2
        position = torch.arange(side, device=x.device)
        inside.append((position >= start) & (position < start + size))
    rows, columns = inside
    square = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(square, x.new_tensor(fill)[:, None, None], x)


class AutoAugment:
    """Policy that AutoAugment found for CIFAR-10 (Cubuk et al. 2019), as implemented by kornia.

    Each sample gets one of the 25 sub-policies at random. Each of its two operations (on color or geometry) is applied
    with the probability that the policy gives it.

    Raises:
        ImportError: if kornia is not installed.
    """

    def __init__(self) -> None:
        try:
            from kornia.augmentation import auto
        except ImportError as error:
            raise ImportError(
                "Expected kornia to be installed, which AutoAugment needs: pip install 'lightning-snn[augmentation]'"
            ) from error
        self.sub_policies: list[Callable[[Tensor], Tensor]] = list(auto.AutoAugment("cifar10").children())

    def __call__(self, images: Tensor) -> Tensor:
        """Augment a batch of images.

        Args:
            images: shape ``(B, 3, H, W)``, values in [0, 1].

        Returns:
            Images of the same shape and range.
        """
        # kornia would apply one sub-policy to the whole batch
        chosen = torch.randint(len(self.sub_policies), (len(images),))
        changed = torch.empty_like(images)
        for number in chosen.unique().tolist():
            members = (chosen == number).nonzero()[:, 0].to(images.device)
            changed[members] = self.sub_policies[number](images[members])
        return changed
