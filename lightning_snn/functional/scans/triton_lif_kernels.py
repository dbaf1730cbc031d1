"""Triton kernels of the LIF scan and its backward pass.

A program keeps the membrane potentials of a block of neurons in registers and loops over time. Gradients of decay and
threshold accumulate in registers and leave as one value per neuron, so they are deterministic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_snn.functional.scans.triton_parts import (
    after_spikes,
    at_threshold,
    bump,
    charged,
    marked,
    neurons_of,
    parameter,
    row,
)


@triton.jit
def _scan(
    at_x: tl.tensor,
    at_spikes: tl.tensor,
    at_membranes: tl.tensor,
    x_step: tl.tensor,
    spikes_step: tl.tensor,
    membranes_step: tl.tensor,
    steps: tl.tensor,
    carried: tl.tensor,
    fired: tl.tensor,
    decay: tl.tensor,
    level: tl.tensor,
    inside: tl.tensor,
    PENDING: tl.constexpr,
    ZERO: tl.constexpr,
) -> tl.tensor:
    """Run the recurrence and return its final state; spikes and membrane potentials are written unless None."""
    for _ in range(steps):
        current = tl.load(at_x, mask=inside, other=0).to(tl.float32)
        membrane = charged(carried, decay, current, level, fired, PENDING)
        fired = tl.where(membrane > level, 1.0, 0.0)
        carried = after_spikes(membrane, fired, level, PENDING, ZERO)
        if at_spikes is not None:
            tl.store(at_spikes, marked(fired, membrane).to(at_spikes.dtype.element_ty), mask=inside)
            at_spikes += spikes_step
        if at_membranes is not None:
            tl.store(at_membranes, membrane, mask=inside)
            at_membranes += membranes_step
        at_x += x_step
    return carried


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
    index = neurons_of(tl.program_id(0), BLOCK, WIDE)
    inside = index < neurons
    decay = parameter(beta, beta_number, beta_stride, beta_count, index, inside)
    level = parameter(threshold, threshold_number, threshold_stride, threshold_count, index, inside)
    carried = row(state, index, inside, BLOCK)
    fired = row(before, index, inside, BLOCK)
    if threshold is not None:
        carried = at_threshold(carried, level)
    if membranes is not None:
        at_membranes = membranes + index
    else:
        at_membranes = None
    carried = _scan(
        x + index,
        spikes + index,
        at_membranes,
        x_step,
        neurons,
        neurons,
        steps,
        carried,
        fired,
        decay,
        level,
        inside,
        PENDING,
        ZERO,
    )
    tl.store(final + index, carried, mask=inside)


@triton.jit(do_not_specialize=["steps"])
def lif_backward(
    saved: tl.tensor,
    scratch: tl.tensor,
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
    saved_step: tl.tensor,
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
    """Run the backward pass from the last step to the first; a gradient that is None is not written, or is 0.

    `saved` holds the membrane potentials. With `scratch` it holds the input, from which each program computes the
    membrane potentials again, one block of neurons after the other, into its part `[T, BLOCK]` of `scratch`.
    """
    program = tl.program_id(0)
    end = (steps - 1).to(tl.int64)
    for block in range(program, tl.cdiv(neurons, BLOCK), tl.num_programs(0)):
        index = neurons_of(block, BLOCK, WIDE)
        inside = index < neurons
        decay = parameter(beta, beta_number, beta_stride, beta_count, index, inside)
        level = parameter(threshold, threshold_number, threshold_stride, threshold_count, index, inside)
        if scratch is not None:
            carried = row(state, index, inside, BLOCK)
            if threshold is not None:
                carried = at_threshold(carried, level)
            fired = row(before, index, inside, BLOCK)
            potentials = scratch + (program.to(tl.int64) * steps * BLOCK + tl.arange(0, BLOCK))
            step_back = BLOCK
            tl.debug_barrier()  # the block before has been read
            _scan(
                saved + index,
                None,
                potentials,
                saved_step,
                0,
                BLOCK,
                steps,
                carried,
                fired,
                decay,
                level,
                inside,
                PENDING,
                ZERO,
            )
            tl.debug_barrier()
        else:
            potentials = saved + index
            step_back = saved_step
        at_membranes = potentials + end * step_back
        of_state = row(grad_state, index, inside, BLOCK)
        after = tl.zeros([BLOCK], tl.float32)  # dL/dv of the next step
        of_beta = tl.zeros([BLOCK], tl.float32)
        of_threshold = tl.zeros([BLOCK], tl.float32)
        at_x = grad_x + index + end * neurons
        if grad_spikes is not None:
            at_spikes = grad_spikes + index + end * grad_step
        for behind in range(steps):
            is_last = behind == 0
            membrane = tl.load(at_membranes, mask=inside, other=0)
            slope = bump(membrane - level, width, SURROGATE)
            fired = tl.where(membrane > level, 1.0, 0.0)
            carried = after_spikes(membrane, fired, level, PENDING, ZERO)
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
                    of_threshold += (membrane if ZERO else level) * slope * onward
                if not ZERO:
                    of_threshold -= onward * fired
            tl.store(at_x, gradient.to(grad_x.dtype.element_ty), mask=inside)
            at_membranes -= step_back
            at_x -= neurons
            after = gradient
        if grad_first is not None:
            tl.store(grad_first + index, after, mask=inside)
        if grad_beta is not None:
            if state is not None:
                of_beta += after * row(state, index, inside, BLOCK)
            tl.store(grad_beta + index, of_beta, mask=inside)
        if grad_threshold is not None:
            if before is not None:
                of_threshold -= after * row(before, index, inside, BLOCK)
            tl.store(grad_threshold + index, of_threshold, mask=inside)
