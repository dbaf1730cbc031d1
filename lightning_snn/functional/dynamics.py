"""Equations of leaky integrate-and-fire neurons: charge, reset, and one step; pure and differentiable."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_snn.checks import check_choice
from lightning_snn.functional.spike import spike
from lightning_snn.functional.surrogate import ArcTangent, Surrogate

Reset = Literal["subtract", "zero"]
Order = Literal["reset_then_leak", "leak_then_reset"]
RESETS, ORDERS = ("subtract", "zero"), ("reset_then_leak", "leak_then_reset")


class Dynamics(NamedTuple):
    """Settings of a LIF recurrence other than its decay and threshold.

    Attributes:
        reset: "subtract" the threshold from the membrane after a spike, or set it to "zero".
        order: "reset_then_leak" resets at once, so the reset leaks too (SpikingJelly, norse). "leak_then_reset"
            subtracts one step later, after the leak: ``v_t = beta v_{t-1} + x_t - theta s_{t-1}`` (snntorch). With
            reset "zero" both give the same spikes.
        detach_reset: whether the reset passes no gradient to the spike that caused it.
        surrogate: surrogate derivative of the spike.

    Example:
        >>> Dynamics(order="leak_then_reset").pending_reset
        True
    """

    reset: Reset = "subtract"
    order: Order = "reset_then_leak"
    detach_reset: bool = False
    surrogate: Surrogate = ArcTangent()

    def check(self) -> Dynamics:
        """Return `self` if its fields are valid.

        Raises:
            ValueError: if `reset` or `order` is invalid.
        """
        check_choice("reset", self.reset, RESETS)
        check_choice("order", self.order, ORDERS)
        return self

    @property
    def pending_reset(self) -> bool:
        """True if the state is the membrane potential before its reset, which the next step applies."""
        return self.order == "leak_then_reset" and self.reset == "subtract"


class PendingState(NamedTuple):
    """State of a neuron whose next step needs its last spikes: for a pending reset, or for recurrent weights.

    Attributes:
        membrane: membrane potential, `[B, ...]`: before its reset if the reset is pending, else after it.
        spikes: spikes of the last step, `[B, ...]`.
    """

    membrane: Tensor
    spikes: Tensor


LIFState = Tensor | PendingState


def lif_charge(x: Tensor, state: LIFState, beta: float | Tensor, threshold: float | Tensor) -> Tensor:
    """Return the membrane potential of one step before its spike: ``beta u + x``, less a pending reset.

    Args:
        x: input current, shape `[B, ...]`, float32 or wider.
        state: the membrane potential `[B, ...]`, or a `PendingState` if the reset is pending.
        beta: decay of the membrane in [0, 1], a number or a tensor that broadcasts to `x`.
        threshold: firing threshold, a number or a tensor that broadcasts to `x`.
    """
    if isinstance(state, PendingState):
        return beta * state.membrane + x - threshold * state.spikes
    return beta * state + x


def lif_after_spikes(membrane: Tensor, spikes: Tensor, threshold: float | Tensor, dynamics: Dynamics) -> LIFState:
    """Return the state after the spikes of one step.

    Args:
        membrane: membrane potential before its reset, `[B, ...]`.
        spikes: of the same shape.
        threshold: firing threshold, a number or a tensor that broadcasts to `membrane`.
        dynamics: reset, order and whether the reset is detached.

    Returns:
        the membrane potential after its reset, or a `PendingState` if the reset is pending.
    """
    if dynamics.pending_reset:
        return PendingState(membrane, spikes.detach() if dynamics.detach_reset else spikes)
    return reset_membrane(membrane, spikes, threshold, dynamics.reset, dynamics.detach_reset)


def reset_membrane(
    membrane: Tensor, spikes: Tensor, amount: float | Tensor, reset: Reset = "subtract", detach: bool = False
) -> Tensor:
    """Return the membrane potential after the reset by its spikes.

    NaN stays NaN. An infinite potential stays infinite by "subtract", and becomes NaN by "zero".

    Args:
        membrane: membrane potential, `[B, ...]`.
        spikes: of the same shape.
        amount: what a spike subtracts, a number or a tensor that broadcasts to `membrane`; unused by "zero".
        reset: "subtract" `amount`, or set to "zero".
        detach: no gradient flows from the reset into the spikes.

    Example:
        >>> reset_membrane(torch.tensor([0.5, 1.5]), torch.tensor([0.0, 1.0]), 1.0)
        tensor([0.5000, 0.5000])
    """
    spikes = spikes.detach() if detach else spikes
    return membrane - amount * spikes if reset == "subtract" else membrane - membrane * spikes


def lif_step(
    x: Tensor,
    state: LIFState | None,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    dynamics: Dynamics = Dynamics(),
) -> tuple[Tensor, LIFState]:
    """Run one step of the recurrence, pure and differentiable: for streaming inference and as the reference of `lif`.

    Args:
        x: input current, shape `[B, ...]`.
        state: state that the previous step returned; None is the resting neuron.
        beta: decay of the membrane in [0, 1], a number or a tensor that broadcasts to `x`.
        threshold: firing threshold, a number or a tensor that broadcasts to `x`.
        dynamics: reset, order and surrogate.

    Returns:
        spikes in {0, 1} of the shape of `x`, and the next state: the membrane potential after its reset, or a
        `PendingState` with "leak_then_reset" and "subtract".

    Example:
        >>> spikes, membrane = lif_step(torch.tensor([[0.4, 1.5]]), None, beta=0.9)
        >>> spikes, membrane
        (tensor([[0., 1.]]), tensor([[0.4000, 0.5000]]))
    """
    current = x.to(torch.promote_types(x.dtype, torch.float32))
    if state is None:
        state = lif_rest(current, dynamics)
    membrane = lif_charge(current, state, beta, threshold)
    spikes = spike(membrane, threshold, dynamics.surrogate)
    return spikes.to(x.dtype), lif_after_spikes(membrane, spikes, threshold, dynamics)


def lif_rest(x: Tensor, dynamics: Dynamics = Dynamics()) -> LIFState:
    """Return the state of rest for a step `x` `[B, ...]`."""
    rest = torch.zeros_like(x)
    return PendingState(rest, rest) if dynamics.pending_reset else rest
