"""Random augmentation of training batches, on their device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lightning_snn.checks import check_between, check_integer

# of random crops, as shares of the frame and as width by height
CROP_AREA, CROP_ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


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


def center_crop(x: Tensor, size: int) -> Tensor:
    """Return a view of the middle of frames ``(T, B, C, H, W)``, of shape ``(T, B, C, size, size)``."""
    top, left = (x.shape[3] - size) // 2, (x.shape[4] - size) // 2
    return x[..., top : top + size, left : left + size]


def resized_crop(x: Tensor, size: int, mirror: bool = False) -> Tensor:
    """Cut a random rectangle of each sample and scale it to a square, after Szegedy et al. 2015 (arXiv 1409.4842).

    Its area is uniform between 8 and 100 % of the frame, and the logarithm of its aspect ratio uniform between those of
    3:4 and 4:3; sides longer than the frame are cut to it. Its place is uniform. Pixels are interpolated linearly.

    Args:
        x: inputs over time, floats of shape ``(T, B, C, H, W)``; all frames of a sample are cut alike.
        size: side of the square in pixels.
        mirror: mirror each sample with probability 1/2.

    Returns:
        A tensor of shape ``(T, B, C, size, size)`` and the same dtype. Randomness comes from torch's CPU generator.

    Raises:
        ValueError: if ``size`` is out of range.
    """
    check_integer("size", size)
    samples, (height, width) = x.shape[1], x.shape[3:]
    area = height * width * torch.empty(samples).uniform_(*CROP_AREA)
    aspect = torch.empty(samples).uniform_(*(math.log(each) for each in CROP_ASPECT)).exp()
    # sides as shares of the frame, and the middle of the rectangle, in [-1, 1]
    shares = torch.stack([(area * aspect).sqrt() / width, (area / aspect).sqrt() / height], 1).clamp(max=1)
    middles = (1 - shares) * (2 * torch.rand(samples, 2) - 1)
    if mirror:
        shares[:, 0] *= 1 - 2 * (torch.rand(samples) < 0.5).float()
    placement = torch.cat([torch.diag_embed(shares), middles[..., None]], 2).to(x)
    steps = len(x)
    grid = nn.functional.affine_grid(placement, [samples, 1, size, size], align_corners=False)
    cut: Tensor = nn.functional.grid_sample(x.flatten(0, 1), grid.repeat(steps, 1, 1, 1), "bilinear", "border", False)
    return cut.view(steps, samples, *cut.shape[1:])


def keyed_seed(*key: int) -> int:
    """Return a seed in [0, 2**63) of random numbers that depend on nothing but integers from 0."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class EventAugmentation:
    """Random augmentation of recordings of events, each by a random number generator of its own.

    Events are counts of cells (time, channel, row, column). A recording is augmented in this order:

    1. A share of its events, drawn from ``U(0, drop_events)``, is removed; each event alike.
    2. Each event moves to the frame before or after, with probability `time_jitter` / 2 each. An event that would leave
       the recording stays.
    3. Events are added: a Poisson number, whose mean is a share of the recording's events drawn from
       ``U(0, noise_events)``, spread evenly over all cells.
    4. All frames are mirrored left to right with probability 1/2, if `mirrored_classes` are given.
    5. All frames are shifted along rows and columns by integers from ``-max_shift`` to `max_shift`, drawn evenly.
       Events shifted out are lost. An axis of size 1 is not shifted, and frames ``(C, L)`` and ``(L,)`` only along L.

    Args:
        max_shift: largest shift in cells, at least 0.
        time_jitter: share of the events that change their frame, in [0, 1].
        drop_events: largest share of the events that is removed, in [0, 1].
        noise_events: largest number of added events, as a share of the events of the recording, at least 0.
        mirrored_classes: class of the mirror image of each class; None mirrors nothing.

    Raises:
        ValueError: if an argument is out of range, or `mirrored_classes` is not a permutation that is its own inverse.

    Example:
        >>> augmentation = EventAugmentation(max_shift=4, drop_events=0.2)
        >>> frames = torch.ones(1, 3, 2, 8, 8, dtype=torch.uint8)
        >>> once, _ = augmentation(frames, torch.tensor([0]), [(0, 5, 17)])
        >>> again, _ = augmentation(frames, torch.tensor([0]), [(0, 5, 17)])
        >>> torch.equal(once, again)
        True
    """

    def __init__(
        self,
        *,
        max_shift: int = 0,
        time_jitter: float = 0.0,
        drop_events: float = 0.0,
        noise_events: float = 0.0,
        mirrored_classes: Sequence[int] | None = None,
    ) -> None:
        check_integer("max_shift", max_shift, minimum=0)
        check_between("time_jitter", time_jitter, 0, 1)
        check_between("drop_events", drop_events, 0, 1)
        check_between("noise_events", noise_events, 0, float("inf"))
        if mirrored_classes is not None:
            classes = list(mirrored_classes)
            if sorted(classes) != list(range(len(classes))) or any(classes[classes[one]] != one for one in classes):
                raise ValueError(
                    "Expected argument `mirrored_classes` to hold the class of the mirror image of each class, whose "
                    f"mirror image is the class itself, but got {classes}"
                )
        self.max_shift = max_shift
        self.time_jitter = time_jitter
        self.drop_events = drop_events
        self.noise_events = noise_events
        self.mirrored_classes = None if mirrored_classes is None else tuple(mirrored_classes)

    def __bool__(self) -> bool:
        """Return whether anything is augmented."""
        return bool(self.max_shift or self.moves_events or self.mirrored_classes is not None)

    @property
    def moves_events(self) -> bool:
        """True if single events change, which needs counts."""
        return bool(self.time_jitter or self.drop_events or self.noise_events)

    def __call__(self, frames: Tensor, labels: Tensor, keys: Iterable[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            frames: counts, shape ``(B, T, C, H, W)``, ``(B, T, C, L)`` or ``(B, T, L)``, of an integer type unless only
                shifted and mirrored.
            labels: classes, shape ``(B,)``, integers.
            keys: for each sample the integers from 0 that determine its augmentation, for example seed, epoch and the
                index of the sample.

        Returns:
            Frames and labels of the same shapes and types on the same device; the arguments are left as they are.

        Raises:
            ValueError: if the frames are not counts, or the labels not classes, as far as the augmentation needs it.
        """
        if frames.ndim < 3:
            raise ValueError(f"Expected frames of shape (B, T, ..., W), to augment them, but got {tuple(frames.shape)}")
        if self.moves_events and (frames.is_floating_point() or frames.dtype == torch.bool):
            raise ValueError(
                "Expected frames to hold integer counts for arguments `time_jitter`, `drop_events` and `noise_events`, "
                f"but got {frames.dtype}. Set these to 0, or give the number of events per cell"
            )
        if self.mirrored_classes is not None and (labels.shape != frames.shape[:1] or labels.is_floating_point()):
            raise ValueError(
                f"Expected labels of shape ({len(frames)},) that are classes, to mirror recordings, but got "
                f"{labels.dtype} of shape {tuple(labels.shape)}"
            )
        generators = [np.random.Generator(np.random.Philox(keyed_seed(*key))) for key in keys]
        if self.moves_events:
            changed = [self._with_other_events(each, rng) for each, rng in zip(frames, generators, strict=True)]
            frames = torch.stack(changed)
        axes = (-2, -1) if frames.ndim > 4 else (-1,)
        largest = {axis: min(self.max_shift, frames.shape[axis]) if frames.shape[axis] > 1 else 0 for axis in axes}
        augmented = torch.zeros_like(frames)
        mirrored = [self.mirrored_classes is not None and rng.random() < 0.5 for rng in generators]
        for sample, rng in enumerate(generators):
            window = frames[sample].flip(-1) if mirrored[sample] else frames[sample]
            target = augmented[sample]
            for axis, most in largest.items():
                offset = int(rng.integers(-most, most, endpoint=True))
                length = window.shape[axis] - abs(offset)
                window = window.narrow(axis, max(-offset, 0), length)
                target = target.narrow(axis, max(offset, 0), length)
            target.copy_(window)
        if self.mirrored_classes is not None:
            classes = labels.new_tensor(self.mirrored_classes)
            labels = torch.where(torch.tensor(mirrored, device=labels.device), classes[labels], labels)
        return augmented, labels

    def _with_other_events(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """Drop, move and add events of one recording ``(T, ...)``."""
        counts = frames.cpu().numpy().astype(np.int64)
        total = counts.sum()
        cells = np.nonzero(counts)
        kept = counts[cells]
        if self.drop_events:
            kept = rng.binomial(kept, 1 - rng.uniform(0, self.drop_events))
        counts = np.zeros_like(counts)
        if self.time_jitter:
            moved = rng.binomial(kept, self.time_jitter)
            earlier = rng.binomial(moved, 0.5)
            for number, step in ((earlier, -1), (moved - earlier, 1)):
                when = cells[0] + step
                when = np.where((when < 0) | (when >= len(counts)), cells[0], when)
                np.add.at(counts, (when, *cells[1:]), number)
            kept = kept - moved
        counts[cells] += kept
        if self.noise_events:
            added = rng.poisson(total * rng.uniform(0, self.noise_events))
            counts += np.bincount(rng.integers(counts.size, size=added), minlength=counts.size).reshape(counts.shape)
        most = torch.iinfo(frames.dtype).max
        return torch.from_numpy(np.minimum(counts, most)).to(frames)


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
