"""Launches of the Triton kernels of the LIF scan: one each forward and backward, whatever the number of steps."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.scans.buffers import empty_state, holds_input
from lightning_snn.functional.scans.triton_launch import (
    BLOCK,
    OPTIONS,
    buffer_in_order_of,
    give_back,
    in_order_of,
    is_wide,
    on_device_of,
    table,
    time_major,
)
from lightning_snn.functional.scans.triton_lif_kernels import lif_backward, lif_forward

# programs that compute membrane potentials again at a time: their buffer takes 1 MiB per step
PROGRAMS = 1024


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
    fired = time_major(spikes)
    row = fired[0]
    potentials = time_major(membranes) if keeps_membranes else None
    last = buffer_in_order_of(row, final)
    current = in_order_of(row, x)
    decay, level = table(beta, row), table(threshold, row)
    neurons = row.numel()
    with on_device_of(x):
        lif_forward[(triton.cdiv(neurons, BLOCK),)](
            current,
            decay.values,
            level.values,
            None if state is None else in_order_of(row, state),
            before if before is None or not dynamics.pending_reset else in_order_of(row, before),
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
            WIDE=is_wide(neurons),
            BLOCK=BLOCK,
            **OPTIONS,
        )
    give_back((spikes, final, membranes), (fired, last, potentials))
    return spikes, final, membranes


def backward_kernel(
    saved: Tensor,
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
        saved: membrane potentials before reset, `[T, B, ...]`, in float32; or the input current in bfloat16 or float16,
            from which the kernel computes them again.
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
    grad_x = torch.empty_like(saved, dtype=dtype)
    rows = [
        empty_state(saved) if wanted else saved.new_empty(0, dtype=torch.float32)
        for wanted in (wants_first, wants_beta, wants_threshold)
    ]
    if saved.numel() == 0:
        for values in rows:
            values.zero_()
        return grad_x, *rows  # type: ignore[return-value]
    found = time_major(grad_x)
    row = found[0]
    written = [buffer_in_order_of(row, values) if len(values) else None for values in rows]
    sequence = in_order_of(row, saved)
    cotangent = None if grad_spikes is None else in_order_of(row, grad_spikes)
    decay, level = table(beta, row), table(threshold, row)
    neurons = row.numel()
    programs, scratch = triton.cdiv(neurons, BLOCK), None
    if holds_input(saved):
        programs = min(programs, PROGRAMS)
        scratch = saved.new_empty(programs * len(saved) * BLOCK, dtype=torch.float32)
    with on_device_of(saved):
        lif_backward[(programs,)](
            sequence,
            scratch,
            decay.values,
            level.values,
            None if state is None else in_order_of(row, state),
            before if before is None or not dynamics.pending_reset else in_order_of(row, before),
            cotangent,
            None if grad_state is None else in_order_of(row, grad_state),
            found,
            *written,
            decay.number,
            level.number,
            width,
            len(saved),
            neurons,
            sequence.stride(0),
            0 if cotangent is None else cotangent.stride(0),
            decay.stride,
            decay.channels,
            level.stride,
            level.channels,
            SURROGATE=surrogate,
            PENDING=dynamics.pending_reset,
            ZERO=dynamics.reset == "zero",
            DETACHED=dynamics.detach_reset,
            WIDE=is_wide(neurons),
            BLOCK=BLOCK,
            **OPTIONS,
        )
    give_back([grad_x, *rows], [found, *written])
    return grad_x, *rows  # type: ignore[return-value]
