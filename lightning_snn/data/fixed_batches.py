"""Batches that hold the same samples in every epoch, for methods that store something per batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from lightning_snn.checks import check_integer
from lightning_snn.processes import rank, world_size


class FixedBatches(DistributedSampler[list[int]]):
    """Batch sampler that divides the data set once; epochs differ only in the order of the batches.

    The division is a permutation keyed by `seed`, cut into batches of at most `batch_size` samples whose sizes differ
    by at most one. The order is keyed by ``(seed, epoch)``, so a resumed run sees the same order as the uninterrupted
    run; the trainer calls ``set_epoch``.

    In a process group each process has its own batches, the same in all epochs, and all have equally many: the number
    of batches is rounded up to a multiple of the world size. As the `batch_sampler` of a custom loader this needs
    ``Trainer(use_distributed_sampler=False)``, otherwise Lightning raises an error; the data modules of the library
    need nothing.

    Args:
        data_source: the data set.
        batch_size: largest number of samples per batch.
        seed: integer from 0.

    Raises:
        ValueError: if an argument is out of range, or there are fewer samples than batches that the processes need.

    Example:
        >>> sampler = FixedBatches(range(6), batch_size=2)
        >>> first = list(sampler)
        >>> sampler.set_epoch(1)
        >>> sorted(sampler) == sorted(first)
        True
    """

    # a DistributedSampler, because Lightning leaves those unchanged where it would give each process its own samples

    def __init__(self, data_source: Sized, batch_size: int, seed: int = 0) -> None:
        check_integer("batch_size", batch_size)
        check_integer("seed", seed, minimum=0)
        processes, own = world_size(), rank()
        samples = len(data_source)
        number = -(-samples // (batch_size * processes)) * processes
        if not 0 < number <= samples:
            raise ValueError(
                f"Expected argument `data_source` to hold at least {max(number, processes)} samples, one per batch "
                f"of {processes} processes, but got {samples}"
            )
        super().__init__(data_source, num_replicas=processes, rank=own, seed=seed)  # type: ignore[arg-type]
        parts = np.array_split(np.random.default_rng(seed).permutation(samples), number)
        self.batches = [part.tolist() for part in parts[own::processes]]
        """sample indices of each batch of this process"""

    @property
    def sampler(self) -> FixedBatches:
        """The sampler itself, because the trainer calls ``set_epoch`` on this attribute of a batch sampler."""
        return self

    def __iter__(self) -> Iterator[list[int]]:
        for index in np.random.default_rng([self.seed, self.epoch]).permutation(len(self.batches)):
            yield self.batches[index]

    def __len__(self) -> int:
        return len(self.batches)


class BatchedDataset(Dataset[list[Any]]):
    """Data set whose items are whole batches, so that :class:`FixedBatches` can be the sampler of a loader.

    Args:
        dataset: the data set, which is read by its ``__getitems__`` if it has one.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Return the number of samples, not of batches."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, indices: Sequence[int]) -> list[Any]:
        if not isinstance(indices, Sequence):
            raise ValueError(
                f"Expected the sample indices of a fixed batch, but got index {indices!r}: Lightning replaces the "
                "sampler `FixedBatches` by another one for `overfit_batches`; use `limit_train_batches` instead"
            )
        return samples_of(self.dataset, indices)


class IndexedDataset(Dataset[tuple[Any, ...]]):
    """Data set whose samples ``(frames, label)`` carry their index: ``(frames, label, index)``.

    Args:
        dataset: the data set, which is read by its ``__getitems__`` if it has one.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self.dataset[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Return the samples of a whole batch."""
        samples = zip(samples_of(self.dataset, indices), indices, strict=True)
        return [(*sample, index) for sample, index in samples]


def samples_of(dataset: Dataset[Any], indices: Sequence[int]) -> list[Any]:
    """Return samples of a data set, by its ``__getitems__`` if it has one."""
    many = getattr(dataset, "__getitems__", None)
    return many(indices) if many is not None else [dataset[index] for index in indices]
