"""Launches of the Triton kernels of the LIF scan: one each forward and backward, whatever the number of steps.

A step is one dense block of memory, in the order of the input: a channels-last input needs no copy. An input of another
kind is copied.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.scans.buffers import empty_state
from lightning_snn.functional.scans.triton_kernels import lif_backward, lif_forward

# neurons of a program
BLOCK = 256
# a fused multiply-add rounds once, the loop twice: spikes would differ
OPTIONS = {"enable_fp_fusion": False}


class _Table(NamedTuple):
    """A decay or a threshold as the kernels take it: neuron n has entry ``(n // stride) % channels`` of `values`."""

    values: Tensor | None
    number: float
    stride: int
    channels: int


def forward_kernel(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    state: Tensor | None,
    before: Tensor | None,
    dynamics: Dynamics,
    keeps_membranes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return spikes, final state and membrane potentials, as the operator declares them.

    Args:
        x: input current, `[T, B, ...]`, in float32, bfloat16 or float16.
        beta: decay of the membrane, a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        state: membrane potential before the first step, `[B, ...]`; None is 0.
        before: spikes before the first step, `[B, ...]`; None is 0.
        dynamics: reset and order.
        keeps_membranes: whether to return the membrane potentials, for a backward pass.
    """
    spikes, final = torch.empty_like(x), empty_state(x)
    membranes = torch.empty_like(x, dtype=final.dtype) if keeps_membranes else final.new_empty(0)
    if x.numel() == 0:
        return spikes, final, membranes
    fired = spikes if _is_time_major(spikes) else torch.empty_like(spikes, memory_format=torch.contiguous_format)
    row = fired[0]
    if fired is spikes:
        potentials = membranes if keeps_membranes else None
    else:
        potentials = torch.empty_like(fired, dtype=final.dtype) if keeps_membranes else None
    last = final if _same_strides(final, row) else torch.empty_like(row, dtype=final.dtype)
    current = _in_order_of(row, x)
    decay, level = _table(beta, row), _table(threshold, row)
    neurons = row.numel()
    with _on_device_of(x):
        lif_forward[(triton.cdiv(neurons, BLOCK),)](
            current,
            decay.values,
            level.values,
            None if state is None else _in_order_of(row, state),
            before if before is None or not dynamics.pending_reset else _in_order_of(row, before),
            fired,
            potentials,
            last,
            decay.number,
            level.number,
            len(x),
            neurons,
            current.stride(0),
            decay.stride,
            decay.channels,
            level.stride,
            level.channels,
            PENDING=dynamics.pending_reset,
            ZERO=dynamics.reset == "zero",
            WIDE=neurons > 2**31 - BLOCK,
            BLOCK=BLOCK,
            **OPTIONS,
        )
    if fired is not spikes:
        spikes.copy_(fired)
        if potentials is not None:
            membranes.copy_(potentials)
    if last is not final:
        final.copy_(last)
    return spikes, final, membranes


def backward_kernel(
    membranes: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    state: Tensor | None,
    before: Tensor | None,
    grad_spikes: Tensor | None,
    grad_state: Tensor | None,
    dynamics: Dynamics,
    surrogate: str,
    width: float,
    dtype: torch.dtype,
    wants_first: bool,
    wants_beta: bool,
    wants_threshold: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of input, first membrane potential, decay and threshold, as the operator declares them.

    Args:
        membranes: membrane potentials before reset, `[T, B, ...]`, float32.
        beta: decay of the membrane, a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        state: membrane potential before the first step; None is 0.
        before: spikes before the first step; None is 0.
        grad_spikes: gradient of the spikes, `[T, B, ...]`; None is 0.
        grad_state: gradient of the final membrane potential, `[B, ...]`; None is 0.
        dynamics: reset, order, and whether the reset is detached.
        surrogate: name of the surrogate derivative.
        width: width of the surrogate derivative.
        dtype: dtype of the gradient of the input.
        wants_first: whether to return the gradient of the first membrane potential.
        wants_beta: whether to return the gradient of the decay of every neuron.
        wants_threshold: whether to return the gradient of the threshold of every neuron.
    """
    grad_x = torch.empty_like(membranes, dtype=dtype)
    rows = [
        torch.empty_like(membranes[0]) if wanted else membranes.new_empty(0)
        for wanted in (wants_first, wants_beta, wants_threshold)
    ]
    if membranes.numel() == 0:
        for values in rows:
            values.zero_()
        return grad_x, *rows  # type: ignore[return-value]
    potentials = membranes if _is_time_major(membranes) else membranes.contiguous()
    row = potentials[0]
    found = grad_x if potentials is membranes else torch.empty_like(potentials, dtype=dtype)
    written = [
        None if not len(values) else values if potentials is membranes else torch.empty_like(row) for values in rows
    ]
    cotangent = None if grad_spikes is None else _in_order_of(row, grad_spikes)
    decay, level = _table(beta, row), _table(threshold, row)
    neurons = row.numel()
    with _on_device_of(membranes):
        lif_backward[(triton.cdiv(neurons, BLOCK),)](
            potentials,
            decay.values,
            level.values,
            None if state is None else _in_order_of(row, state),
            before if before is None or not dynamics.pending_reset else _in_order_of(row, before),
            cotangent,
            None if grad_state is None else _in_order_of(row, grad_state),
            found,
            *written,
            decay.number,
            level.number,
            width,
            len(membranes),
            neurons,
            0 if cotangent is None else cotangent.stride(0),
            decay.stride,
            decay.channels,
            level.stride,
            level.channels,
            SURROGATE=surrogate,
            PENDING=dynamics.pending_reset,
            ZERO=dynamics.reset == "zero",
            DETACHED=dynamics.detach_reset,
            WIDE=neurons > 2**31 - BLOCK,
            BLOCK=BLOCK,
            **OPTIONS,
        )
    if potentials is not membranes:
        grad_x.copy_(found)
        for values, buffer in zip(rows, written, strict=True):
            if buffer is not None:
                values.copy_(buffer)
    return grad_x, *rows  # type: ignore[return-value]


def _is_time_major(x: Tensor) -> bool:
    """Return whether a dense tensor `[T, B, ...]` holds one step after the other."""
    return len(x) == 1 or x.stride(0) == x[0].numel()


def _same_strides(one: Tensor, other: Tensor) -> bool:
    return all(size == 1 or a == b for size, a, b in zip(one.shape, one.stride(), other.stride(), strict=True))


def _in_order_of(row: Tensor, value: Tensor) -> Tensor:
    """Return a step, or a sequence of steps, each of which lies in memory as the dense step `row`."""
    sequence = value.dim() > row.dim()
    if _same_strides(value[0] if sequence else value, row):
        return value
    shape, strides = value.shape, row.stride()
    if sequence:
        strides = (row.numel(), *strides)
    return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device).copy_(value)


def _table(value: float | Tensor, row: Tensor) -> _Table:
    """Return a parameter for neurons that lie in memory as those of the step `row`, which is dense."""
    if not isinstance(value, Tensor):
        return _Table(None, value, 1, 1)
    if value.numel() == 1:
        return _Table(value.reshape(1), 0.0, 1, 1)
    shape = (1,) * (row.dim() - value.dim()) + tuple(value.shape)
    varying = [axis for axis, size in enumerate(shape) if size > 1]
    if len(shape) == row.dim() and len(varying) == 1 and shape[varying[0]] == row.shape[varying[0]]:
        return _Table(value.reshape(-1).contiguous(), 0.0, row.stride(varying[0]), shape[varying[0]])
    return _Table(torch.empty_like(row, dtype=value.dtype).copy_(value), 0.0, 1, row.numel())


def _on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which kernels are launched on the device of a tensor."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
