"""Batches of a `SpikingModule`: their form, the order of their axes, and how many samples an epoch has."""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_snn.nn.folding import as_input, check_samples, check_sequence
from lightning_snn.nn.inputs import first_input, is_several, map_inputs, named_inputs
from lightning_snn.nn.lengths import check_lengths, sequence_lengths, without_padding

# rounding of class probabilities in half precision
_TOLERANCE = 0.01
_LISTED = 10
A_BATCH = (
    "A batch is (x, y): inputs x of shape [T, B, ...] in floating point, or [B, T, ...] with "
    "SpikingModule(batch_first=True), and targets y of shape [B, ...]; or (x, y, lengths) with the number of valid "
    "time steps of each sample, integers [B]"
)


class Batch(NamedTuple):
    """Parts of a batch.

    Attributes:
        x: inputs `[T, B, ...]`.
        y: targets; None for a prediction.
        lengths: number of valid time steps of each sample, integers `[B]`; None if all steps are valid.
    """

    x: Any
    y: Any = None
    lengths: Any = None


def unpacked(batch: Any) -> Batch:
    """Return inputs, targets and lengths of a batch, a pair or a triple.

    Raises:
        ValueError: if the batch is neither.

    Example:
        >>> unpacked([torch.zeros(5, 2, 3), torch.tensor([0, 1])]).y
        tensor([0, 1])
    """
    if not isinstance(batch, (tuple, list, dict, Tensor)) and hasattr(type(batch), "__iter__"):
        iter(batch)  # a batch of a loader without its data module says so itself
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise ValueError(
            f"Expected argument `batch` to be a pair, or a triple with lengths, but got {_described(batch)}. "
            f"{A_BATCH}. Return these from the data set or its collate function, or override "
            "`SpikingModule.read_batch`"
        )
    return Batch(*batch)


def time_first(x: Any, y: Any, batch_first: bool) -> tuple[Any, Any]:
    """Return the batch with time first, after comparing the axes of inputs and targets.

    Targets per step, whose first two axes are those of `x`, are transposed with it.

    Args:
        x: inputs `[T, B, ...]`, or `[B, T, ...]` with `batch_first`; or several in a tuple, list or dict.
        y: targets `[B, ...]` or one per step; None if there are none.
        batch_first: whether the first axis of `x` is the batch.

    Returns:
        inputs `[T, B, ...]` and targets.

    Raises:
        ValueError: if `x` is not a dense tensor with a time and a batch axis, or the number of targets is not the
            number of samples; names the axis that looks wrong.

    Example:
        >>> time_first(torch.zeros(2, 5, 3), torch.tensor([0, 1]), batch_first=True)[0].shape
        torch.Size([5, 2, 3])
    """
    if is_several(x):
        return _several_time_first(x, y, batch_first)
    check_sequence(x, batch_first)
    if y is not None and not isinstance(y, Tensor):
        raise ValueError(
            f"Expected argument `y` of a batch to be a tensor, but got {_described(y)}. Convert it with "
            f"`torch.as_tensor`. {A_BATCH}"
        )
    batch_axis = 0 if batch_first else 1
    samples = x.shape[batch_axis]
    if y is not None and (y.dim() == 0 or y.shape[0] != samples) and y.shape[:2] != x.shape[:2]:
        raise ValueError(_wrong_axes(x, y, batch_first))
    if not batch_first:
        return x, y
    if y is not None and y.dim() > 1 and y.shape[:2] == x.shape[:2]:
        y = y.transpose(0, 1)
    return x.transpose(0, 1), y


def _several_time_first(x: Any, y: Any, batch_first: bool) -> tuple[Any, Any]:
    check_sequence(x, batch_first)
    pairs = [time_first(part, y, batch_first) for part in named_inputs(x).values()]
    return map_inputs(lambda part: part.transpose(0, 1) if batch_first else part, x), pairs[0][1]


def _wrong_axes(x: Tensor, y: Tensor, batch_first: bool) -> str:
    expected = "[B, T, ...]" if batch_first else "[T, B, ...]"
    message = (
        f"Expected argument `x` of shape {expected} and as many targets `y` as samples B, but got x of shape "
        f"{tuple(x.shape)} and y of shape {tuple(y.shape)}"
    )
    if y.dim() == 0 or y.shape[0] != x.shape[1 if batch_first else 0]:
        return f"{message}. {A_BATCH}"
    axis = f"Axis {1 if batch_first else 0} of x has as many entries as y"
    if batch_first:
        return (
            f"{message}. {axis}, so time is first: leave `batch_first` out. Data modules of lightning_snn give time "
            "first, whatever their loaders yield"
        )
    return (
        f"{message}. {axis}, so the batch is first: pass SpikingModule(batch_first=True). If x has no time axis, add "
        "one, for example by an encoder or `x.expand(T, *x.shape)`"
    )


def is_ambiguous(x: Tensor, y: Tensor | None) -> bool:
    """Return whether time and batch of `x` cannot be told apart by their lengths."""
    return x.shape[0] == x.shape[1] > 1 and (y is None or y.shape[:2] != x.shape[:2])


def check_classes(y: Tensor, num_classes: int) -> None:
    """Raise a ValueError unless integer targets are classes from 0 to ``num_classes - 1``."""
    if y.is_floating_point() or y.numel() == 0:
        return
    low, high = y.min().item(), y.max().item()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"Expected argument `y` to hold classes from 0 to {num_classes - 1}, for num_classes={num_classes}, but "
            f"got classes from {low} to {high}. Leave unlabeled samples out, or count the classes again"
        )


def check_class_probabilities(y: Tensor) -> None:
    """Raise a ValueError unless targets in floating point are class probabilities `[B, C, ...]` that sum to 1."""
    if not y.is_floating_point() or y.dim() < 2:
        return
    low, sums = y.min().item(), y.sum(1, dtype=torch.promote_types(y.dtype, torch.float32))
    least, most = sums.min().item(), sums.max().item()
    if low < 0 or least < 1 - _TOLERANCE or most > 1 + _TOLERANCE:
        raise ValueError(
            f"Expected argument `y` in floating point to hold class probabilities, at least 0 and with a sum of 1 over "
            f"the classes, but got a smallest value of {low:g} and sums from {least:g} to {most:g}. A sample has one "
            "class: pass integers of shape [B]"
        )


class BatchChecks:
    """Checks of the batches of a module, some of them once per fit.

    Args:
        num_classes: number of classes C; None for a regression, whose targets are not checked.
        batch_first: as in `SpikingModule`.

    Example:
        >>> batch = Batch(torch.rand(5, 2, 4).half(), torch.tensor([0, 2]))
        >>> BatchChecks(3, None).checked(nn.Linear(4, 3), batch, True).x.dtype
        torch.float32
    """

    def __init__(self, num_classes: int | None, batch_first: bool | None) -> None:
        self.num_classes, self.batch_first = num_classes, batch_first
        self._warned_of_axes = False
        self._checks_lengths = True
        # which classes have occurred in the first epoch of a fit, `[C]`
        self._seen: Tensor | None = None

    def checked(self, network: nn.Module, batch: Batch, gives_time_first: bool) -> Batch:
        """Return a batch with inputs in the dtype that the network takes, classes as integers, and zeros as padding.

        Args:
            network: the network.
            batch: inputs `[T, B, ...]`, targets and lengths.
            gives_time_first: whether the order of the axes of the inputs is known.

        Raises:
            ValueError: if the network does not take the dtype of the inputs, there are targets but no samples, or
                lengths are no integers `[B]` on the device of the inputs; on the CPU, or else in the first batch of a
                fit, if lengths are not from 1 to T; on the CPU if integer targets are no classes.
        """
        x, y, lengths = batch
        x = as_input(network, x)
        if y is not None:
            check_samples(x)
        if lengths is not None:
            first = first_input(x)
            values = self._checks_lengths or first.device.type == "cpu"  # others would finish all their work first
            self._checks_lengths = False
            lengths = check_lengths(lengths, first.shape[0], first, values)
            with sequence_lengths(lengths):
                x = map_inputs(without_padding, x)  # whatever padding holds, such as nan, could spoil gradients
        if isinstance(y, Tensor) and self.num_classes is not None:
            y = y.long() if y.dtype == torch.bool else y
            if y.device.type == "cpu":  # another device would finish all its work first
                check_classes(y, self.num_classes)
        sequence = first_input(x)
        if self.batch_first is None and not self._warned_of_axes and is_ambiguous(sequence, y) and not gives_time_first:
            self._warned_of_axes = True
            rank_zero_warn(
                f"Inputs of shape {tuple(sequence.shape)} have as many time steps as samples, so their order cannot be "
                "checked; they are taken for [T, B, ...]. Pass SpikingModule(batch_first=True) if the batch is first, "
                "or batch_first=False to confirm that time is"
            )
        return Batch(x, y, lengths)

    def start_fit(self, y: Any, epoch_starts: bool) -> None:
        """Check the first targets of a fit on any device, and note their classes.

        Args:
            y: targets.
            epoch_starts: whether the batch is the first of its epoch, so the classes of the whole epoch can be noted.

        Raises:
            ValueError: if integer targets are no classes, or others no class probabilities.
        """
        self._seen = None
        self._checks_lengths = True
        if self.num_classes is None or not isinstance(y, Tensor):
            return
        check_classes(y, self.num_classes)
        check_class_probabilities(y)
        if epoch_starts and not y.is_floating_point():
            self._seen = torch.zeros(self.num_classes, device=y.device)
            self.note_classes(y)

    def note_classes(self, y: Any) -> None:
        """Note the classes of a batch of the first epoch of a fit."""
        if self._seen is not None:
            self._seen.scatter_(0, y.flatten().long(), 1.0)

    def end_epoch(self, strategy: Strategy | None) -> None:
        """Warn, at the end of the first epoch of a fit, of classes that no sample has in any process.

        Args:
            strategy: that of the Trainer, which sums over processes; None if the epoch did not see all data.
        """
        seen, self._seen = self._seen, None
        if seen is None or strategy is None:
            return
        counts: Tensor = strategy.reduce(seen, reduce_op="sum")
        absent = [index for index, count in enumerate(counts.tolist()) if count == 0]
        if absent:
            names = ", ".join(map(str, absent[:_LISTED])) + ", ..." * (len(absent) > _LISTED)
            rank_zero_warn(
                f"No training sample has class {names} of the {len(seen)} classes. Train on samples of each class, or "
                f"count the classes again: num_classes={len(seen)}"
            )


def train_size(trainer: pl.Trainer, batch_size: int) -> int | None:
    """Return the number of training samples per epoch over all processes.

    Samples are counted by the data set if its entries are samples. If they are batches, the result is the number of
    batches times `batch_size`, which is exact for equal batches.

    Args:
        trainer: a trainer that is fitting.
        batch_size: largest batch seen.

    Returns:
        The number of samples, or None if it is unknown: for endless streams, iterable data sets without a length and
        several loaders.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        return None
    batches = trainer.num_training_batches
    seen = None if batches == float("inf") else int(batches) * trainer.world_size * batch_size
    size = _length(loader.dataset)
    if _holds_batches(loader, size, batch_size):
        return seen
    if loader.batch_size is not None and seen is not None:
        seen = int(batches) * trainer.world_size * loader.batch_size
    return seen if size is None else size if seen is None else min(size, seen)


def steps_of_run(trainer: pl.Trainer | None) -> int:
    """Return the number of optimizer steps of a whole run, which the schedule "cosine" needs.

    Args:
        trainer: the trainer; None if there is none.

    Raises:
        ValueError: if there is no trainer, or its run has no end.
    """
    if trainer is None:
        raise ValueError(
            'Expected a Trainer for lr_scheduler="cosine", which decreases to 0 over its run, but got none. Pass a '
            "function that returns the scheduler"
        )
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError('Expected `max_epochs` or `max_steps` to be set for lr_scheduler="cosine", but got neither')
    return int(steps)


def _holds_batches(loader: DataLoader[Any], size: int | None, batch_size: int) -> bool:
    """Return whether the entries of the data set are batches rather than samples."""
    if loader.batch_size is not None:
        return batch_size > loader.batch_size  # the collate function joins entries
    if loader.batch_sampler is not None:
        return False
    # without automatic batches a sampler yields one index per batch, or the list of a batch's samples
    return isinstance(loader.dataset, IterableDataset) or size is None or _length(loader.sampler) == size


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
