"""Blocks, options, and arguments in the order of the memory, which all launches of Triton kernels share.

A step is one dense block of memory, in the order of the input: a channels-last input needs no copy. An input of another
kind is copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

# neurons of a program
BLOCK = 256
# a fused multiply-add rounds once, the loop twice: spikes would differ
OPTIONS = {"enable_fp_fusion": False}


class Table(NamedTuple):
    """A decay or a threshold as the kernels take it: neuron n has entry ``(n // stride) % channels`` of `values`."""

    values: Tensor | None
    number: float
    stride: int
    channels: int


def table(value: float | Tensor, row: Tensor) -> Table:
    """Return a parameter for neurons that lie in memory as those of the step `row`, which is dense."""
    if not isinstance(value, Tensor):
        return Table(None, value, 1, 1)
    if value.numel() == 1:
        return Table(value.reshape(1), 0.0, 1, 1)
    shape = (1,) * (row.dim() - value.dim()) + tuple(value.shape)
    varying = [axis for axis, size in enumerate(shape) if size > 1]
    if len(shape) == row.dim() and len(varying) == 1 and shape[varying[0]] == row.shape[varying[0]]:
        return Table(value.reshape(-1).contiguous(), 0.0, row.stride(varying[0]), shape[varying[0]])
    return Table(torch.empty_like(row, dtype=value.dtype).copy_(value), 0.0, 1, row.numel())


def time_major(sequence: Tensor) -> Tensor:
    """Return a dense tensor `[T, B, ...]` itself if it holds one step after the other, else an empty one that does."""
    step = sequence[0]
    if len(sequence) == 1 or sequence.stride(0) == step.numel():
        return sequence
    return sequence.new_empty_strided(sequence.shape, (step.numel(), *torch.empty_like(step).stride()))


def in_order_of(row: Tensor, value: Tensor, follows: bool = False) -> Tensor:
    """Return a step, or a sequence of steps, each of which lies in memory as the dense step `row`.

    With `follows`, each step of the sequence follows the step before.
    """
    sequence = value.dim() > row.dim()
    in_order = not follows or len(value) == 1 or value.stride(0) == row.numel()
    if in_order and same_strides(value[0] if sequence else value, row):
        return value
    shape, strides = value.shape, row.stride()
    if sequence:
        strides = (row.numel(), *strides)
    return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device).copy_(value)


def buffer_in_order_of(row: Tensor, value: Tensor) -> Tensor:
    """Return a step that is to be written if it lies in memory as the dense step `row`, else an empty one that does."""
    return value if same_strides(value, row) else torch.empty_like(row, dtype=value.dtype)


def give_back(values: Iterable[Tensor | None], buffers: Iterable[Tensor | None]) -> None:
    """Copy what was written to buffers of another order in memory."""
    for value, buffer in zip(values, buffers, strict=True):
        if value is not None and buffer is not None and buffer is not value:
            value.copy_(buffer)


def same_strides(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of the same shape lie in memory in the same way."""
    return all(size == 1 or a == b for size, a, b in zip(one.shape, one.stride(), other.stride(), strict=True))


def is_wide(neurons: int) -> bool:
    """Return whether the indices of the neurons need 64 bits."""
    return neurons > 2**31 - BLOCK


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which kernels are launched on the device of a tensor."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
