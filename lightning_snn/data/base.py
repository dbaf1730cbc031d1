"""Base class of all data modules, and the data set of framed events that they serve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate

from lightning_snn.checks import check_fraction, check_integer
from lightning_snn.data.fixed_batches import BatchedDataset, FixedBatches


class LoadedBatch(NamedTuple):
    """Batch from a loader, batch first; :meth:`FrameDataModule.on_after_batch_transfer` makes it time first.

    The type lets that hook distinguish a batch that it has to convert from one that it has converted.
    """

    frames: Tensor
    labels: Tensor


def collate(samples: Sequence[tuple[Any, Any]]) -> LoadedBatch:
    """Stack ``(frames, label)`` samples into a :class:`LoadedBatch`; integer labels become int64."""
    frames, labels = default_collate(list(samples))
    return LoadedBatch(frames, labels if torch.is_floating_point(labels) else labels.long())


class FrameDataset(Dataset[tuple[Tensor, Tensor]]):
    """Framed event recordings and their labels, read by one indexed access per batch.

    Args:
        frames: event counts, shape ``(N, T, C, H, W)``, uint8: a NumPy array, a memory-mapped one or a tensor.
        labels: class of each recording, shape ``(N,)``, integers from 0.

    Raises:
        ValueError: if the frames are not five-dimensional uint8, or there is not one label per recording.

    Example:
        >>> dataset = FrameDataset(np.zeros((3, 5, 2, 8, 8), np.uint8), [0, 1, 0])
        >>> frames, label = dataset[1]
        >>> frames.shape, label
        (torch.Size([5, 2, 8, 8]), tensor(1))
    """

    def __init__(self, frames: np.ndarray | Tensor, labels: np.ndarray | Tensor | Sequence[int]) -> None:
        if frames.ndim != 5 or frames.dtype not in (np.uint8, torch.uint8):
            raise ValueError(
                f"Expected argument `frames` to be uint8 of shape (N, T, C, H, W), but got {frames.dtype} of shape "
                f"{tuple(frames.shape)}"
            )
        self.frames = frames
        self.labels = torch.as_tensor(np.array(labels), dtype=torch.int64)
        if self.labels.shape != (len(frames),):
            raise ValueError(
                f"Expected argument `labels` to be of shape ({len(frames)},), one label per recording, but got "
                f"{tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the frames ``(T, C, H, W)``, uint8, and the label of one recording."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the samples of a whole batch, which are views of one indexed read of the frames."""
        selected = torch.as_tensor(self.frames[list(indices)])
        return list(zip(selected, self.labels[list(indices)], strict=True))


class EpochSampler(RandomSampler):
    """Permutation of the data set keyed by ``(seed, epoch)``.

    It depends neither on the global generator nor on the epochs that ran in this process, so a resumed run sees the
    same order as the uninterrupted run. The trainer calls ``set_epoch``.

    Args:
        data_source: the data set.
        seed: integer from 0.
    """

    def __init__(self, data_source: Dataset[Any], seed: int) -> None:
        super().__init__(data_source)  # type: ignore[arg-type]
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples).tolist()


class ResumableLoader(DataLoader[Any]):
    """Loader that saves its position in the epoch in checkpoints, so that a stopped run resumes with the next batch.

    Batches before that position are read again and discarded. The order must depend on the epoch alone, as with
    `EpochSampler` and `FixedBatches`.
    """

    _yielded = 0
    _skipped = 0

    def __iter__(self) -> Any:
        start, self._skipped = self._skipped, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= start:
                self._yielded = index + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches of the epoch that were yielded; the trainer calls this."""
        return {"yielded": self._yielded % len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start the next epoch after that number of batches."""
        self._yielded = self._skipped = state_dict["yielded"]


class FrameDataModule(LightningDataModule):
    """Base class of data modules: ``(x [T, B, C, H, W] float, y [B] int64)`` batches on the model's device.

    A subclass sets the class attributes below before ``setup``, implements :meth:`load_sets`, and passes the arguments
    below on as ``**loader_options``. Loaders yield small batch-first uint8 counts, which are cheap to move to the
    device; they become float and time first there.

    Args:
        batch_size: samples per batch.
        num_workers: worker processes of each loader; 0 loads in the main process.
        seed: integer from 0 that determines the order of the training samples and every random split and draw.
        max_count: event counts are clipped at this value and divided by it, so that inputs lie in [0, 1]; with 1 they
            are 1 where a cell received any event. None leaves the counts unchanged.
        fixed_batches: form the training batches of the same samples in every epoch and shuffle only their order, as
            required by methods that store something per batch; see :class:`~lightning_snn.data.FixedBatches`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> class Flashes(FrameDataModule):
        ...     num_classes, class_names, frame_shape, time_steps = 2, ("dark", "bright"), (1, 8, 8), 5
        ...
        ...     def load_sets(self):
        ...         frames = np.zeros((4, 5, 1, 8, 8), np.uint8)
        ...         frames[2:] = 1
        ...         dataset = FrameDataset(frames, [0, 0, 1, 1])
        ...         return dataset, dataset, dataset
        >>> data = Flashes(batch_size=4)
        >>> data.setup()
        >>> x, y = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
        >>> x.shape, y
        (torch.Size([5, 4, 1, 8, 8]), tensor([0, 0, 1, 1]))
    """

    num_classes: int
    """number of classes"""
    class_names: tuple[str, ...]
    """name of each class, in the order of the labels"""
    frame_shape: tuple[int, ...]
    """shape of a frame: ``(C, H, W)``, or ``(features,)`` if inputs have no spatial axes"""
    time_steps: int
    """frames per sample, T"""
    pairs: tuple[tuple[int, int], ...] = ()
    """pairs of classes that differ only in the direction of motion"""
    time_first = True
    """batches on the device are time first"""

    def __init__(
        self,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        max_count: int | None = None,
        fixed_batches: bool = False,
    ) -> None:
        super().__init__()
        check_integer("batch_size", batch_size)
        check_integer("num_workers", num_workers, minimum=0)
        check_integer("seed", seed, minimum=0)
        if max_count is not None:
            check_integer("max_count", max_count)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.max_count = max_count
        self.fixed_batches = fixed_batches
        self.train_set: Dataset[Any] | None = None
        self.val_set: Dataset[Any] | None = None
        self.test_set: Dataset[Any] | None = None

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return the disjoint training, validation and test sets, of batch-first ``(frames, label)`` samples."""
        raise NotImplementedError(f"{type(self).__name__} must implement `load_sets`")

    def setup(self, stage: str | None = None) -> None:
        """Load the three sets once; ``stage`` is ignored.

        Raises:
            ValueError: if one of them is empty.
        """
        if self.train_set is not None:
            return
        sets = self.load_sets()
        for name, part in zip(("training", "validation", "test"), sets, strict=True):
            if len(part) == 0:  # type: ignore[arg-type]
                raise ValueError(f"Expected the {name} set of {type(self).__name__} to hold samples, but it is empty")
        self.train_set, self.val_set, self.test_set = sets

    def preprocess(self, frames: Tensor) -> Tensor:
        """Return the network input ``(T, B, C, H, W)``, float32, of loaded frames ``(B, T, C, H, W)`` on any device."""
        x = frames.transpose(0, 1).float()
        return x if self.max_count is None else x.clamp(max=self.max_count) / self.max_count

    def augment(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a training batch; a subclass may override this, and the base class returns the batch unchanged.

        Args:
            x: inputs, shape ``(T, B, C, H, W)``.
            y: labels, shape ``(B,)``.

        Returns:
            Inputs and labels of the same shapes. Randomness comes from torch's global generator.
        """
        return x, y

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert a loaded batch to ``(x, y)`` on its device, augmented while training; return others unchanged."""
        if not isinstance(batch, LoadedBatch):
            return batch
        x = self.preprocess(batch.frames)
        if self.trainer is not None and self.trainer.training:
            return self.augment(x, batch.labels)
        return x, batch.labels

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches of the training set in an order keyed by ``(seed, epoch)``; the last one may be smaller.

        The sizes of fixed batches differ by at most one.
        """
        return self._loader(self.train_set, training=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return batches of the validation set, in order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test set, in order."""
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test set, in order, with their labels."""
        return self.test_dataloader()

    def _loader(self, dataset: Dataset[Any] | None, training: bool = False) -> DataLoader[Any]:
        if dataset is None:
            raise RuntimeError(f"Expected `setup` of {type(self).__name__} to be called before a loader is requested")
        source: dict[str, Any] = {"dataset": dataset, "batch_size": self.batch_size}
        if training:
            sampler: EpochSampler | FixedBatches
            if self.fixed_batches:
                sampler = FixedBatches(dataset, self.batch_size, self.seed)  # type: ignore[arg-type]
                source = {"dataset": BatchedDataset(dataset), "batch_size": None}
            else:
                sampler = EpochSampler(dataset, self.seed)
            if self.trainer is not None:
                # worker processes start to load before the trainer sets the epoch of a resumed run
                sampler.set_epoch(self.trainer.current_epoch)
            source["sampler"] = sampler
        return (ResumableLoader if training else DataLoader)(
            **source,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
        )


def split_stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split sample indices in two, holding out a fraction of the samples of each class.

    Args:
        labels: class of each sample, shape ``(N,)``.
        fraction: share held out, in (0, 1); of each class at least one sample is held out and one kept.
        seed: of the random choice.

    Returns:
        Sorted indices kept and sorted indices held out.

    Raises:
        ValueError: if ``fraction`` is out of range or a class has fewer than two samples.
    """
    check_fraction("fraction", fraction)
    held_out = []
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < 2:
            raise ValueError(f"Expected at least 2 samples of class {label} to split, but got {count}")
        members = np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels == label))
        held_out.append(members[: min(max(round(fraction * count), 1), count - 1)])
    held = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), held), held


def split_by_group(groups: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split sample indices in two so that no group, for example a subject, is on both sides.

    Args:
        groups: group of each sample, shape ``(N,)``.
        fraction: share of the groups held out, in (0, 1); at least one group is held out and one kept.
        seed: of the random choice.

    Returns:
        Sorted indices kept and sorted indices held out.

    Raises:
        ValueError: if ``fraction`` is out of range or there are fewer than two groups.
    """
    check_fraction("fraction", fraction)
    names = np.unique(groups)
    if len(names) < 2:
        raise ValueError(f"Expected at least 2 groups to split, but got {len(names)}")
    count = min(max(round(fraction * len(names)), 1), len(names) - 1)
    held = np.isin(groups, np.random.default_rng(seed).permutation(names)[:count])
    return np.flatnonzero(~held), np.flatnonzero(held)
