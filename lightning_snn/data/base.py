"""Base class of all data modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from lightning_snn.checks import check_between, check_choice, check_integer
from lightning_snn.data.augmentation import EventAugmentation, keyed_seed
from lightning_snn.data.batches import LoadedBatch, collate, recorded_lengths
from lightning_snn.data.datasets import FrameDataset as FrameDataset
from lightning_snn.data.fixed_batches import BatchedDataset, FixedBatches, IndexedDataset
from lightning_snn.data.resumable import ResumableLoader, trained_batches
from lightning_snn.data.unpadded import UnpaddedSampler
from lightning_snn.processes import world_size


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


FACTS = {
    "num_classes": "number of classes, or of outputs of a regression",
    "class_names": "name of each class, in the order of the labels; () for a regression",
    "frame_shape": "shape of a frame, (C, H, W) or (features,)",
    "time_steps": "frames per sample, T",
}
"""what a subclass of :class:`FrameDataModule` has to set"""


class FrameDataModule(LightningDataModule):
    """Base class of data modules: ``(x [T, B, ...] float, y [B] int64)`` batches on the model's device.

    :meth:`from_arrays` makes one of arrays. A subclass sets the class attributes below, which the command line and
    callbacks read, implements :meth:`load_sets`, and passes the arguments below on as ``**loader_options``.

    Loaders yield small batch-first uint8 counts, which are cheap to move to the device; they become float and time
    first there. So a trainer needs the data module, ``trainer.fit(module, data)``, and not one of its loaders: a
    :class:`~lightning_snn.data.batches.LoadedBatch` refuses to be unpacked. Without a trainer call
    ``x, y = data.on_after_batch_transfer(batch, 0)``.

    Args:
        batch_size: samples per batch.
        num_workers: worker processes of each loader; 0 loads in the main process.
        seed: integer from 0 that determines the order of the training samples and every random split and draw.
        max_count: event counts are clipped at this value and divided by it, so that inputs lie in [0, 1]; with 1 they
            are 1 where a cell received any event. None leaves the counts unchanged.
        fixed_batches: form the training batches of the same samples in every epoch and shuffle only their order, as
            required by methods that store something per batch; see :class:`~lightning_snn.data.FixedBatches`.
        max_shift: training recordings are shifted at random by up to this many cells along rows and columns.
        mirror: mirror training recordings left to right with probability 1/2. True takes the class of a mirror image
            from the attribute `mirrored_classes`; otherwise the class of the mirror image of each class.
        time_jitter: share of the training events that move to the frame before or after, in [0, 1].
        drop_events: largest share of the events of a training recording that is removed, in [0, 1].
        noise_events: largest number of events that are added to a training recording, as a share of its events.
        lengths: give batches ``(x, y, lengths)`` with the number of frames of each recording up to its last event, at
            least 1, so the empty frames after it count neither in readouts and losses nor in rates and metrics. For
            recordings of different lengths in frames of equal duration; augmentation does not change it.

    The augmentation by `max_shift` to `noise_events` is explained in
    :class:`~lightning_snn.data.augmentation.EventAugmentation`. That of a sample depends on nothing but
    ``(seed, epoch, index of the sample)``: a resumed run, and any number of worker processes and of devices, give the
    same.

    Raises:
        ValueError: if an argument is out of range; from ``setup``, if `mirror` does not hold one class per class, or
            `max_shift` is larger than a frame.

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
    gives_time_first = True
    """whether batches on the device are time first, which the module need not check"""
    citation: ClassVar[str] = ""
    """BibTeX entry of the publication of the data"""
    mirrored_classes: tuple[int, ...] | None = None
    """class of the mirror image of each class; None if a mirror image belongs to no class"""

    def __init__(
        self,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        max_count: int | None = None,
        fixed_batches: bool = False,
        max_shift: int = 0,
        mirror: bool | Sequence[int] = False,
        time_jitter: float = 0.0,
        drop_events: float = 0.0,
        noise_events: float = 0.0,
        lengths: bool = False,
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
        check_choice("lengths", lengths, (True, False))
        self.lengths = lengths
        if mirror is True and self.mirrored_classes is None:
            raise ValueError(
                "Expected argument `mirror` to be False or to hold the class of the mirror image of each class of "
                f"{type(self).__name__}, which declares no `mirrored_classes`, but got True. Set it only if the mirror "
                "image of a recording belongs to a class"
            )
        self.event_augmentation = EventAugmentation(
            max_shift=max_shift,
            mirrored_classes=self.mirrored_classes if mirror is True else mirror or None,
            time_jitter=time_jitter,
            drop_events=drop_events,
            noise_events=noise_events,
        )
        self.train_set: Dataset[Any] | None = None
        self.val_set: Dataset[Any] | None = None
        self.test_set: Dataset[Any] | None = None
        self._restored: dict[str, int] | None = None

    if not TYPE_CHECKING:  # for type checkers the class has no other attributes

        def __getattr__(self, name: str) -> Any:
            kind = type(self).__name__
            if name in FACTS:
                raise AttributeError(
                    f"Expected {kind} to have `{name}`: {FACTS[name]}. Set it in the class or in its `__init__`."
                )
            raise AttributeError(f"{kind!r} object has no attribute {name!r}")

    @staticmethod
    def from_arrays(x: np.ndarray | Tensor, y: np.ndarray | Tensor | Sequence[Any], **options: Any) -> FrameDataModule:
        """Return a data module of arrays or tensors: ``x`` of shape ``(N, T, ...)``, sample first, and ``y``.

        Args:
            x: inputs of any rank from 3, such as event counts ``(N, T, C, H, W)`` or features ``(N, T, F)``.
            y: class of each sample, shape ``(N,)``, integers from 0.
            **options: the other arguments of :class:`~lightning_snn.data.arrays.ArrayDataModule`: ``val`` and ``test``
                or fractions and ``groups`` to split by, ``task``, ``num_classes``, ``class_names``, ``pairs``, and
                those of :class:`FrameDataModule`.

        Raises:
            ValueError: if an argument is out of range, or arrays do not fit together; the message names it.

        Example:
            >>> x, y = np.random.default_rng(0).random((40, 12, 6)), np.arange(40) % 4
            >>> data = FrameDataModule.from_arrays(x, y, val_fraction=0.2, test_fraction=0.2, batch_size=8)
            >>> data.setup()
            >>> len(data.train_set), len(data.val_set), len(data.test_set), data.num_classes, data.frame_shape
            (24, 8, 8, 4, (6,))
            >>> x, y = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
            >>> x.shape
            torch.Size([12, 8, 6])
        """
        from lightning_snn.data.arrays import ArrayDataModule

        return ArrayDataModule(x, y, **options)

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return the disjoint training, validation and test sets, of batch-first ``(frames, label)`` samples."""
        raise NotImplementedError(f"{type(self).__name__} must implement `load_sets`")

    def setup(self, stage: str | None = None) -> None:
        """Load the three sets once; ``stage`` is ignored.

        Raises:
            ValueError: if one of them is empty, or they do not suit the augmentation.
        """
        if self.train_set is not None:
            return
        mirrored = self.event_augmentation.mirrored_classes
        if mirrored is not None and len(mirrored) != self.num_classes:
            raise ValueError(
                f"Expected argument `mirror` to hold {self.num_classes} classes, one per class, but got {mirrored}"
            )
        if self.event_augmentation.max_shift:
            check_between("max_shift", self.event_augmentation.max_shift, 0, max(self.frame_shape))
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

        Events are augmented before, as the arguments of the data module say.

        Args:
            x: inputs, shape ``(T, B, C, H, W)``.
            y: labels, shape ``(B,)``.

        Returns:
            Inputs and labels of the same shapes. Randomness comes from torch's global generator, which is seeded by
            ``(seed, epoch, indices of the samples)`` before and restored after, if the batch is of
            :meth:`train_dataloader`.
        """
        return x, y

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert a loaded batch on its device, augmented while training; return others unchanged.

        Returns:
            ``(x, y)``, or ``(x, y, lengths)`` with the argument `lengths`.
        """
        if not isinstance(batch, LoadedBatch):
            return batch
        converted = self._converted(batch)
        return (*converted, recorded_lengths(batch.frames)) if self.lengths else converted

    def _converted(self, batch: LoadedBatch) -> tuple[Tensor, Tensor]:
        if self.trainer is None or not self.trainer.training:
            return self.preprocess(batch.frames), batch.labels
        frames, labels, indices = batch.frames, batch.labels, batch.indices
        epoch = self.trainer.current_epoch
        if self.event_augmentation:
            if not indices:
                raise ValueError(
                    "Expected a batch of `train_dataloader` of the data module, whose samples carry their indices, to "
                    "augment recordings, but got one without. Change the samples in `load_sets`, not the loader"
                )
            frames, labels = self.event_augmentation(frames, labels, [(self.seed, epoch, index) for index in indices])
        x = self.preprocess(frames)
        if not indices or type(self).augment is FrameDataModule.augment:
            return self.augment(x, labels)
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            torch.manual_seed(keyed_seed(self.seed, epoch, *indices))
            return self.augment(x, labels)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches of the training set in an order keyed by ``(seed, epoch)``; the last one may be smaller.

        The sizes of fixed batches differ by at most one.
        """
        loader = self._loader(self.train_set, training=True)
        state, self._restored = self._restored, None
        if state is not None and isinstance(loader, ResumableLoader):
            loader.load_state_dict(state)
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Return batches of the validation set, in order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test set, in order."""
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test set, in order, with their labels."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, int]:
        """Return the position of training in its epoch; the trainer calls this."""
        loader = None if self.trainer is None else self.trainer.train_dataloader
        return loader.state_dict() if isinstance(loader, ResumableLoader) else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start training at that position; the trainer calls this, before it asks for the first loader.

        Raises:
            ValueError: in `train_dataloader`, if the epoch had another number of batches.
        """
        # a checkpoint that is loaded for a test has no position for a later training
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._restored = state_dict

    def _loader(self, dataset: Dataset[Any] | None, training: bool = False) -> DataLoader[Any]:
        if dataset is None:
            raise RuntimeError(f"Expected `setup` of {type(self).__name__} to be called before a loader is requested")
        source: dict[str, Any] = {"dataset": dataset, "batch_size": self.batch_size}
        if training:
            dataset = IndexedDataset(dataset)
            source["dataset"] = dataset
            sampler: EpochSampler | FixedBatches
            if self.fixed_batches:
                sampler = FixedBatches(dataset, self.batch_size, self.seed)
                source = {"dataset": BatchedDataset(dataset), "batch_size": None}
            else:
                sampler = EpochSampler(dataset, self.seed)
            if self.trainer is not None:
                # worker processes start to load before the trainer sets the epoch of a resumed run
                sampler.set_epoch(self.trainer.current_epoch)
            source["sampler"] = sampler
        options: dict[str, Any] = {
            **source,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": collate,
        }
        if training:
            loader = ResumableLoader(**options)
            loader.position = lambda: trained_batches(self.trainer)
            return loader
        if world_size() > 1:
            options["sampler"] = UnpaddedSampler(dataset)  # type: ignore[arg-type]
        return DataLoader(**options)
