r"""Leaky integrate-and-fire recurrence over a whole sequence, with a hand-written backward pass.

.. math::
    v_t &= \beta\, u_{t-1} + x_t \; (+ W s_{t-1}), \qquad s_t = H(v_t - \theta), \\
    u_t &= v_t - \theta s_t \;\text{("subtract")} \quad\text{or}\quad u_t = (1 - s_t)\, v_t \;\text{("zero")}.

Cost: time O(T), one saved tensor of the size of the input and no graph of T steps. That tensor is the membrane
potential before reset; for input in 16 bits, the kernels for GPUs save the input and compute the potential again. The
gradient is that of surrogate-gradient backpropagation through time. It equals the gradient that autograd computes on
the unrolled recurrence.

A membrane potential of NaN stays NaN through every leak and reset, and its spikes and gradients are NaN. The comparison
with the threshold loses NaN; one operation per block of steps restores it, on a CPU only if there is any.

The scan is an operator with an implementation per device (`functional.scans`), which `torch.compile` does not look
into.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics, LIFState, PendingState
from lightning_snn.functional.plain_lif import unrolled_lif
from lightning_snn.functional.scans.buffers import holds_input
from lightning_snn.functional.scans.choice import saves_input
from lightning_snn.functional.scans.loop import backward_loop, forward_loop
from lightning_snn.functional.scans.operators import lif_backward, lif_forward
from lightning_snn.functional.scans.variants import built_in, tensor_and_number
from lightning_snn.functional.spike import spike
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
    opaque = recurrent is None and built_in(dynamics.surrogate) is not None
    if plain_operations(opaque):
        return unrolled_lif(x, beta, threshold, dynamics, membrane, before, recurrent)
    differentiable = torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in (x, beta, threshold, membrane, before, recurrent)
    )
    if differentiable or not opaque:
        saves: _Saves = "nothing"
        if differentiable:
            saves = "input" if opaque and saves_input(x) else "membranes"
        spikes, membrane, _ = _Scan.apply(x, beta, threshold, membrane, before, recurrent, dynamics, saves)
    else:
        parameters = (*tensor_and_number(beta), *tensor_and_number(threshold))
        spikes, membrane, _ = lif_forward(x, *parameters, membrane, before, dynamics.reset, dynamics.order, False)
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


_Saves = Literal["nothing", "membranes", "input"]


class _Scan(torch.autograd.Function):
    """The scan as one node: by the operators, or by the loop for recurrent weights and surrogates of one's own."""

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
        saves: _Saves,
    ) -> tuple[Tensor, Tensor, Tensor]:
        keeps_membranes = saves == "membranes"
        (beta_tensor, beta_number), (threshold_tensor, threshold_number) = map(tensor_and_number, (beta, threshold))
        if recurrent is None and built_in(dynamics.surrogate) is not None:
            spikes, final, membranes = lif_forward(
                x,
                beta_tensor,
                beta_number,
                threshold_tensor,
                threshold_number,
                state,
                before,
                dynamics.reset,
                dynamics.order,
                keeps_membranes,
            )
        else:
            spikes, final, membranes = forward_loop(
                x, beta, threshold, state, before, recurrent, dynamics, keeps_membranes
            )
        ctx.save_for_backward(
            x if saves == "input" else membranes, beta_tensor, threshold_tensor, state, before, recurrent
        )
        ctx.dynamics, ctx.dtype = dynamics, x.dtype
        ctx.numbers = beta_number, threshold_number
        if torch.compiler.is_compiling():
            ctx.mark_non_differentiable(membranes)
        else:
            ctx.set_materialize_grads(False)
        # an output, because second derivatives reach the input through the saved membrane potentials
        return spikes, final, membranes

    @staticmethod
    def backward(
        ctx: Any, grad_spikes: Tensor | None, grad_state: Tensor | None, grad_saved: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # once, because activation checkpointing allows one access
        saved, beta_tensor, threshold_tensor, state, before, recurrent = ctx.saved_tensors
        beta_number, threshold_number = ctx.numbers
        beta = beta_number if beta_tensor is None else beta_tensor
        threshold = threshold_number if threshold_tensor is None else threshold_tensor
        dynamics: Dynamics = ctx.dynamics
        wants_beta, wants_threshold = (
            parameter is not None and ctx.needs_input_grad[index]
            for index, parameter in ((1, beta_tensor), (2, threshold_tensor))
        )
        compiling = torch.compiler.is_compiling()  # without second derivatives
        differentiable = torch.is_grad_enabled() and not compiling
        surrogate = built_in(dynamics.surrogate)
        if recurrent is None and surrogate is not None and not differentiable:
            grad_x, first, of_beta, of_threshold = lif_backward(
                saved,
                beta_tensor,
                beta_number,
                threshold_tensor,
                threshold_number,
                state,
                before,
                grad_spikes,
                grad_state,
                None if compiling else grad_saved,
                dynamics.reset,
                dynamics.order,
                dynamics.detach_reset,
                *surrogate,
                ctx.dtype,
                state is not None or before is not None,
                wants_beta,
                wants_threshold,
            )
            grad_recurrent = None
        else:
            membranes = saved
            if holds_input(saved):  # its second derivatives pass through the membrane potentials
                membranes = _Scan.apply(saved, beta, threshold, state, before, None, dynamics, "membranes")[2]
            grad_membranes, of_beta, of_threshold = backward_loop(
                membranes,
                beta,
                threshold,
                state,
                before,
                recurrent,
                dynamics,
                grad_spikes,
                grad_state,
                grad_saved,
                wants_beta,
                wants_threshold,
                differentiable,
            )
            grad_x, first = grad_membranes.to(ctx.dtype), grad_membranes[0]
            grad_recurrent = _grad_recurrent(ctx, membranes, grad_membranes, threshold, before, recurrent)
        return (
            grad_x,
            of_beta.sum_to_size(beta_tensor.shape).to(beta_tensor.dtype) if wants_beta else None,
            of_threshold.sum_to_size(threshold_tensor.shape).to(threshold_tensor.dtype) if wants_threshold else None,
            None if state is None else (first * beta).to(state.dtype),
            _grad_before(first, before, recurrent, threshold, dynamics),
            grad_recurrent,
            None,
            None,
        )


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
