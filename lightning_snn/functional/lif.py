r"""Leaky integrate-and-fire recurrence over a whole sequence, with a hand-written backward pass.

.. math::
    v_t &= \beta\, u_{t-1} + x_t \; (+ W s_{t-1}), \qquad s_t = H(v_t - \theta), \\
    u_t &= v_t - \theta s_t \;\text{("subtract")} \quad\text{or}\quad u_t = (1 - s_t)\, v_t \;\text{("zero")}.

Cost: time O(T), one saved tensor of the size of the input (the membrane potential before reset) and no graph of T
steps. The gradient is that of surrogate-gradient backpropagation through time. It equals the gradient that autograd
computes on the unrolled recurrence.

A membrane potential of NaN stays NaN through every leak and reset, and its spikes and gradients are NaN. The comparison
with the threshold loses NaN; one operation per block of steps restores it, on a CPU only if there is any.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics, LIFState, PendingState, reset_membrane
from lightning_snn.functional.plain_lif import differentiable_backward, unrolled_lif
from lightning_snn.functional.spike import spike
from lightning_snn.functional.surrogate import propagate_nan
from lightning_snn.functional.tracing import plain_operations


def lif(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    dynamics: Dynamics = Dynamics(),
    state: LIFState | None = None,
    recurrent: Tensor | None = None,
) -> tuple[Tensor, LIFState]:
    """Run the recurrence over a sequence, as one autograd node.

    Args:
        x: input current, shape `[T, B, ...]`, any floating dtype and strides. The state is held in float32 or wider.
        beta: decay of the membrane in [0, 1], a number or a tensor that broadcasts to `[B, ...]`; gets a gradient.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`; gets a gradient.
        dynamics: reset, order and surrogate.
        state: what a previous call returned; None is the resting neuron.
        recurrent: weights `[N, N]` from the spikes of step t - 1 to the current of step t, for `x` of shape `[T, B,
            N]`.

    Returns:
        spikes in {0, 1} of the shape and dtype of `x`, and the final state: the membrane potential `[B, ...]`, or a
        `PendingState` with recurrent weights or a pending reset. From the first NaN on, of the input, a parameter or
        the difference of infinities, spikes and state of a neuron are NaN.

    Raises:
        ValueError: if `x` has no time axis or is not floating point, or `recurrent` has another shape.
        TypeError: if `state` is not of the kind that a previous call would have returned.
    """
    check_input(x)
    if recurrent is not None and (x.dim() != 3 or recurrent.shape != (x.shape[-1], x.shape[-1])):
        raise ValueError(
            "Expected argument `recurrent` to be of shape [N, N] for `x` of shape [T, B, N], "
            f"but got {tuple(recurrent.shape)} for {tuple(x.shape)}"
        )
    dynamics.check()
    carries_spikes = dynamics.pending_reset or recurrent is not None
    if state is not None and isinstance(state, PendingState) != carries_spikes:
        expected = "a PendingState" if carries_spikes else "a tensor"
        raise TypeError(f"Expected argument `state` to be {expected}, but got {type(state).__name__}")
    membrane, before = state if isinstance(state, PendingState) else (state, None)
    if plain_operations():
        return unrolled_lif(x, beta, threshold, dynamics, membrane, before, recurrent)
    differentiable = torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in (x, beta, threshold, membrane, before, recurrent)
    )
    spikes, membrane, _ = _LIFScan.apply(x, beta, threshold, membrane, before, recurrent, dynamics, differentiable)
    if not carries_spikes:
        return spikes, membrane
    last = spikes[-1].to(membrane.dtype)
    return spikes, PendingState(membrane, last.detach() if dynamics.detach_reset and recurrent is None else last)


def leaky_integrate(x: Tensor, beta: float | Tensor, state: Tensor | None = None) -> Tensor:
    """Compute the membrane potential ``u_t = beta u_{t-1} + x_t`` of a neuron that never spikes.

    Args:
        x: input current, shape `[T, B, ...]`, any floating dtype.
        beta: decay of the membrane in [0, 1], a number or a tensor that broadcasts to `[B, ...]`.
        state: membrane potential before the first step, `[B, ...]`; None is 0.

    Returns:
        membrane potentials of the shape and dtype of `x`, accumulated in float32 or wider.

    Example:
        >>> leaky_integrate(torch.ones(3, 1), 0.5).flatten()
        tensor([1.0000, 1.5000, 1.7500])
    """
    check_input(x)
    membrane = torch.zeros_like(x[0], dtype=torch.promote_types(x.dtype, torch.float32)) if state is None else state
    trace = []
    for current in x.unbind(0):
        membrane = beta * membrane + current
        trace.append(membrane)
    return torch.stack(trace).to(x.dtype)


def check_input(x: Tensor) -> None:
    """Raise a ValueError unless `x` is a floating sequence `[T, B, ...]`."""
    if x.dim() < 2 or x.shape[0] == 0:
        raise ValueError(
            f"Expected argument `x` to be of shape [T, B, ...] with T of at least 1, but got {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise ValueError(f"Expected argument `x` to be of a floating dtype, but got {x.dtype}")


def spread_over(value: float | Tensor, like: Tensor) -> float | Tensor:
    """Expand a tensor over the neurons of a step, because broadcasting it at every step is much slower."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return torch.empty_like(like).copy_(value)


def minus_scaled(a: Tensor, b: Tensor, scale: float | Tensor, out: Tensor) -> Tensor:
    """Compute ``out = a - scale * b`` without a temporary tensor."""
    if isinstance(scale, Tensor):
        return torch.addcmul(a, b, scale, value=-1, out=out)
    return torch.sub(a, b, alpha=scale, out=out)


class _LIFScan(torch.autograd.Function):
    """LIF scan in place on buffers that fit into the cache, because memory traffic limits its speed on CPUs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        beta: float | Tensor,
        threshold: float | Tensor,
        state: Tensor | None,
        before: Tensor | None,
        recurrent: Tensor | None,
        dynamics: Dynamics,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        spikes, membranes, final = _forward_scan(
            x, beta, threshold, state, before, recurrent, dynamics, differentiable, restores_nan=not can_look_at(x)
        )
        if can_look_at(x) and final.sum().isnan():
            spikes, membranes, final = _forward_scan(
                x, beta, threshold, state, before, recurrent, dynamics, differentiable, restores_nan=True
            )
        numbers = (beta, threshold)
        ctx.save_for_backward(
            membranes, *(value if isinstance(value, Tensor) else None for value in (*numbers, state, before, recurrent))
        )
        ctx.dynamics, ctx.dtype = dynamics, x.dtype
        ctx.numbers = tuple(None if isinstance(value, Tensor) else value for value in numbers)
        ctx.set_materialize_grads(False)
        # an output, because second derivatives reach the input through the saved membrane potentials
        return spikes, final.clone() if dynamics.pending_reset else final, membranes

    @staticmethod
    def backward(
        ctx: Any, grad_spikes: Tensor | None, grad_state: Tensor | None, grad_saved: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # once, because activation checkpointing allows one access
        membranes, beta_tensor, threshold_tensor, state, before, recurrent = ctx.saved_tensors
        beta = ctx.numbers[0] if beta_tensor is None else spread_over(beta_tensor, membranes[0])
        threshold = ctx.numbers[1] if threshold_tensor is None else spread_over(threshold_tensor, membranes[0])
        dynamics: Dynamics = ctx.dynamics
        if grad_spikes is None:
            grad_spikes = torch.zeros((), dtype=ctx.dtype, device=membranes.device).expand_as(membranes)
        if grad_state is None:
            grad_state = torch.zeros((), dtype=membranes.dtype, device=membranes.device).expand_as(membranes[0])
        if torch.is_grad_enabled():
            grad_membranes = differentiable_backward(
                membranes, beta, threshold, dynamics, recurrent, grad_spikes, grad_state
            )
        else:
            grad_membranes = _backward_scan(
                membranes, beta, threshold, dynamics, recurrent, grad_spikes, grad_state, grad_saved
            )
        after = grad_membranes[0]
        return (
            grad_membranes.to(ctx.dtype),
            *_grad_parameters(
                ctx,
                membranes,
                grad_membranes,
                grad_state,
                grad_saved,
                beta,
                threshold,
                beta_tensor,
                threshold_tensor,
                state,
                before,
            ),
            None if state is None else (after * beta).to(state.dtype),
            _grad_before(after, before, recurrent, threshold, dynamics),
            _grad_recurrent(ctx, membranes, grad_membranes, threshold, before, recurrent),
            None,
            None,
        )


def can_look_at(x: Tensor) -> bool:
    """Return whether a look at the values of a tensor is cheap: on a GPU it would wait for all work before it.

    The state of a neuron keeps NaN. So a scan on a CPU looks at its final state, and runs again in the rare case that
    it has to restore NaN in the spikes, instead of a pass over the spikes of all steps.
    """
    return x.device.type == "cpu" and type(x.data) is Tensor


def _forward_scan(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    state: Tensor | None,
    before: Tensor | None,
    recurrent: Tensor | None,
    dynamics: Dynamics,
    differentiable: bool,
    restores_nan: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return spikes, saved membrane potentials and final state; without `restores_nan` a spike of NaN is 0."""
    surrogate = dynamics.surrogate
    accumulator = torch.promote_types(x.dtype, torch.float32)
    if not restores_nan:
        block = len(x) if differentiable else 1
    elif recurrent is not None:
        block = 1  # neurons that receive spikes need them with their NaN at the next step
    else:
        block = steps_per_block(x, most=None if differentiable else FEW_STEPS)
    # empty_like keeps a channels-last layout
    spikes = torch.empty_like(x)
    membranes = torch.empty_like(x if differentiable else x[:block], dtype=accumulator)
    beta, threshold = spread_over(beta, membranes[0]), spread_over(threshold, membranes[0])
    carried = torch.zeros_like(membranes[0])
    if state is not None:
        carried.copy_(state)
    if isinstance(threshold, Tensor):
        carried.add_(threshold.clamp(0, 0))  # NaN where the threshold is NaN, else 0
    last = None if before is None else before.to(accumulator)  # spikes of the step before
    for t, (current, fired) in enumerate(zip(x.unbind(0), spikes.unbind(0), strict=True)):
        membrane = membranes[t if differentiable else t % block]
        # multiply, then add: a fused multiply-add would round differently from the unrolled recurrence
        torch.mul(carried, beta, out=membrane).add_(current)
        if recurrent is not None and last is not None:
            membrane.addmm_(last.to(accumulator), recurrent.t().to(accumulator))
        if dynamics.pending_reset:
            if last is not None:
                minus_scaled(membrane, last, threshold, out=membrane)
            surrogate.fire(membrane, threshold, out=fired)
            carried = membrane if differentiable else carried.copy_(membrane)
        else:
            surrogate.fire(membrane, threshold, out=fired)
            reset(membrane, fired, threshold, dynamics, out=carried)
        last = fired
        if restores_nan and ((t + 1) % block == 0 or t == len(x) - 1):
            steps = slice(t // block * block, t + 1)
            done = membranes[steps] if differentiable else membranes[: t % block + 1]
            propagate_nan(spikes[steps], done, out=spikes[steps])
    return spikes, membranes, carried


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
    step. `grad_saved` is a gradient that reaches the membrane potentials by themselves, from a second derivative.
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


# size of one buffer of the backward pass: two buffers and their inputs fit into the cache of a core
CACHED_ELEMENTS = 1 << 18
# steps that a scan without a gradient holds at a time
FEW_STEPS = 8


def steps_per_block(sequence: Tensor, most: int | None = None) -> int:
    """Return how many steps of a sequence `[T, B, ...]`, at most `most`, fit into a buffer of `CACHED_ELEMENTS`."""
    fitting = max(1, CACHED_ELEMENTS // max(1, sequence[0].numel()))
    return min(len(sequence), fitting if most is None else min(most, fitting))


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


def reset(membrane: Tensor, spike: Tensor, threshold: float | Tensor, dynamics: Dynamics, out: Tensor) -> Tensor:
    """Compute the membrane potential after its reset, without a temporary tensor; `out` may be `membrane` itself."""
    if dynamics.reset == "subtract":
        return minus_scaled(membrane, spike, threshold, out=out)
    return torch.addcmul(membrane, membrane, spike, value=-1, out=out)


def _grad_parameters(
    ctx: Any,
    membranes: Tensor,
    grad_membranes: Tensor,
    grad_state: Tensor,
    grad_saved: Tensor | None,
    beta: float | Tensor,
    threshold: float | Tensor,
    beta_tensor: Tensor | None,
    threshold_tensor: Tensor | None,
    state: Tensor | None,
    before: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dL/dbeta and dL/dthreshold, each None if it is not required."""
    dynamics: Dynamics = ctx.dynamics
    if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
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
    if beta_tensor is not None and ctx.needs_input_grad[1]:
        grad = (grad_membranes[1:] * carried[:-1]).sum(0)
        if state is not None:
            grad.addcmul_(grad_membranes[0], state)
        grad_beta = grad.sum_to_size(beta_tensor.shape).to(beta_tensor.dtype)
    if threshold_tensor is not None and ctx.needs_input_grad[2]:
        # dL/d(membrane after its reset), through the leak
        onward = torch.cat([grad_membranes[1:] * beta, grad_state.to(membranes.dtype)[None]])
        through_leak = onward * (1 - spikes) if dynamics.reset == "zero" else onward
        through_spikes = grad_membranes - through_leak
        grad = -(through_spikes if grad_saved is None else through_spikes - grad_saved).sum(0)
        if dynamics.pending_reset:
            grad -= (grad_membranes[1:] * spikes[:-1]).sum(0)
            if before is not None:
                grad -= grad_membranes[0] * before
        elif dynamics.reset == "subtract":
            grad -= (onward * spikes).sum(0)
        grad_threshold = grad.sum_to_size(threshold_tensor.shape).to(threshold_tensor.dtype)
    return grad_beta, grad_threshold


def _grad_before(
    grad_membrane: Tensor,
    before: Tensor | None,
    recurrent: Tensor | None,
    threshold: float | Tensor,
    dynamics: Dynamics,
) -> Tensor | None:
    """Return the gradient of the spikes before the first step, through recurrent weights and a pending reset."""
    if before is None:
        return None
    grad = torch.zeros_like(grad_membrane)
    if recurrent is not None:
        grad += grad_membrane @ recurrent.to(grad.dtype)
    # a detached reset was detached when the spikes were returned, unless recurrent weights need their gradient
    if dynamics.pending_reset and not (dynamics.detach_reset and recurrent is not None):
        grad -= threshold * grad_membrane
    return grad.to(before.dtype)


def _grad_recurrent(
    ctx: Any,
    membranes: Tensor,
    grad_membranes: Tensor,
    threshold: float | Tensor,
    before: Tensor | None,
    recurrent: Tensor | None,
) -> Tensor | None:
    if recurrent is None or not ctx.needs_input_grad[5]:
        return None
    earlier = spike(membranes[:-1], threshold, ctx.dynamics.surrogate).flatten(0, 1)
    grad = grad_membranes[1:].flatten(0, 1).t() @ earlier
    if before is not None:
        grad.addmm_(grad_membranes[0].t(), before.to(grad.dtype))
    in_its_dtype: Tensor = grad.to(recurrent.dtype)
    return in_its_dtype
