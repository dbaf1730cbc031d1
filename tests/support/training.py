"""A Trainer for tests, and collation of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor


def trainer(*callbacks: pl.Callback, trainer: Callable[..., Any] = pl.Trainer, **options: Any) -> Any:
    """Return a Trainer that trains one epoch on the CPU, prints nothing and writes nothing.

    Args:
        *callbacks: its callbacks.
        trainer: class of the Trainer.
        **options: arguments of the Trainer that replace these defaults or are added to them.
    """
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return trainer(callbacks=list(callbacks), **(defaults | options))


def time_first(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Collate samples `(x [T, ...], y)` to a batch `(x [T, B, ...], y [B])`."""
    inputs, labels = zip(*samples, strict=True)
    return torch.stack(inputs, 1), torch.stack(labels)


def one_step(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Collate samples `(x, y)` to a batch of one time step, `(x [1, B, ...], y [B])`."""
    inputs, labels = zip(*samples, strict=True)
    return torch.stack(inputs)[None], torch.stack(labels)
