"""Data module of arrays in memory: a user's own data, of any rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lightning_snn.checks import check_choice, check_fraction, check_integer
from lightning_snn.data.base import FrameDataModule
from lightning_snn.data.datasets import FrameDataset
from lightning_snn.data.splits import split_by_group, split_stratified

Inputs = np.ndarray | Tensor
Targets = np.ndarray | Tensor | Sequence[Any]
CHECKED_AT_ONCE = 256


class ArrayDataModule(FrameDataModule):
    """Data module of arrays or tensors, which :meth:`FrameDataModule.from_arrays` makes.

    Inputs are read by index, batch by batch, so memory-mapped arrays stay on disk. uint8 inputs stay uint8 until they
    are on the device; all others become float32.

    Args:
        x: inputs, shape ``(N, T, ...)`` of any rank from 3, sample first.
        y: class of each sample, shape ``(N,)``, integers from 0; for a regression targets, floats of shape ``(N, ...)``
            (those of shape ``(N,)`` become ``(N, 1)``).
        val: inputs and labels ``(x, y)`` of the validation set; None takes ``val_fraction`` of the samples.
        test: the same for the test set.
        val_fraction: share of the samples in the validation set, of each class if there are no groups.
        test_fraction: share of the samples in the test set.
        groups: group of each sample, shape ``(N,)``, such as the person or recording that it is cut from: integers or
            strings. No group is in two sets, and the fractions are those of groups.
        task: "classification" or "regression".
        num_classes: number of classes; None takes the largest label plus one, and then each class needs a sample.
        class_names: name of each class; None takes their numbers.
        pairs: pairs of classes that differ only in the direction of motion.
        **loader_options: other arguments of :class:`FrameDataModule`; the seed also determines the split.

    Raises:
        ValueError: if an argument is out of range, arrays do not fit together, inputs hold NaN or infinity, or a class
            or the groups are too few to split.
    """

    def __init__(
        self,
        x: Inputs,
        y: Targets,
        *,
        val: tuple[Inputs, Targets] | None = None,
        test: tuple[Inputs, Targets] | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        groups: Sequence[Any] | np.ndarray | None = None,
        task: Literal["classification", "regression"] = "classification",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        pairs: Sequence[tuple[int, int]] = (),
        **loader_options: Any,
    ) -> None:
        super().__init__(**loader_options)
        check_choice("task", task, ("classification", "regression"))
        for name, fraction in (("val", val_fraction), ("test", test_fraction)):
            try:
                check_fraction(f"{name}_fraction", fraction)
            except ValueError as error:
                raise ValueError(f"{error}. For a set that is divided already pass `{name}=(x, y)`") from error
        self.task = task
        self.samples = _dataset("x", "y", x, y, task)
        self.frame_shape = tuple(self.samples.frames.shape[2:])
        self.time_steps = int(self.samples.frames.shape[1])
        self.given = {name: self._given(name, part) for name, part in (("val", val), ("test", test))}
        self.fractions = {"val": val_fraction, "test": test_fraction}
        if groups is not None:
            groups = np.asarray(groups)
            if groups.shape != (len(self.samples),):
                raise ValueError(
                    f"Expected argument `groups` to be of shape ({len(self.samples)},), one group per sample, but got "
                    f"{groups.shape}"
                )
        self.groups = groups
        self.pairs = tuple((int(first), int(second)) for first, second in pairs)
        self._set_classes(num_classes, class_names)
        self.indices = self._split()

    def load_sets(self) -> tuple[Dataset[Any], Dataset[Any], Dataset[Any]]:
        """Return the training, validation and test sets."""
        parts = {
            name: self.given[name] or Subset(self.samples, self.indices[name].tolist()) for name in ("val", "test")
        }
        return Subset(self.samples, self.indices["train"].tolist()), parts["val"], parts["test"]

    def _given(self, name: str, part: tuple[Inputs, Targets] | None) -> FrameDataset | None:
        if part is None:
            return None
        if not isinstance(part, (tuple, list)) or len(part) != 2:
            raise ValueError(f"Expected argument `{name}` to be a pair (x, y), but got {type(part).__name__}")
        dataset = _dataset(f"{name}[0]", f"{name}[1]", *part, self.task)
        wanted = tuple(self.samples.frames.shape[1:])
        if tuple(dataset.frames.shape[1:]) != wanted:
            raise ValueError(
                f"Expected argument `{name}[0]` to be of shape (N, {', '.join(map(str, wanted))}) like argument `x`, "
                f"but got {tuple(dataset.frames.shape)}"
            )
        return dataset

    def _set_classes(self, num_classes: int | None, class_names: Sequence[str] | None) -> None:
        if self.task == "regression":
            self.num_classes = int(self.samples.labels[0].numel())
            self.class_names = ()
            return
        labels = torch.cat([part.labels for part in (self.samples, *self.given.values()) if part is not None])
        counts = torch.bincount(labels)
        if num_classes is None:
            absent = (counts == 0).nonzero().flatten().tolist()
            if absent:
                raise ValueError(
                    f"Expected argument `y` to hold every class from 0 to {len(counts) - 1}, but classes {absent[:5]} "
                    "have no sample. Count classes from 0, or pass `num_classes`."
                )
            num_classes = len(counts)
        check_integer("num_classes", num_classes, 2)
        if len(counts) > num_classes:
            raise ValueError(
                f"Expected labels below argument `num_classes` {num_classes}, but got labels up to {len(counts) - 1}"
            )
        names = tuple(str(label) for label in range(num_classes)) if class_names is None else tuple(class_names)
        if len(names) != num_classes:
            raise ValueError(f"Expected argument `class_names` to hold {num_classes} names, but got {len(names)}")
        if any(not 0 <= label < num_classes for pair in self.pairs for label in pair):
            raise ValueError(f"Expected argument `pairs` to hold classes below {num_classes}, but got {self.pairs}")
        self.num_classes = num_classes
        self.class_names = names

    def _split(self) -> dict[str, np.ndarray]:
        """Return the indices of each set within `x`; those of a set that was given are none."""
        wanted = [name for name in ("test", "val") if self.given[name] is None]
        if sum(self.fractions[name] for name in wanted) >= 1:
            raise ValueError(f"Expected fractions that leave training samples, but got {self.fractions}")
        indices = {"train": np.arange(len(self.samples)), "val": np.zeros(0, int), "test": np.zeros(0, int)}
        remaining = 1.0
        for name in wanted:
            rest, fraction = indices["train"], self.fractions[name] / remaining
            if self.groups is not None:
                kept, held = split_by_group(self.groups[rest], fraction, self.seed)
            elif self.task == "classification":
                kept, held = split_stratified(self.samples.labels.numpy()[rest], fraction, self.seed)
            else:
                kept, held = split_by_group(rest, fraction, self.seed)
            indices["train"], indices[name] = rest[kept], rest[held]
            remaining -= self.fractions[name]
        return indices


def _dataset(x_name: str, y_name: str, x: Inputs, y: Targets, task: str) -> FrameDataset:
    """Return the data set of inputs and labels, whose errors have their own names."""
    if not isinstance(x, (np.ndarray, Tensor)) or (isinstance(x, Tensor) and x.layout != torch.strided):
        found = f"a tensor of layout {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"Expected argument `{x_name}` to be an array or a dense tensor, but got {found}. Use `np.stack` for a "
            "list of arrays of one shape, a loader with `collate_fn=pad_sequences` for different lengths, and "
            "`to_dense` for a sparse tensor."
        )
    if isinstance(x, Tensor):
        x = x.detach().cpu()
    y = y.detach().cpu() if isinstance(y, Tensor) else np.asarray(y)
    if x.ndim == 2:
        raise ValueError(
            f"Expected argument `{x_name}` to be of shape (N, T, ...) with at least one axis after T, but got "
            f"{tuple(x.shape)}. If its axes are samples and time steps, add one of one feature, `x[..., None]`; if "
            "they are samples and features, repeat them in time, `np.repeat(x[:, None], time_steps, 1)`."
        )
    if x.ndim > 2 and y.ndim > 0 and len(x) != len(y) and x.shape[1] == len(y):
        raise ValueError(
            f"Expected argument `{x_name}` to be of shape (N, T, ...), sample first, with {len(y)} samples like "
            f"`{y_name}`, but got {tuple(x.shape)}, which looks time first. Pass `x.swapaxes(0, 1)`."
        )
    try:
        dataset = FrameDataset(x, y)
    except ValueError as error:
        message = str(error).replace("`frames`", f"`{x_name}`").replace("`labels`", f"`{y_name}`")
        raise ValueError(message) from None
    if len(dataset) == 0 or 0 in x.shape:
        raise ValueError(f"Expected argument `{x_name}` to hold samples, but got the shape {tuple(x.shape)}")
    if dataset.labels.is_floating_point() != (task == "regression"):
        if task == "regression":
            raise ValueError(f"Expected argument `{y_name}` to hold floats for a regression, but got {y.dtype}")
        raise ValueError(
            f"Expected argument `{y_name}` to hold the class of each sample, integers of shape (N,), but got {y.dtype} "
            f"of shape {tuple(y.shape)}. Convert it, of one-hot labels take the argmax, or pass `task='regression'`."
        )
    if dataset.labels.is_floating_point() and dataset.labels.ndim == 1:
        dataset.labels = dataset.labels[:, None]
    _check_finite(x_name, x)
    return dataset


def _check_finite(name: str, x: Inputs) -> None:
    """Raise a ValueError if inputs hold NaN or infinity, read in parts so that no copy of them all is held."""
    if not (x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"):
        return
    for start in range(0, len(x), CHECKED_AT_ONCE):
        part = torch.as_tensor(np.asarray(x[start : start + CHECKED_AT_ONCE]))
        bad = (~part.isfinite()).flatten(1).any(1)
        if bad.any():
            sample = start + int(bad.nonzero()[0])
            raise ValueError(f"Expected argument `{name}` to be finite, but sample {sample} holds NaN or infinity")
