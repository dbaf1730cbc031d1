"""The LIF recurrence and its backward pass as loops over time, in place on buffers: on any device, for any surrogate.

Memory traffic limits their speed on CPUs, so they work on blocks of steps that fit into the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics, reset_membrane
from lightning_snn.functional.plain_lif import differentiable_backward
from lightning_snn.functional.scans.buffers import FEW_STEPS, minus_scaled, reset, spread_over, steps_per_block
from lightning_snn.functional.spike import spike
from lightning_snn.functional.surrogate import propagate_nan


class LIFScan(NamedTuple):
    """Result of a scan.

    Attributes:
        spikes: in {0, 1} or NaN, `[T, B, ...]`, of the dtype of the input.
        final: membrane potential after the last step, `[B, ...]`: before its reset if the reset is pending.
        membranes: membrane potentials before reset, `[T, B, ...]`; an empty tensor if they are not kept.
    """

    spikes: Tensor
    final: Tensor
    membranes: Tensor


class LIFGradients(NamedTuple):
    """Result of the backward pass of a scan, in float32 or wider.

    Attributes:
        membranes: gradients of the membrane potentials, which are those of the input, `[T, B, ...]`.
        beta: gradient of the decay of every neuron, `[B, ...]`; None if it is not requested.
        threshold: gradient of the threshold of every neuron, `[B, ...]`; None if it is not requested.
    """

    membranes: Tensor
    beta: Tensor | None
    threshold: Tensor | None


def forward_loop(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    state: Tensor | None,
    before: Tensor | None,
    recurrent: Tensor | None,
    dynamics: Dynamics,
    keeps_membranes: bool,
) -> LIFScan:
    """Run the recurrence of `functional.lif`.

    Args:
        x: input current, `[T, B, ...]`.
        beta: decay of the membrane, a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        state: membrane potential before the first step, `[B, ...]`; None is 0.
        before: spikes before the first step, `[B, ...]`; None is 0.
        recurrent: weights `[N, N]` from spikes to the current of the next step.
        dynamics: reset, order and surrogate.
        keeps_membranes: whether to return the membrane potentials, for a backward pass.
    """
    arguments = (x, beta, threshold, state, before, recurrent, dynamics, keeps_membranes)
    looks = can_look_at(x)
    spikes, membranes, final = _scan(*arguments, restores_nan=not looks)
    if looks and final.sum().isnan():
        spikes, membranes, final = _scan(*arguments, restores_nan=True)
    if not keeps_membranes:
        return LIFScan(spikes, final, final.new_empty(0))
    return LIFScan(spikes, final.clone() if dynamics.pending_reset else final, membranes)


def can_look_at(x: Tensor) -> bool:
    """Return whether a look at the values of a tensor is cheap: on a GPU it would wait for all work before it.

    The state of a neuron keeps NaN. So a scan on a CPU looks at its final state, and runs again in the rare case that
    it has to restore NaN in the spikes, instead of a pass over the spikes of all steps.
    """
    return x.device.type == "cpu" and type(x.data) is Tensor


def _scan(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    state: Tensor | None,
    before: Tensor | None,
    recurrent: Tensor | None,
    dynamics: Dynamics,
    keeps_membranes: bool,
    restores_nan: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return spikes, membrane potentials and final state; without `restores_nan` a spike of NaN is 0."""
    surrogate = dynamics.surrogate
    accumulator = torch.promote_types(x.dtype, torch.float32)
    if not restores_nan:
        block = len(x) if keeps_membranes else 1
    elif recurrent is not None:
        block = 1  # neurons that receive spikes need them with their NaN at the next step
    else:
        block = steps_per_block(x, most=None if keeps_membranes else FEW_STEPS)
    # empty_like keeps a channels-last layout
    spikes = torch.empty_like(x)
    membranes = torch.empty_like(x if keeps_membranes else x[:block], dtype=accumulator)
    beta, threshold = spread_over(beta, membranes[0]), spread_over(threshold, membranes[0])
    carried = torch.zeros_like(membranes[0])
    if state is not None:
        carried.copy_(state)
    if isinstance(threshold, Tensor):
        carried.add_(threshold.clamp(0, 0))  # NaN where the threshold is NaN, else 0
    last = None if before is None else before.to(accumulator)  # spikes of the step before
    for t, (current, fired) in enumerate(zip(x.unbind(0), spikes.unbind(0), strict=True)):
        membrane = membranes[t if keeps_membranes else t % block]
        # multiply, then add: a fused multiply-add would round differently from the unrolled recurrence
        torch.mul(carried, beta, out=membrane).add_(current)
        if recurrent is not None and last is not None:
            membrane.addmm_(last.to(accumulator), recurrent.t().to(accumulator))
        if dynamics.pending_reset:
            if last is not None:
                minus_scaled(membrane, last, threshold, out=membrane)
            surrogate.fire(membrane, threshold, out=fired)
            carried = membrane if keeps_membranes else carried.copy_(membrane)
        else:
            surrogate.fire(membrane, threshold, out=fired)
            reset(membrane, fired, threshold, dynamics, out=carried)
        last = fired
        if restores_nan and ((t + 1) % block == 0 or t == len(x) - 1):
            steps = slice(t // block * block, t + 1)
            done = membranes[steps] if keeps_membranes else membranes[: t % block + 1]
            propagate_nan(spikes[steps], done, out=spikes[steps])
    return spikes, membranes, carried


def backward_loop(
    membranes: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    state: Tensor | None,
    before: Tensor | None,
    recurrent: Tensor | None,
    dynamics: Dynamics,
    grad_spikes: Tensor | None,
    grad_state: Tensor | None,
    grad_membranes: Tensor | None,
    wants_beta: bool,
    wants_threshold: bool,
    differentiable: bool = False,
) -> LIFGradients:
    """Run the backward pass of the recurrence.

    Args:
        membranes: membrane potentials before reset, `[T, B, ...]`.
        beta: decay of the membrane, a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        state: membrane potential before the first step; None is 0.
        before: spikes before the first step; None is 0.
        recurrent: weights `[N, N]` from spikes to the current of the next step.
        dynamics: reset, order and surrogate.
        grad_spikes: gradient of the spikes, `[T, B, ...]`; None is 0.
        grad_state: gradient of the final membrane potential, `[B, ...]`; None is 0.
        grad_membranes: gradient that reaches the membrane potentials by themselves, from a second derivative.
        wants_beta: whether to compute the gradient of the decay.
        wants_threshold: whether to compute the gradient of the threshold.
        differentiable: compute by operations that have a gradient, for higher derivatives.
    """
    if grad_spikes is None:
        grad_spikes = membranes.new_zeros(()).expand_as(membranes)
    if grad_state is None:
        grad_state = membranes.new_zeros(()).expand_as(membranes[0])
    beta, threshold = spread_over(beta, membranes[0]), spread_over(threshold, membranes[0])
    scan = differentiable_backward if differentiable else _backward_scan
    found = scan(membranes, beta, threshold, dynamics, recurrent, grad_spikes, grad_state, grad_membranes)
    of_beta, of_threshold = parameter_gradients(
        membranes,
        found,
        grad_state,
        grad_membranes,
        beta,
        threshold,
        state,
        before,
        dynamics,
        wants_beta,
        wants_threshold,
    )
    return LIFGradients(found, of_beta, of_threshold)


def _backward_scan(
    membranes: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    dynamics: Dynamics,
    recurrent: Tensor | None,
    grad_spikes: Tensor,
    grad_state: Tensor,
    grad_saved: Tensor | None,
) -> Tensor:
    """Compute dL/dv_t = h_t dL/ds_t + k_t dL/dv_{t+1}, with the surrogate derivative h, for any reset and order.

    h and k are computed for blocks of steps that fit into the cache. The recursion itself then takes one operation per
    step.
    """
    surrogate, accumulator, steps = dynamics.surrogate, membranes.dtype, membranes.shape[0]
    grad_membranes = torch.empty_like(membranes)
    block = steps_per_block(membranes)
    slopes, keeps = (torch.empty_like(membranes[:block]) for _ in range(2))
    after: Tensor | None = None  # dL/dv of the next step
    for start in range((steps - 1) // block * block, -1, -block):
        part = membranes[start : start + block]
        slope, keep, grads = slopes[: len(part)], keeps[: len(part)], grad_membranes[start : start + block]
        surrogate.derivative_(torch.sub(part, threshold, out=slope))
        _keep(part, slope, beta, threshold, dynamics, out=keep)
        torch.mul(slope, grad_spikes[start : start + block], out=grads)
        if grad_saved is not None:
            grads.add_(grad_saved[start : start + block])
        for t in range(len(part) - 1, -1, -1):
            if after is None:
                # the state is the membrane before its reset, or after it and before any leak
                last = _keep(part[t], slope[t], 1.0, threshold, dynamics, out=keep[t])
                after = grads[t].add_(grad_state) if dynamics.pending_reset else grads[t].addcmul_(last, grad_state)
                continue
            if recurrent is not None:
                grads[t].addcmul_(after @ recurrent.to(accumulator), slope[t])
            after = grads[t].addcmul_(keep[t], after)
    return grad_membranes


def _keep(
    membrane: Tensor, slope: Tensor, beta: float | Tensor, threshold: float | Tensor, dynamics: Dynamics, out: Tensor
) -> Tensor:
    """Compute the factor of dL/dv of the next step in that of this step, through the leak and the reset of this spike.

    It is beta (1 - threshold h) for "subtract", beta (1 - s - v h) for "zero", and beta - threshold h for a reset
    after the leak; h is 0 for a detached reset.
    """
    if dynamics.reset == "zero":
        dynamics.surrogate.fire(membrane, threshold, out=out)
        if not dynamics.detach_reset:
            out.addcmul_(membrane, slope)
        return torch.sub(out.new_ones(()), out, out=out).mul_(beta)
    if dynamics.detach_reset:
        return out.copy_(beta) if isinstance(beta, Tensor) else out.fill_(beta)
    torch.mul(slope, -threshold, out=out)
    return out.add_(beta) if dynamics.pending_reset else out.add_(1).mul_(beta)


def parameter_gradients(
    membranes: Tensor,
    grad_membranes: Tensor,
    grad_state: Tensor,
    grad_saved: Tensor | None,
    beta: float | Tensor,
    threshold: float | Tensor,
    state: Tensor | None,
    before: Tensor | None,
    dynamics: Dynamics,
    wants_beta: bool,
    wants_threshold: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dL/dbeta and dL/dthreshold of every neuron, `[B, ...]`, each None if it is not requested.

    Args:
        membranes: membrane potentials before reset, `[T, B, ...]`.
        grad_membranes: gradients of the membrane potentials, `[T, B, ...]`.
        grad_state: gradient of the final membrane potential, `[B, ...]`.
        grad_saved: gradient that reaches the membrane potentials by themselves, or None.
        beta: decay of the membrane, a number or a tensor of the shape `[]` or `[B, ...]`.
        threshold: firing threshold, a number or a tensor of the shape `[]` or `[B, ...]`.
        state: membrane potential before the first step; None is 0.
        before: spikes before the first step; None is 0.
        dynamics: reset, order and surrogate.
        wants_beta: whether to compute the gradient of the decay.
        wants_threshold: whether to compute the gradient of the threshold.
    """
    if not (wants_beta or wants_threshold):
        return None, None
    spikes = spike(membranes, threshold, dynamics.surrogate)
    spikes = spikes.detach() if dynamics.detach_reset else spikes
    if dynamics.pending_reset:
        carried = membranes
    elif torch.is_grad_enabled():
        carried = reset_membrane(membranes, spikes, threshold, dynamics.reset)
    else:
        carried = reset(membranes, spikes, threshold, dynamics, out=torch.empty_like(membranes))
    grad_beta = grad_threshold = None
    if wants_beta:
        grad_beta = (grad_membranes[1:] * carried[:-1]).sum(0)
        if state is not None:
            grad_beta.addcmul_(grad_membranes[0], state)
    if wants_threshold:
        # dL/d(membrane after its reset), through the leak
        onward = torch.cat([grad_membranes[1:] * beta, grad_state.to(membranes.dtype)[None]])
        through_leak = onward * (1 - spikes) if dynamics.reset == "zero" else onward
        through_spikes = grad_membranes - through_leak
        grad_threshold = -(through_spikes if grad_saved is None else through_spikes - grad_saved).sum(0)
        if dynamics.pending_reset:
            grad_threshold -= (grad_membranes[1:] * spikes[:-1]).sum(0)
            if before is not None:
                grad_threshold -= grad_membranes[0] * before
        elif dynamics.reset == "subtract":
            grad_threshold -= (onward * spikes).sum(0)
    return grad_beta, grad_threshold
