"""Base class of the data modules of small problems whose samples are drawn on the spot and encoded on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from lightning_snn.checks import check_integer
from lightning_snn.data.base import FrameDataModule


class DrawnDataModule(FrameDataModule):
    """Base class of data modules of simulated samples; a subclass sets `encoder` and implements :meth:`draw`.

    Args:
        train_size: training samples.
        val_size: validation samples.
        test_size: test samples.
        **loader_options: ``batch_size``, ``num_workers``, ``seed`` and ``fixed_batches`` of
            :class:`~lightning_snn.data.FrameDataModule`; the seed also determines the samples.

    Raises:
        ValueError: if an argument is out of range.
    """

    encoder: Callable[[Tensor], Tensor]
    """encodes loaded values ``(B, ...)`` over time, as ``(T, B, ...)``"""

    def __init__(self, train_size: int, val_size: int, test_size: int, **loader_options: Any) -> None:
        super().__init__(max_count=None, **loader_options)
        self.sizes = {"train_size": train_size, "val_size": val_size, "test_size": test_size}
        for name, size in self.sizes.items():
            check_integer(name, size)

    def draw(self, size: int, rng: np.random.Generator) -> Dataset[Any]:
        """Return samples of values and targets."""
        raise NotImplementedError(f"{type(self).__name__} must implement `draw`")

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return the three sets, drawn by generators keyed by ``(seed, split)``."""
        train, val, test = (
            self.draw(size, np.random.default_rng([self.seed, split])) for split, size in enumerate(self.sizes.values())
        )
        return train, val, test

    def preprocess(self, frames: Tensor) -> Tensor:
        """Return the encoding ``(T, B, ...)`` of values ``(B, ...)``."""
        return self.encoder(frames)
