"""Readouts: the outputs of T steps become one output a sample."""

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
        outputs: what `run` returns.
        kind: "mean" (firing rates), "max" (the largest membrane), "last" or "sum" (spike counts).

    Raises:
        ValueError: if `kind` is none of these.
    """
    check_choice("readout", kind, READOUTS)
    return READOUTS[kind](outputs)
