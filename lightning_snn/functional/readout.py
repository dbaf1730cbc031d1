"""Readouts: reduce the outputs of T steps to one output per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from lightning_snn.checks import check_choice

ReadoutName = Literal["mean", "max", "last", "sum"]

READOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda outputs: outputs.mean(0),
    "max": lambda outputs: outputs.amax(0),
    "last": lambda outputs: outputs[-1],
    "sum": lambda outputs: outputs.sum(0),
}


def readout(outputs: Tensor, kind: ReadoutName = "mean") -> Tensor:
    """Reduce outputs `[T, B, ...]` over time to `[B, ...]`.

    Args:
        outputs: outputs of all time steps, as `run` returns them.
        kind: "mean" (firing rates), "max" (largest membrane potential), "last" (output of the last step) or "sum"
            (spike counts).

    Returns:
        one output per sample, `[B, ...]`.

    Raises:
        ValueError: if `kind` is not one of these names.

    Example:
        >>> import torch
        >>> readout(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), "sum")
        tensor([1., 2.])
    """
    check_choice("readout", kind, READOUTS)
    return READOUTS[kind](outputs)
