"""The LIF recurrence and its backward pass by plain operations, for exporters, tracers and second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics, LIFState, PendingState, reset_membrane
from lightning_snn.functional.spike import spike


def unrolled_lif(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    dynamics: Dynamics,
    membrane: Tensor | None = None,
    before: Tensor | None = None,
    recurrent: Tensor | None = None,
) -> tuple[Tensor, LIFState]:
    """Run the recurrence of `functional.lif` step by step; operations round in the same order.

    Args:
        x: input current, shape `[T, B, ...]`.
        beta: decay of the membrane, a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        dynamics: reset, order and surrogate.
        membrane: membrane potential before the first step; None is 0.
        before: spikes before the first step; None is 0.
        recurrent: weights `[N, N]` from spikes to the current of the next step.

    Returns:
        spikes of the shape and dtype of `x`, and the final state, as `functional.lif`.

    Example:
        >>> unrolled_lif(torch.tensor([[0.6], [0.6]]), 0.9, 1.0, Dynamics())[0].flatten()
        tensor([0., 1.])
    """
    currents = x.to(torch.promote_types(x.dtype, torch.float32))
    carried = torch.zeros_like(currents[0]) if membrane is None else membrane.to(currents.dtype)
    last = torch.zeros_like(carried) if before is None else before.to(currents.dtype)
    spikes: list[Tensor] = []
    for current in currents.unbind(0):
        potential = beta * carried + current
        if recurrent is not None:
            potential = torch.addmm(potential, last, recurrent.t().to(potential.dtype))
        if dynamics.pending_reset:
            # given spikes were detached when they were returned, unless recurrent weights need their gradient
            detached = dynamics.detach_reset and (len(spikes) > 0 or recurrent is not None)
            potential = potential - threshold * (last.detach() if detached else last)
        last = spike(potential, threshold, dynamics.surrogate)
        spikes.append(last)
        carried = (
            potential
            if dynamics.pending_reset
            else reset_membrane(potential, last, threshold, dynamics.reset, dynamics.detach_reset)
        )
    fired = torch.stack(spikes).to(x.dtype)
    if not dynamics.pending_reset and recurrent is None:
        return fired, carried
    return fired, PendingState(carried, last.detach() if dynamics.detach_reset and recurrent is None else last)


def differentiable_backward(
    membranes: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    dynamics: Dynamics,
    recurrent: Tensor | None,
    grad_spikes: Tensor,
    grad_state: Tensor,
    grad_membranes: Tensor | None = None,
) -> Tensor:
    """Compute the gradient dL/dv of all membrane potentials `[T, B, ...]`, by operations that have a gradient.

    Args:
        membranes: membrane potentials before reset, `[T, B, ...]`.
        beta: decay of the membrane.
        threshold: firing threshold.
        dynamics: reset, order and surrogate.
        recurrent: weights `[N, N]` from spikes to the current of the next step.
        grad_spikes: dL/ds, `[T, B, ...]`.
        grad_state: gradient of the final membrane potential, `[B, ...]`.
        grad_membranes: gradient that reaches the membrane potentials by themselves, from a second derivative, or None.
    """
    slopes = dynamics.surrogate.derivative(membranes - threshold)
    through = torch.zeros_like(slopes) if dynamics.detach_reset else slopes
    if dynamics.reset == "zero":
        spikes = spike(membranes, threshold, dynamics.surrogate)
        keeps = 1 - (spikes.detach() if dynamics.detach_reset else spikes) - membranes * through
    elif dynamics.pending_reset:
        keeps = beta - threshold * through
    else:
        keeps = 1 - threshold * through
    onward = grad_state if dynamics.pending_reset else keeps[-1] * grad_state
    factors = keeps if dynamics.pending_reset else keeps * beta
    after: Tensor | None = None
    found = []
    by_themselves = [None] * len(slopes) if grad_membranes is None else grad_membranes
    for slope, factor, grad, direct in reversed(list(zip(slopes, factors, grad_spikes, by_themselves, strict=True))):
        if after is not None:
            onward = factor * after
            if recurrent is not None:
                grad = grad + after @ recurrent.to(after.dtype)
        after = slope * grad + onward if direct is None else slope * grad + onward + direct
        found.append(after)
    return torch.stack(found[::-1])
