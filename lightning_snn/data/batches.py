"""Batches of samples: those of our loaders, which the data module converts on the device, and those of any loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    for sample in samples:
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            found = f"{type(sample).__name__} of {len(sample)}" if hasattr(sample, "__len__") else f"{sample!r}"
            raise ValueError(
                f"Expected each sample of the data set to be a pair (x, y), but got a {found}. Return pairs, or write "
                "a `collate_fn` of your own."
            )
    inputs, targets = ([torch.as_tensor(value) for value in column] for column in zip(*samples, strict=True))
    if inputs[0].ndim == 0:
        raise ValueError("Expected the input of each sample to be of shape (T, ...), time first, but got a number")
    for name, values in (("inputs", inputs), ("targets", targets)):
        shapes = sorted({tuple(value.shape) for value in values})
        if len(shapes) > 1:
            raise ValueError(
                f"Expected the {name} of a batch to have the same shape, but got {' and '.join(map(str, shapes))}. Cut "
                "recordings of different lengths into clips, or frame each into the same number of time steps."
            )
    default = torch.get_default_dtype()
    labels = torch.stack(targets)
    return torch.stack(inputs, 1).to(default), labels.to(default if labels.is_floating_point() else torch.int64)
