"""Triton kernels of the LIF scan and its backward pass.

A program keeps the membrane potentials of a block of neurons in registers and loops over time. The kernels compute in
float32, in the order of operations of `functional.scans.loop`. Launched without fused multiply-adds, they give the same
spikes and states. Gradients of decay and threshold accumulate in registers and leave as one value per neuron, so they
are deterministic.

The neurons of a step lie one after the other, in an order that is the same in all arguments.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
