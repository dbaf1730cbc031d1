"""Yin-Yang: a small problem of three classes in the plane that no linear classifier solves; made on the spot."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from lightning_snn.checks import check_choice, check_integer
from lightning_snn.data.drawn import DrawnDataModule
from lightning_snn.data.image_module import Encoder, named_encoder

RADIUS, DOT = 0.5, 0.1
ENCODERS = ("direct", "poisson", "latency")


def yin_yang_class(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the class of points in the disc of radius 1/2 around (1/2, 1/2), elementwise: 0, 1, or 2 in a dot.

    With the distances d and e to the centers (3/4, 1/2) and (1/4, 1/2) of the dots, whose radius is 0.1: class 2 where
    ``d <= 0.1`` or ``e <= 0.1``; else class 1 where ``e <= 1/4``, or ``y > 1/2`` and ``d > 1/4``; else class 0.

    Args:
        x: horizontal coordinates, any shape.
        y: vertical coordinates, the same shape.

    Example:
        >>> yin_yang_class(np.array([0.75, 0.3, 0.6]), np.array([0.5, 0.9, 0.3]))
        array([2, 1, 0])
    """
    right, left = np.hypot(x - 1.5 * RADIUS, y - RADIUS), np.hypot(x - 0.5 * RADIUS, y - RADIUS)
    upper = (left <= RADIUS / 2) | ((y > RADIUS) & (right > RADIUS / 2))
    return np.where((right <= DOT) | (left <= DOT), 2, upper.astype(np.int64))


class YinYang(DrawnDataModule):
    """Yin-Yang: which part of the symbol a point lies in; three balanced classes, simulated data.

    Points are uniform within their class. A sample is ``(x, y, 1 - x, 1 - y)``, which an encoder turns into
    ``(time_steps, B, 4)``: as spike times of four neurons with ``"latency"``, as it is used with time to first spike.

    Args:
        train_size: training samples.
        val_size: validation samples.
        test_size: test samples.
        time_steps: time steps of the encoded input, T.
        encoder: ``"direct"`` repeats the values, ``"poisson"`` draws spikes with them as probabilities, ``"latency"``
            emits one spike per value, earlier for larger ones. Or a callable from ``(B, 4)`` to ``(T, B, 4)``.
        batch_size: samples per batch.
        **loader_options: ``num_workers``, ``seed`` and ``fixed_batches`` of
            :class:`~lightning_snn.data.FrameDataModule`; the seed also determines the points.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> data = YinYang(train_size=60, batch_size=30, time_steps=16, encoder="latency")
        >>> data.setup()
        >>> x, y = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        >>> x.shape, y.shape
        (torch.Size([16, 30, 4]), torch.Size([30]))
    """

    num_classes = 3
    class_names = ("yin", "yang", "dot")
    frame_shape = (4,)
    citation = """@inproceedings{kriener2022yinyang,
  title = {The {Yin-Yang} dataset},
  author = {Kriener, Laura and G{\\"o}ltz, Julian and Petrovici, Mihai A.},
  booktitle = {Neuro-Inspired Computational Elements Conference},
  pages = {107--111},
  year = {2022}
}"""

    def __init__(
        self,
        *,
        train_size: int = 5000,
        val_size: int = 1000,
        test_size: int = 1000,
        time_steps: int = 1,
        encoder: str | Encoder = "direct",
        batch_size: int = 50,
        **loader_options: Any,
    ) -> None:
        super().__init__(train_size, val_size, test_size, batch_size=batch_size, **loader_options)
        check_integer("time_steps", time_steps)
        if isinstance(encoder, str) or not callable(encoder):
            check_choice("encoder", encoder, ENCODERS)
        self.time_steps = time_steps
        self.encoder = named_encoder(encoder, time_steps) if isinstance(encoder, str) else encoder

    def draw(self, size: int, rng: np.random.Generator) -> TensorDataset:
        """Return samples of ``(values [4], class)``."""
        classes = np.arange(size) % self.num_classes
        x, y = np.empty(size), np.empty(size)
        missing = np.arange(size)
        while len(missing):
            x[missing], y[missing] = rng.uniform(0, 2 * RADIUS, (2, len(missing)))
            inside = np.hypot(x[missing] - RADIUS, y[missing] - RADIUS) <= RADIUS
            missing = missing[~inside | (yin_yang_class(x[missing], y[missing]) != classes[missing])]
        values = torch.from_numpy(np.stack([x, y, 1 - x, 1 - y], 1)).float()
        return TensorDataset(values, torch.from_numpy(classes))
