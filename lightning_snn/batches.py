"""Batches `(x, y)` of a `SpikingModule`: their form, the order of their axes, and how many samples an epoch has."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_snn.nn.folding import check_sequence

A_BATCH = (
    "A batch is (x, y): inputs x of shape [T, B, ...] in floating point, or [B, T, ...] with "
    "SpikingModule(batch_first=True), and targets y of shape [B, ...]"
)


def unpacked(batch: Any) -> tuple[Any, Any]:
    """Return inputs and targets of a batch.

    Raises:
        ValueError: if the batch is not a pair.

    Example:
        >>> unpacked([torch.zeros(5, 2, 3), torch.tensor([0, 1])])[1]
        tensor([0, 1])
    """
    if not isinstance(batch, (tuple, list, dict, Tensor)) and hasattr(type(batch), "__iter__"):
        iter(batch)  # a batch of a loader without its data module says so itself
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(
            f"Expected argument `batch` to be a pair, but got {_described(batch)}. {A_BATCH}. Return a pair from the "
            "data set or its collate function, or override `SpikingModule.read_batch`"
        )
    return batch[0], batch[1]


def time_first(x: Any, y: Any, batch_first: bool) -> tuple[Tensor, Any]:
    """Return the batch with time first, after comparing the axes of inputs and targets.

    Targets per step, whose first two axes are those of `x`, are transposed with it.

    Args:
        x: inputs `[T, B, ...]`, or `[B, T, ...]` with `batch_first`.
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
    check_sequence(x)
    if y is not None and not isinstance(y, Tensor):
        raise ValueError(f"Expected argument `y` of a batch to be a tensor, but got {_described(y)}. {A_BATCH}")
    batch_axis = 0 if batch_first else 1
    samples = x.shape[batch_axis]
    if y is not None and (y.dim() == 0 or y.shape[0] != samples) and y.shape[:2] != x.shape[:2]:
        raise ValueError(_wrong_axes(x, y, batch_first))
    if not batch_first:
        return x, y
    if y is not None and y.dim() > 1 and y.shape[:2] == x.shape[:2]:
        y = y.transpose(0, 1)
    return x.transpose(0, 1), y


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


def check_dtype(x: Tensor, network: nn.Module) -> None:
    """Raise a ValueError if inputs are float64 and parameters float32, or the other way around."""
    parameter = next((each for each in network.parameters() if each.is_floating_point()), None)
    if parameter is None or {x.dtype, parameter.dtype} != {torch.float32, torch.float64}:
        return
    raise ValueError(
        f"Expected argument `x` in the dtype of the parameters, {parameter.dtype}, but got {x.dtype}. Convert it with "
        f"`x.to({parameter.dtype})`, or train with Trainer(precision='64-true'); NumPy arrays are float64 "
        "by default"
    )


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
