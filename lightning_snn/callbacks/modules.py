"""Access to the parts of any LightningModule that callbacks need: its network, loss, and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_snn.methods.tasks import Loss
from lightning_snn.nn.lengths import check_lengths


def network_of(pl_module: pl.LightningModule, name: str) -> nn.Module:
    """Return a module within a LightningModule by its name, such as "model.network".

    Raises:
        ValueError: if there is no module of that name.
    """
    try:
        return pl_module.get_submodule(name)
    except AttributeError as error:
        children = ", ".join(name for name, _ in pl_module.named_children())
        raise ValueError(
            f"Expected argument `network` to name a module within {type(pl_module).__name__}, which has {children}, "
            f"but got {name!r}"
        ) from error


def method_of(pl_module: pl.LightningModule) -> Any:
    """Return the `method` of a module, None if it has none.

    A method is recognized by its task, so that callbacks depend on neither `methods` nor `SpikingModule`.
    """
    method = getattr(pl_module, "method", None)
    return method if callable(getattr(getattr(method, "task", None), "read", None)) else None


def task_loss(pl_module: pl.LightningModule, x: Tensor) -> Loss | None:
    """Return the loss of outputs `[T, B, ...]` and targets by the task of the module's method, None if it has none.

    Args:
        pl_module: the module.
        x: inputs `[T, B, ...]` of the batch, which a teacher needs.
    """
    method = method_of(pl_module)
    return None if method is None else lambda outputs, y: method.task.sequence_loss(outputs, method.task.targets(x, y))


def read_batch(batch: Any, read: Callable[[Any], Any] | None, callback: str) -> tuple[Tensor, Tensor]:
    """Return inputs `[T, B, ...]` and targets `[B, ...]`, or `[T, B, ...]` for one per step, of a batch.

    Of sequences of different lengths, ``(x, y, lengths)``, these are the steps that are valid in all samples.

    Args:
        batch: batch of a loader.
        read: `read_batch` of the user; None expects a pair of inputs and targets, or a triple with lengths.
        callback: name of the callback, for the error message.

    Raises:
        ValueError: if the batch has another form.
    """
    pair = batch if read is None else read(batch)
    if isinstance(pair, (tuple, list)) and len(pair) == 3 and all(isinstance(part, Tensor) for part in pair):
        x, y, lengths = pair
        if not lengths.is_floating_point() and x.dim() >= 2:  # another third part is refused below
            shortest = int(check_lengths(lengths, len(x), x).min())
            pair = x[:shortest], y[:shortest] if y.shape[:2] == x.shape[:2] else y
    is_pair = isinstance(pair, (tuple, list)) and [isinstance(part, Tensor) for part in pair] == [True, True]
    if is_pair and pair[0].dim() >= 2 and pair[1].dim() >= 1:
        (x, y), per_step = pair, pair[0].shape[:2] == pair[1].shape[:2]
        if per_step or x.shape[1] == y.shape[0]:
            return x, y
    got = f"tensors of the shapes {tuple(pair[0].shape)} and {tuple(pair[1].shape)}" if is_pair else type(pair).__name__
    raise ValueError(
        f"Expected a batch (x [T, B, ...], y [B, ...]) for {callback}, but got {got}. Pass `read_batch` to convert "
        "batches."
    )


def first_samples(x: Tensor, y: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """Return the first samples of inputs `[T, B, ...]` and targets `[B, ...]`, or `[T, B, ...]` for one per step."""
    return x[:, :count], y[:, :count] if y.shape[:2] == x.shape[:2] else y[:count]
