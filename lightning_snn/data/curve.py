"""A simulated curve for regression, seen on two stretches of a line and never in the gap between them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from lightning_snn.checks import check_between, check_integer
from lightning_snn.data.base import FrameDataModule
from lightning_snn.nn.encoders import PopulationEncoder


class NoisyCurve(FrameDataModule):
    """Noisy values of ``y = sin 2x + 0.3 cos 5x`` at places drawn evenly from [0, 1] and [2.5, 4]; simulated data.

    A place is a population of neurons that spike near it, on a line from -1 to 5, so that in the gap between the
    stretches other neurons speak than any sample lets hear. A batch is ``(x [1, B, fields], y [B, 1])``.

    Args:
        train_size, val_size, test_size: samples of each set; the values of the test set have noise as well.
        noise: standard deviation of the values about the curve.
        fields: neurons of the population.
        width: standard deviation of their receptive fields.
        batch_size: samples a batch.
        num_workers: worker processes of each loader.
        seed: of places, noise and the order of the training samples.
        fixed_batches: make training batches of the same samples in every epoch, in another order.

    Raises:
        ValueError: if an argument is out of range.
    """

    num_classes = 1  # outputs of the network
    class_names = ()
    time_steps = 1
    frame_shape: tuple[int]  # type: ignore[assignment]
    seen = ((0.0, 1.0), (2.5, 4.0))
    """the stretches from which samples come"""

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
        num_workers: int = 0,
        seed: int = 0,
        fixed_batches: bool = False,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, fixed_batches=fixed_batches)
        self.sizes = {"train_size": train_size, "val_size": val_size, "test_size": test_size}
        for name, size in self.sizes.items():
            check_integer(name, size)
        check_between("noise", noise, 0, np.inf)
        self.noise = noise
        self.encoder = PopulationEncoder(-1.0, 5.0, fields, width)
        self.frame_shape = (fields,)

    @staticmethod
    def truth(x: Tensor) -> Tensor:
        """The curve without noise at places x."""
        return torch.sin(2 * x) + 0.3 * torch.cos(5 * x)

    def grid(self, points: int = 401, low: float = -0.5, high: float = 4.5) -> tuple[Tensor, Tensor]:
        """Evenly spaced places `[points]`, for a plot, and their populations `[1, points, fields]`."""
        places = torch.linspace(low, high, points)
        return places, self.encoder(places)

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        """Places `[1]` and values `[1]`, of generators keyed by ``(seed, split)``."""
        train, val, test = (self._draw(size, split) for split, size in enumerate(self.sizes.values()))
        return train, val, test

    def preprocess(self, frames: Tensor) -> Tensor:
        """Populations ``(1, B, fields)`` of places ``(B, 1)``."""
        return self.encoder(frames)

    def _draw(self, size: int, split: int) -> TensorDataset:
        rng = np.random.default_rng([self.seed, split])
        (low, end), (begin, high) = self.seen
        # one stretch after the other, then moved over the gap
        along = low + rng.uniform(0, end - low + high - begin, (size, 1))
        places = torch.from_numpy(np.where(along < end, along, along + begin - end))
        values = self.truth(places) + self.noise * torch.from_numpy(rng.standard_normal((size, 1)))
        return TensorDataset(places.float(), values.float())
