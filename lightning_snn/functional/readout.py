"""Readouts: reduce the outputs of T steps to one output per sample."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
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
        lengths: number of valid steps of each sample, integers `[B]` from 1; steps at or after it count for nothing,
            and larger ones than T are T. None is T for all.

    Returns:
        one output per sample, `[B, ...]`.

    Raises:
        ValueError: if `kind` is not one of these names.

    Example:
        >>> import torch
        >>> readout(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), "sum")
        tensor([1., 2.])
        >>> readout(torch.tensor([[0.0, 1.0], [1.0, 3.0]]), "last", torch.tensor([1, 2]))
        tensor([0., 3.])
    """
    check_choice("readout", kind, READOUTS)
    if lengths is None:
        return READOUTS[kind](outputs)
    steps, lengths = _over_axes(outputs, lengths)
    valid = steps < lengths
    if kind == "max":
        return torch.where(valid, outputs, -torch.inf).amax(0)
    if kind == "last":  # a sum with zeros is exact, and its gradient deterministic on every device
        return torch.where(steps == lengths - 1, outputs, 0).sum(0)
    total = torch.where(valid, outputs, 0).sum(0)
    return total / lengths[0] if kind == "mean" else total


def readout_of_prefixes(outputs: Tensor, kind: ReadoutName = "mean", lengths: Tensor | None = None) -> Tensor:
    """Compute the readout after each time step: row t is that of ``outputs[: t + 1]``.

    Args:
        outputs: outputs of all time steps, `[T, B, ...]`.
        kind: as in `readout`.
        lengths: as in `readout`; from the length of a sample on, rows are equal.

    Returns:
        A tensor `[T, B, ...]`.

    Example:
        >>> import torch
        >>> readout_of_prefixes(torch.tensor([[2.0], [4.0]]))
        tensor([[2.],
                [3.]])
    """
    check_choice("readout", kind, READOUTS)
    if lengths is None:
        counts = torch.arange(1, len(outputs) + 1, dtype=outputs.dtype, device=outputs.device)
        counts = counts.view(-1, *(1,) * (outputs.dim() - 1))
    else:
        steps, lengths = _over_axes(outputs, lengths)
        outputs = torch.where(steps < lengths, outputs, -torch.inf if kind == "max" else 0)
        counts = (steps + 1).minimum(lengths)
    if kind == "max":
        return _running(outputs, torch.maximum)
    if kind == "last":
        if lengths is None:
            return outputs
        return outputs.gather(0, (counts - 1).expand_as(outputs))
    total = _running(outputs, torch.add)
    return total / counts if kind == "mean" else total


def apply_to_valid(function: Callable[[Tensor], Tensor], outputs: Tensor, lengths: Tensor) -> Tensor:
    """Apply a readout of one's own to the valid steps of each sample, samples of equal length together.

    Args:
        function: from outputs `[T, B, ...]` to `[B, ...]`.
        outputs: outputs of all time steps, `[T, B, ...]`.
        lengths: number of valid steps of each sample, integers `[B]` from 1, read on the host; larger ones than T are
            T.

    Example:
        >>> import torch
        >>> apply_to_valid(lambda outputs: outputs[-1], torch.tensor([[0.0, 1.0], [1.0, 3.0]]), torch.tensor([1, 2]))
        tensor([0., 3.])
    """
    lengths = lengths.clamp(max=len(outputs))
    found = lengths.unique().tolist()
    samples = [(lengths == length).nonzero().squeeze(1) for length in found]
    read = [function(outputs[:length, rows]) for length, rows in zip(found, samples, strict=True)]
    return torch.cat(read)[torch.cat(samples).argsort()]


def _over_axes(outputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of each step `[T, 1, ...]` and the lengths `[1, B, ...]`, with the axes of the outputs."""
    axes = (1,) * (outputs.dim() - 2)
    steps = torch.arange(len(outputs), device=outputs.device)
    return steps.view(-1, 1, *axes), lengths.clamp(max=len(outputs)).view(1, -1, *axes)


def _running(outputs: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    # torch.cumsum raises an error on GPUs with deterministic algorithms
    return torch.stack(list(accumulate(outputs, combine)))
