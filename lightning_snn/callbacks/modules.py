"""What callbacks find in a LightningModule that they know nothing of: its network, its loss, its batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_snn.methods.task import Loss


def network_of(pl_module: pl.LightningModule, name: str) -> nn.Module:
    """The module of that name, dots and all, within a LightningModule.

    Raises:
        ValueError: if there is none.
    """
    try:
        return pl_module.get_submodule(name)
    except AttributeError as error:
        children = ", ".join(name for name, _ in pl_module.named_children())
        raise ValueError(
            f"Expected argument `network` to name a module within {type(pl_module).__name__}, which holds {children}, "
            f"but got {name!r}"
        ) from error


def method_of(pl_module: pl.LightningModule) -> Any:
    """The module's method, None if it has none; known by its task, so that callbacks need neither our methods nor our
    module."""
    method = getattr(pl_module, "method", None)
    return method if callable(getattr(getattr(method, "task", None), "read", None)) else None


def task_loss(pl_module: pl.LightningModule) -> Loss | None:
    """The loss of outputs `[T, B, ...]` and targets by the task of the module's method, None if it has none."""
    method = method_of(pl_module)
    return None if method is None else lambda outputs, y: method.task.loss(method.task.read(outputs), y)


def read_batch(batch: Any, read: Callable[[Any], Any] | None, callback: str) -> tuple[Tensor, Tensor]:
    """Inputs `[T, B, ...]` and targets `[B, ...]` of a batch.

    Args:
        batch: what the loader gives.
        read: the user's `read_batch`; None takes batches that are just that.
        callback: on whose behalf, for the message.

    Raises:
        ValueError: if the batch has another form.
    """
    pair = batch if read is None else read(batch)
    is_pair = isinstance(pair, (tuple, list)) and [isinstance(part, Tensor) for part in pair] == [True, True]
    if is_pair and pair[0].dim() >= 2 and pair[1].dim() >= 1 and pair[0].shape[1] == pair[1].shape[0]:
        return pair[0], pair[1]
    got = f"tensors of the shapes {tuple(pair[0].shape)} and {tuple(pair[1].shape)}" if is_pair else type(pair)
    raise ValueError(
        f"Expected a batch (x [T, B, ...], y [B, ...]) for {callback}, or argument `read_batch` to make one of it, but "
        f"got {got}"
    )
