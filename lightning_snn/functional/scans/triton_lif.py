"""The LIF scan and its backward pass as Triton kernels: one launch each, whatever the number of steps.

A program keeps the membrane potentials of a block of neurons in registers and loops over time. The kernels compute in
float32, in the order of operations of `functional.scans.loop`, without fused multiply-adds: spikes and states are equal
to those of the loop. Gradients of decay and threshold accumulate in registers and leave as one value per neuron, so
they are deterministic.

A step is one dense block of memory, in the order of the input: a channels-last input needs no copy. An input of another
kind is copied.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.scans.buffers import empty_state

# neurons of a program
BLOCK = 256
# a fused multiply-add rounds once, the loop twice: spikes would differ
OPTIONS = {"enable_fp_fusion": False}


@triton.jit
def _neurons(block: tl.tensor, BLOCK: tl.constexpr, WIDE: tl.constexpr) -> tl.tensor:
    """Return the indices of a program's neurons; 64 bits are needed from 2^31 neurons on."""
    if WIDE:
        block = block.to(tl.int64)
    return block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _parameter(
    table: tl.tensor, number: tl.tensor, stride: tl.tensor, count: tl.tensor, index: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """Return a decay or a threshold: a number, or the entries of a table for the channels of the neurons."""
    if table is None:
        value = number
    else:
        value = tl.load(table + (index // stride) % count, mask=inside, other=0).to(tl.float32)
    return value


@triton.jit
def _row(pointer: tl.tensor, index: tl.tensor, inside: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Return the values of the neurons in float32; None is 0."""
    if pointer is None:
        values = tl.zeros([BLOCK], tl.float32)
    else:
        values = tl.load(pointer + index, mask=inside, other=0).to(tl.float32)
    return values


@triton.jit
def _bump(distance: tl.tensor, width: tl.tensor, SURROGATE: tl.constexpr) -> tl.tensor:
    """Return the surrogate derivative; see `functional.surrogate`."""
    z = distance / width
    if SURROGATE == "arctangent":
        slope = 1.0 / (z * z + 1.0)
    elif SURROGATE == "fast_sigmoid":
        root = tl.abs(z) + 1.0
        slope = 1.0 / (root * root)
    elif SURROGATE == "sigmoid":
        tail = tl.exp(-tl.abs(z))
        p = tail / (tail + 1.0)
        slope = 4.0 * (p - p * p)
    else:
        tl.static_assert(SURROGATE == "triangular")
        height = 1.0 - tl.abs(z)
        slope = tl.where(height < 0, 0.0, height)  # NaN stays NaN
    return slope


@triton.jit(do_not_specialize=["steps"])
def lif_forward(
    x: tl.tensor,
    beta: tl.tensor,
    threshold: tl.tensor,
    state: tl.tensor,
    before: tl.tensor,
    spikes: tl.tensor,
    membranes: tl.tensor,
    final: tl.tensor,
    beta_number: tl.tensor,
    threshold_number: tl.tensor,
    steps: tl.tensor,
    neurons: tl.tensor,
    x_step: tl.tensor,
    beta_stride: tl.tensor,
    beta_count: tl.tensor,
    threshold_stride: tl.tensor,
    threshold_count: tl.tensor,
    PENDING: tl.constexpr,
    ZERO: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Run the recurrence; `membranes` is None if they are not kept."""
    index = _neurons(tl.program_id(0), BLOCK, WIDE)
    inside = index < neurons
    decay = _parameter(beta, beta_number, beta_stride, beta_count, index, inside)
    level = _parameter(threshold, threshold_number, threshold_stride, threshold_count, index, inside)
    carried = _row(state, index, inside, BLOCK)
    fired = _row(before, index, inside, BLOCK)
    if threshold is not None:
        carried = tl.where(level != level, level, carried)
    at_x = x + index
    at_spikes = spikes + index
    if membranes is not None:
        at_membranes = membranes + index
    for _ in range(steps):
        membrane = carried * decay
        membrane = membrane + tl.load(at_x, mask=inside, other=0).to(tl.float32)
        if PENDING:
            membrane = membrane - level * fired
        fired = tl.where(membrane > level, 1.0, 0.0)
        if PENDING:
            carried = membrane
        elif ZERO:
            carried = membrane - membrane * fired
        else:
            carried = membrane - level * fired
        marked = tl.where(membrane != membrane, membrane, fired)  # the spike of NaN is NaN
        tl.store(at_spikes, marked.to(spikes.dtype.element_ty), mask=inside)
        if membranes is not None:
            tl.store(at_membranes, membrane, mask=inside)
            at_membranes += neurons
        at_x += x_step
        at_spikes += neurons
    tl.store(final + index, carried, mask=inside)


@triton.jit(do_not_specialize=["steps"])
def lif_backward(
    membranes: tl.tensor,
    beta: tl.tensor,
    threshold: tl.tensor,
    state: tl.tensor,
    before: tl.tensor,
    grad_spikes: tl.tensor,
    grad_state: tl.tensor,
    grad_x: tl.tensor,
    grad_first: tl.tensor,
    grad_beta: tl.tensor,
    grad_threshold: tl.tensor,
    beta_number: tl.tensor,
    threshold_number: tl.tensor,
    width: tl.tensor,
    steps: tl.tensor,
    neurons: tl.tensor,
    grad_step: tl.tensor,
    beta_stride: tl.tensor,
    beta_count: tl.tensor,
    threshold_stride: tl.tensor,
    threshold_count: tl.tensor,
    SURROGATE: tl.constexpr,
    PENDING: tl.constexpr,
    ZERO: tl.constexpr,
    DETACHED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Run the backward pass from the last step to the first; a gradient that is None is not written, or is 0."""
    index = _neurons(tl.program_id(0), BLOCK, WIDE)
    inside = index < neurons
    decay = _parameter(beta, beta_number, beta_stride, beta_count, index, inside)
    level = _parameter(threshold, threshold_number, threshold_stride, threshold_count, index, inside)
    of_state = _row(grad_state, index, inside, BLOCK)
    after = tl.zeros([BLOCK], tl.float32)  # dL/dv of the next step
    of_beta = tl.zeros([BLOCK], tl.float32)
    of_threshold = tl.zeros([BLOCK], tl.float32)
    end = (steps - 1).to(tl.int64)
    at_membranes = membranes + index + end * neurons
    at_x = grad_x + index + end * neurons
    if grad_spikes is not None:
        at_spikes = grad_spikes + index + end * grad_step
    for behind in range(steps):
        is_last = behind == 0
        membrane = tl.load(at_membranes, mask=inside, other=0)
        slope = _bump(membrane - level, width, SURROGATE)
        fired = tl.where(membrane > level, 1.0, 0.0)
        if PENDING:
            carried = membrane
            amount = level
        elif ZERO:
            carried = membrane - membrane * fired
            amount = membrane
        else:
            carried = membrane - level * fired
            amount = level
        by_spike = tl.zeros([BLOCK], tl.float32)
        if grad_spikes is not None:
            by_spike = slope * tl.load(at_spikes, mask=inside, other=0).to(tl.float32)
            at_spikes -= grad_step
        # derivative of the state after the reset with respect to the membrane potential, before any leak
        keep = tl.full([BLOCK], 1.0, tl.float32)
        if ZERO:
            keep = 1.0 - (fired if DETACHED else fired + membrane * slope)
        elif not DETACHED and not PENDING:
            keep = 1.0 - level * slope
        # the state leaks, and a pending reset acts after the leak
        leaking = keep * decay
        if PENDING and not DETACHED:
            leaking = decay - level * slope
        gradient = by_spike + tl.where(is_last, keep * of_state, leaking * after)
        if grad_beta is not None:
            of_beta += tl.where(is_last, 0.0, after * carried)
        if grad_threshold is not None:
            if PENDING:
                onward = tl.where(is_last, 0.0, after)
            else:
                onward = tl.where(is_last, of_state, after * decay)
            of_threshold -= by_spike
            if not DETACHED:
                of_threshold += amount * slope * onward
            if not ZERO:
                of_threshold -= onward * fired
        tl.store(at_x, gradient.to(grad_x.dtype.element_ty), mask=inside)
        at_membranes -= neurons
        at_x -= neurons
        after = gradient
    if grad_first is not None:
        tl.store(grad_first + index, after, mask=inside)
    if grad_beta is not None:
        if state is not None:
            of_beta += after * _row(state, index, inside, BLOCK)
        tl.store(grad_beta + index, of_beta, mask=inside)
    if grad_threshold is not None:
        if before is not None:
            of_threshold -= after * _row(before, index, inside, BLOCK)
        tl.store(grad_threshold + index, of_threshold, mask=inside)


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
