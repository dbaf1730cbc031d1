"""Batches that stay the same from epoch to epoch, for methods that remember what each batch told them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from lightning_snn.checks import check_integer
from lightning_snn.processes import rank, world_size


class FixedBatches(DistributedSampler):
    """A batch sampler that divides the data set once; an epoch changes only the order in which its batches come.

    The division is a permutation keyed by `seed`, cut into parts of `batch_size` at most whose sizes differ by one at
    most. The order is keyed by ``(seed, epoch)``, so that a resumed run sees what the uninterrupted one would have
    seen; the trainer calls ``set_epoch``.

    In a process group every process has batches of its own, as many as any other, and the same ones in all epochs:
    their number is rounded up to a multiple of the processes. As a `batch_sampler` of one's own loader this needs
    ``Trainer(use_distributed_sampler=False)``, or else Lightning refuses it; the data modules of the library need
    nothing.

    Args:
        data_source: the data set.
        batch_size: samples a batch, at most.
        seed: integer from 0.

    Raises:
        ValueError: if an argument is out of range, or there are fewer samples than batches that the processes need.

    Example:
        >>> loader = DataLoader(dataset, batch_sampler=FixedBatches(dataset, batch_size=1000))
    """

    # a DistributedSampler is what Lightning leaves as it is where it would give each process its share of the samples

    def __init__(self, data_source: Sized, batch_size: int, seed: int = 0) -> None:
        check_integer("batch_size", batch_size)
        check_integer("seed", seed, minimum=0)
        processes, own = world_size(), rank()
        samples = len(data_source)
        number = -(-samples // (batch_size * processes)) * processes
        if not 0 < number <= samples:
            raise ValueError(
                f"Expected argument `data_source` to hold at least {max(number, processes)} samples, one a batch "
                f"of {processes} processes, but got {samples}"
            )
        super().__init__(data_source, num_replicas=processes, rank=own, seed=seed)  # type: ignore[arg-type]
        parts = np.array_split(np.random.default_rng(seed).permutation(samples), number)
        self.batches = [part.tolist() for part in parts[own::processes]]
        """the samples of each batch of this process"""

    @property
    def sampler(self) -> FixedBatches:
        """Itself: where the trainer looks for the ``set_epoch`` of a batch sampler."""
        return self

    def __iter__(self) -> Iterator[list[int]]:
        for index in np.random.default_rng([self.seed, self.epoch]).permutation(len(self.batches)):
            yield self.batches[index]

    def __len__(self) -> int:
        return len(self.batches)


class BatchedDataset(Dataset[list[Any]]):
    """A data set whose items are whole batches, so that :class:`FixedBatches` can be the sampler of a loader.

    Args:
        dataset: the data set, which is read by its ``__getitems__`` if it has one.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """The number of samples, not of batches."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, indices: Sequence[int]) -> list[Any]:
        if not isinstance(indices, Sequence):
            raise ValueError(
                f"Expected the samples of a fixed batch, but got index {indices!r}: Lightning puts another sampler in "
                "place of `FixedBatches` for `overfit_batches`; use `limit_train_batches` instead"
            )
        many = getattr(self.dataset, "__getitems__", None)
        return many(indices) if many is not None else [self.dataset[index] for index in indices]
