"""Batches of samples: those of our loaders, which the data module converts on the device, and those of any loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import default_collate

REMEDY = (
    "Pass the data module to the trainer, `trainer.fit(module, data_module)`, not one of its loaders. Without a "
    "trainer call `x, y = data_module.on_after_batch_transfer(batch, 0)`."
)


class LoadedBatch:
    """Batch from a loader of a data module, before :meth:`FrameDataModule.on_after_batch_transfer` converts it.

    Frames are batch first and often uint8, which is cheap to move to the device. They become the input of a network,
    time first and float, only there. So a loaded batch is no ``(x, y)``: unpacking it is an error that says what to
    call.

    Args:
        frames: samples, shape ``(B, T, ...)``.
        labels: labels, shape ``(B, ...)``.
        indices: index of each sample in its data set, for what is to depend on the sample; empty if unknown.

    Example:
        >>> x, y = LoadedBatch(torch.zeros(2, 5, 4, dtype=torch.uint8), torch.zeros(2))
        Traceback (most recent call last):
        TypeError: Expected a batch `(x [T, B, ...], y [B, ...])`, but got a loaded batch that its data module has ...
    """

    remedy = REMEDY

    def __init__(self, frames: Tensor, labels: Tensor, indices: tuple[int, ...] = ()) -> None:
        self.frames = frames
        self.labels = labels
        self.indices = indices

    def to(self, device: Any, **options: Any) -> LoadedBatch:
        """Return the batch on another device; Lightning calls this."""
        # Lightning asks only for copies of tensors not to block
        options.setdefault("non_blocking", torch.device(device).type not in ("cpu", "mps"))
        return LoadedBatch(self.frames.to(device, **options), self.labels.to(device, **options), self.indices)

    def pin_memory(self) -> LoadedBatch:
        """Return the batch in pinned memory; loaders call this."""
        return LoadedBatch(self.frames.pin_memory(), self.labels.pin_memory(), self.indices)

    def __iter__(self) -> Iterator[Tensor]:
        raise TypeError(self._refusal())

    def __getitem__(self, index: Any) -> Tensor:
        raise TypeError(self._refusal())

    def __getattr__(self, name: str) -> NoReturn:
        # copies and unpickled batches are asked for special methods before they have frames
        special = name.startswith("__")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}" if special else self._refusal())

    def _refusal(self) -> str:
        return (
            "Expected a batch `(x [T, B, ...], y [B, ...])`, but got a loaded batch that its data module has not "
            f"converted: {self.frames.dtype} of shape {tuple(self.frames.shape)}, batch first. {REMEDY}"
        )


def collate(samples: Sequence[tuple[Any, ...]]) -> LoadedBatch:
    """Stack ``(frames, label)`` or ``(frames, label, index)`` samples into a :class:`LoadedBatch`.

    Integer labels become int64.
    """
    frames, labels = default_collate([sample[:2] for sample in samples])
    indices = tuple(index for sample in samples for index in sample[2:])
    return LoadedBatch(frames, labels if torch.is_floating_point(labels) else labels.long(), indices)


def time_first(samples: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    """Stack ``(x [T, ...], y)`` samples into a batch ``(x [T, B, ...], y [B, ...])``, for any loader's ``collate_fn``.

    Args:
        samples: pairs of an input of shape ``(T, ...)``, any rank from 1, and a label or target: arrays, tensors or
            numbers of any type. All inputs have the same shape.

    Returns:
        Inputs of torch's default floating-point type, time first, and labels: integers and bools become int64, floats
        the default type.

    Raises:
        ValueError: if a sample is no pair, or inputs or targets differ in shape.

    Example:
        >>> samples = torch.utils.data.TensorDataset(torch.ones(6, 10, 2, 8, 8).byte(), torch.arange(6) % 3)
        >>> x, y = next(iter(torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=time_first)))
        >>> x.shape, x.dtype, y
        (torch.Size([10, 4, 2, 8, 8]), torch.float32, tensor([0, 1, 2, 0]))
    """
    inputs, targets = _columns(samples)
    remedy = "For sequences of different lengths pass `collate_fn=pad_sequences`, or cut recordings into clips."
    _check_equal("inputs", [tuple(each.shape) for each in inputs], remedy)
    return torch.stack(inputs, 1).to(torch.get_default_dtype()), _stacked_targets(targets)


def pad_sequences(
    samples: Sequence[tuple[Any, Any]],
    batch_first: bool = False,
    time_steps: int | None = None,
    targets_per_step: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Stack samples of different lengths into a batch ``(x, y, lengths)``, for any loader's ``collate_fn``.

    Inputs are filled up with zeros, which count nowhere: `SpikingModule` takes the lengths with the batch.

    Args:
        samples: pairs of an input of shape ``(T_i, ...)``, any rank from 1, and a label or target: arrays, tensors or
            numbers of any type. All inputs have the same shape but for their length.
        batch_first: whether inputs become ``(B, T, ...)``, for ``SpikingModule(batch_first=True)``.
        time_steps: number of time steps T of the batch; None is the largest length.
        targets_per_step: whether targets are ``(T_i, ...)``, one for each step, and filled up as inputs are.

    Returns:
        Inputs ``(T, B, ...)`` of torch's default floating-point type, targets ``(B, ...)`` as of `time_first`, or
        ``(T, B, ...)``, and the number of steps of each sample, int64 ``(B,)``.

    Raises:
        ValueError: if a sample is no pair, an input has no step or more than `time_steps`, inputs differ in more than
            their length, or targets in shape, or targets per step are not as many as steps.

    Example:
        >>> samples = [(torch.ones(3, 4), 0), (torch.ones(5, 4), 1)]
        >>> x, y, lengths = next(iter(torch.utils.data.DataLoader(samples, batch_size=2, collate_fn=pad_sequences)))
        >>> x.shape, y, lengths
        (torch.Size([5, 2, 4]), tensor([0, 1]), tensor([3, 5]))
    """
    inputs, targets = _columns(samples)
    lengths = torch.tensor([len(each) for each in inputs])
    longest = int(lengths.max())
    if lengths.min() < 1:
        raise ValueError("Expected each sample to have at least one time step, but got one without. Leave it out.")
    if time_steps is None:
        time_steps = longest
    elif time_steps < longest:
        raise ValueError(
            f"Expected argument `time_steps` to be at least the largest length {longest} of a batch, but got "
            f"{time_steps}. Cut the sequences before."
        )
    x = _padded("inputs", inputs, time_steps).to(torch.get_default_dtype())
    if not targets_per_step:
        return x.transpose(0, 1) if batch_first else x, _stacked_targets(targets), lengths
    steps = [len(each) if each.ndim else 0 for each in targets]
    if steps != lengths.tolist():
        raise ValueError(
            f"Expected one target for each of the {lengths.tolist()} steps of the samples, but got {steps}. With one "
            "target per sample pass `targets_per_step=False`."
        )
    y = _of_default_type(_padded("targets", targets, time_steps))
    return (x.transpose(0, 1), y.transpose(0, 1), lengths) if batch_first else (x, y, lengths)


def recorded_lengths(frames: Tensor) -> Tensor:
    """Return the number of frames up to the last one that is not empty, at least 1.

    Args:
        frames: samples ``(B, T, ...)``.

    Returns:
        int64 ``(B,)``.

    Example:
        >>> recorded_lengths(torch.tensor([[[0], [1], [0]], [[0], [0], [0]]]))
        tensor([2, 1])
    """
    occupied = (frames != 0).flatten(2).any(2)
    numbers = torch.arange(1, frames.shape[1] + 1, device=frames.device)
    return (occupied * numbers).amax(1).clamp(min=1)


def _columns(samples: Sequence[tuple[Any, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs and targets of samples, which have to be pairs."""
    for sample in samples:
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            found = f"{type(sample).__name__} of {len(sample)}" if hasattr(sample, "__len__") else f"{sample!r}"
            raise ValueError(
                f"Expected each sample of the data set to be a pair (x, y), but got a {found}. Return pairs, or write "
                "a `collate_fn` of your own."
            )
    inputs, targets = ([torch.as_tensor(value) for value in column] for column in zip(*samples, strict=True))
    if any(each.ndim == 0 for each in inputs):
        raise ValueError("Expected the input of each sample to be of shape (T, ...), time first, but got a number")
    return inputs, targets


def _check_equal(name: str, shapes: Sequence[tuple[int, ...]], remedy: str) -> None:
    found = sorted(set(shapes))
    if len(found) > 1:
        raise ValueError(
            f"Expected the {name} of a batch to have the same shape, but got {' and '.join(map(str, found))}. {remedy}"
        )


def _padded(name: str, sequences: Sequence[Tensor], time_steps: int) -> Tensor:
    """Stack sequences ``(T_i, ...)`` to ``(T, B, ...)`` with zeros behind their ends."""
    remedy = "Make them of one shape."
    _check_equal(f"{name}, but for their lengths,", [tuple(each.shape[1:]) for each in sequences], remedy)
    kind = reduce(torch.promote_types, [each.dtype for each in sequences])
    stacked = torch.zeros(time_steps, len(sequences), *sequences[0].shape[1:], dtype=kind)
    for index, each in enumerate(sequences):
        stacked[: len(each), index] = each
    return stacked


def _stacked_targets(targets: Sequence[Tensor]) -> Tensor:
    _check_equal("targets", [tuple(each.shape) for each in targets], "Make them of one shape.")
    return _of_default_type(torch.stack(list(targets)))


def _of_default_type(labels: Tensor) -> Tensor:
    return labels.to(torch.get_default_dtype() if labels.is_floating_point() else torch.int64)
