"""Data set of arrays: recordings over time and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_snn.data.mapped import MappedArray, mapped_array


class FrameDataset(Dataset[tuple[Tensor, Tensor]]):
    """Recordings over time and their labels, read by one indexed access per batch.

    Args:
        frames: shape ``(N, T, ...)``, at least one axis after T; event counts ``(N, T, C, H, W)``, for one. A NumPy
            array, a memory-mapped one or a tensor of any type of real numbers.
        labels: class of each recording, shape ``(N,)``, integers from 0; or targets, floats of shape ``(N, ...)``.

    Items are ``(frames (T, ...), label)``: frames stay uint8 (bools become uint8), those of other types are float32;
    labels are int64, targets float32.

    A copy or a worker process of a memory-mapped array maps the file again, read-only.

    Raises:
        ValueError: if the frames have too few axes or hold no real numbers, there is not one label per recording, or
            labels are negative or targets not finite.

    Example:
        >>> dataset = FrameDataset(np.zeros((3, 5, 2, 8, 8), np.uint8), [0, 1, 0])
        >>> frames, label = dataset[1]
        >>> frames.shape, label
        (torch.Size([5, 2, 8, 8]), tensor(1))
    """

    def __init__(self, frames: np.ndarray | Tensor, labels: np.ndarray | Tensor | Sequence[Any]) -> None:
        real = not frames.is_complex() if isinstance(frames, Tensor) else frames.dtype.kind in "biuf"
        if frames.ndim < 3 or not real:
            raise ValueError(
                "Expected argument `frames` to hold real numbers of shape (N, T, ...) with at least one axis after T, "
                f"but got {frames.dtype} of shape {tuple(frames.shape)}"
            )
        self.frames = frames
        self.labels = _checked_labels(labels, len(frames))

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "frames": mapped_array(self.frames) or self.frames}

    def __setstate__(self, state: dict[str, Any]) -> None:
        frames = state["frames"]
        self.__dict__.update(state, frames=frames.open() if isinstance(frames, MappedArray) else frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the frames ``(T, ...)`` and the label of one recording."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the samples of a whole batch, which are views of one indexed read of the frames."""
        selected = self.frames[list(indices)]
        compact = selected.dtype in (np.uint8, np.bool_, torch.uint8, torch.bool)
        if isinstance(selected, Tensor):
            selected = selected.to(torch.uint8 if compact else torch.float32)
        else:
            # in NumPy, because torch cannot stack the wider unsigned integers
            selected = torch.from_numpy(selected.astype(np.uint8 if compact else np.float32, copy=False))
        return list(zip(selected, self.labels[list(indices)], strict=True))


def _checked_labels(labels: np.ndarray | Tensor | Sequence[Any], count: int) -> Tensor:
    array = np.asarray(labels)
    integers = array.dtype.kind in "biu" or array.size == 0
    if array.ndim == 0 or len(array) != count or (integers and array.ndim != 1):
        message = (
            f"Expected argument `labels` to be of shape ({count},), one label per recording, but got {array.shape}"
        )
        if array.ndim == 2 and len(array) == count:
            message += ". Of one-hot labels pass the index of the class, the argmax over axis 1."
        raise ValueError(message)
    if integers:
        if array.size and array.min() < 0:
            raise ValueError(
                f"Expected argument `labels` to hold classes from 0, but got {array.min()}. Leave unlabeled "
                "samples out, or count the classes again"
            )
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ValueError(
            f"Expected argument `labels` to hold integers or finite floats, but got {array.dtype}"
            + (
                " with NaN or infinity. Leave these samples out"
                if array.dtype.kind == "f"
                else ". Names become classes by `names, labels = np.unique(labels, return_inverse=True)`"
            )
        )
    return torch.from_numpy(array.astype(np.float32))
