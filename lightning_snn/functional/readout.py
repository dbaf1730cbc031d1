"""Readouts: reduce the outputs of T steps to one output per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_snn.checks import check_choice

ReadoutName = Literal["mean", "max", "last", "sum"]

READOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda outputs: outputs.mean(0),
    "max": lambda outputs: outputs.amax(0),
    "last": lambda outputs: outputs[-1],
    "sum": lambda outputs: outputs.sum(0),
}


def readout(outputs: Tensor, kind: ReadoutName = "mean", lengths: Tensor | None = None) -> Tensor:
    """Reduce outputs `[T, B, ...]` over time to `[B, ...]`.

    Args:
        outputs: outputs of all time steps, as `run` returns them.
        kind: "mean" (firing rates), "max" (largest membrane potential), "last" (output of the last step) or "sum"
            (spike counts).
        lengths: number of valid steps of each sample, integers `[B]` from 1 to T; the steps after them are padding,
            which does not count. None means that all steps are valid.

    Returns:
        one output per sample, `[B, ...]`.

    Raises:
        ValueError: if `kind` is not one of these names.

    Example:
        >>> import torch
        >>> readout(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), "sum")
        tensor([1., 2.])
        >>> readout(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), "mean", torch.tensor([1, 2]))
        tensor([0., 1.])
    """
    check_choice("readout", kind, READOUTS)
    if lengths is None:
        return READOUTS[kind](outputs)
    trailing = (1,) * (outputs.dim() - 2)
    if kind == "last":
        last = (lengths - 1).view(1, -1, *trailing).expand(1, *outputs.shape[1:])
        return outputs.gather(0, last)[0]
    valid = valid_steps(lengths, len(outputs)).view(*outputs.shape[:2], *trailing)
    if kind == "max":
        return outputs.masked_fill(~valid, float("-inf")).amax(0)
    total = outputs.masked_fill(~valid, 0).sum(0)
    return total if kind == "sum" else total / lengths.view(-1, *trailing)


def valid_steps(lengths: Tensor, steps: int) -> Tensor:
    """Return which steps of padded sequences are valid, `[T, B]`.

    Args:
        lengths: number of valid steps of each sample, integers `[B]`.
        steps: number of steps T.

    Example:
        >>> import torch
        >>> valid_steps(torch.tensor([1, 2]), 2)
        tensor([[ True,  True],
                [False,  True]])
    """
    return torch.arange(steps, device=lengths.device)[:, None] < lengths
