"""Simulated curve for regression, with samples on two intervals and none in the gap between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_snn.checks import check_between
from lightning_snn.data.drawn import DrawnDataModule
from lightning_snn.nn.encoders import PopulationEncoder


class NoisyCurve(DrawnDataModule):
    """Noisy values of ``y = sin 2x + 0.3 cos 5x``, with x drawn uniformly from [0, 1] and [2.5, 4]; simulated data.

    Each x is encoded by a population of neurons with receptive fields on [-1, 5]. Neurons that spike in the gap between
    the intervals spike for no training sample. A batch is ``(x [1, B, fields], y [B, 1])``.

    Args:
        train_size: training samples.
        val_size: validation samples.
        test_size: test samples, whose values are noisy as well.
        noise: standard deviation of the values around the curve.
        fields: neurons of the population.
        width: standard deviation of their receptive fields.
        batch_size: samples per batch.
        **loader_options: ``num_workers``, ``seed`` and ``fixed_batches`` of
            :class:`~lightning_snn.data.FrameDataModule`; the seed also determines x and the noise.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> data = NoisyCurve(train_size=200, batch_size=50)
        >>> data.setup()
        >>> x, y = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        >>> x.shape, y.shape
        (torch.Size([1, 50, 100]), torch.Size([50, 1]))
    """

    num_classes = 1  # outputs of the network
    class_names = ()
    time_steps = 1
    intervals = ((0.0, 1.0), (2.5, 4.0))
    """the intervals from which samples are drawn"""

    def __init__(
        self,
        *,
        train_size: int = 2000,
        val_size: int = 500,
        test_size: int = 500,
        noise: float = 0.05,
        fields: int = 100,
        width: float = 0.12,
        batch_size: int = 100,
        **loader_options: Any,
    ) -> None:
        super().__init__(train_size, val_size, test_size, batch_size=batch_size, **loader_options)
        check_between("noise", noise, 0, np.inf)
        self.noise = noise
        self.encoder = PopulationEncoder(-1.0, 5.0, fields, width)
        self.frame_shape = (fields,)

    @staticmethod
    def truth(x: Tensor) -> Tensor:
        """Return the curve without noise, ``sin 2x + 0.3 cos 5x``, elementwise."""
        return torch.sin(2 * x) + 0.3 * torch.cos(5 * x)

    def grid(self, points: int = 401, low: float = -0.5, high: float = 4.5) -> tuple[Tensor, Tensor]:
        """Return evenly spaced x ``[points]`` from ``low`` to ``high`` and their encoding ``[1, points, fields]``."""
        x = torch.linspace(low, high, points)
        return x, self.encoder(x)

    def draw(self, size: int, rng: np.random.Generator) -> TensorDataset:
        """Return samples of ``(x [1], y [1])``."""
        (low, end), (start, high) = self.intervals
        # drawn from both intervals end to end; draws beyond the first are then moved across the gap
        position = low + rng.uniform(0, end - low + high - start, (size, 1))
        x = torch.from_numpy(np.where(position < end, position, position + start - end))
        y = self.truth(x) + self.noise * torch.from_numpy(rng.standard_normal((size, 1)))
        return TensorDataset(x.float(), y.float())
