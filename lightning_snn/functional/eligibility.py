r"""Firing rates and eligibilities of LIF neurons for rate-based backpropagation, in one pass over time without a graph.

The eligibility of a neuron is the derivative of its firing rate with respect to a constant shift :math:`\epsilon` of
its input current. With the surrogate h for the derivative of the spike, forward-mode differentiation gives

.. math::
    e = \frac{\partial r}{\partial \epsilon} = \frac{1}{n} \sum_t h(v_t - \theta)\, \rho_t, \qquad
    \rho_1 = 1, \quad \rho_{t+1} = 1 + \beta\, \frac{\partial u_t}{\partial v_t}\, \rho_t ,

where v is the membrane potential before its reset and u after it. The tangents along the decay and the threshold follow
the same recursion with other source terms: ``u_t`` and, for ``d(v_t - threshold) / d threshold``, the reset.

The n steps of a mean form a window. At the start of a window, all tangents are zero: its first membrane is a constant.

Cost: time O(T); memory of a few steps, independent of T. With a detached reset that subtracts, rho is the same for all
neurons of equal decay, and the surrogate is the only work besides the spikes.

This eligibility belongs to a neuron and has one value per window. It is not the eligibility trace of a synapse.

After Yu et al. 2024, arXiv 2410.11488; the tangents of decay and threshold are our extension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.lif import check_input
from lightning_snn.functional.scans.buffers import (
    CACHED_ELEMENTS,
    FEW_STEPS,
    minus_scaled,
    reset,
    spread_over,
    steps_per_block,
)
from lightning_snn.functional.surrogate import propagate_nan


class RateRecord(NamedTuple):
    """Means over the steps of a window, each `[B, ...]`, in float32 or wider.

    Attributes:
        rate: mean number of spikes per step, in [0, 1].
        eligibility: derivative of the rate with respect to a constant shift of the input current.
        beta: derivative of the rate of each neuron with respect to its decay; None if not requested.
        threshold: derivative of the rate of each neuron with respect to its threshold; None if not requested.
    """

    rate: Tensor
    eligibility: Tensor
    beta: Tensor | None
    threshold: Tensor | None


class Trace(NamedTuple):
    """Forward-mode derivative of the spikes along one direction.

    Attributes:
        tangent: tangent of ``v - threshold`` in the next step. A number or a tensor of the shape of the decay applies
            to all neurons of that decay.
        total: sum of the tangents of the spikes so far.
    """

    tangent: float | Tensor
    total: Tensor


class RateState(NamedTuple):
    """State of `lif_rate` between calls. It owns its buffers, and the next call overwrites them.

    Attributes:
        membrane: membrane potential after its reset, or before it if the reset is pending, `[B, ...]`.
        steps: number of steps since the start of the window.
        spikes: sum of the spikes, `[B, ...]`; None at the start of a window, like the traces below.
        input: trace along a constant shift of the input current.
        beta: trace along the decay; None if not requested.
        threshold: trace along the threshold; None if not requested.
    """

    membrane: Tensor
    steps: int = 0
    spikes: Tensor | None = None
    input: Trace | None = None
    beta: Trace | None = None
    threshold: Trace | None = None

    def record(self) -> RateRecord:
        """Return means over the steps since the start of the window, in new tensors.

        Raises:
            RuntimeError: if the window has no step yet.
        """
        if self.spikes is None or self.input is None:
            raise RuntimeError("Expected the window to have at least one step before its record, but got none")
        return RateRecord(
            self.spikes / self.steps,
            self.input.total / self.steps,
            None if self.beta is None else self.beta.total / self.steps,
            None if self.threshold is None else self.threshold.total / self.steps,
        )

    def next_window(self) -> RateState:
        """Return the state at the start of a new window: the membrane as a constant, without tangents and sums."""
        return RateState(self.membrane)


@torch.no_grad()
def lif_rate(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    dynamics: Dynamics = Dynamics(),
    state: RateState | None = None,
    wanted: tuple[bool, bool] = (False, False),
) -> tuple[Tensor, RateState]:
    """Compute the spikes of `lif`, bit for bit, and the derivatives of their rate, without a graph.

    Args:
        x: input current of the next t steps, shape `[t, B, ...]`, any floating dtype and strides.
        beta: decay of the membrane in [0, 1], a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        dynamics: reset, order and surrogate.
        state: state that the previous call returned; this call overwrites it. None is the resting neuron.
        wanted: whether to compute the derivatives with respect to the decay and to the threshold; constant within a
            window.

    Returns:
        spikes in {0, 1} of the shape and dtype of `x`, and the state, whose `record` covers all steps of the window.

    Raises:
        ValueError: if `x` has no time axis or is not floating point, if `state` has another shape, or if `wanted`
            changes within a window.

    Example:
        >>> spikes, state = lif_rate(torch.tensor([[0.6], [0.8], [1.0]]), beta=0.5)
        >>> spikes.flatten(), state.record().rate
        (tensor([0., 1., 1.]), tensor([0.6667]))
    """
    check_input(x)
    dynamics.check()
    rested = state is None  # no reset is pending then, even if the threshold is below 0
    if state is None:
        state = RateState(torch.zeros_like(x[0], dtype=torch.promote_types(x.dtype, torch.float32)))
    elif state.membrane.shape != x.shape[1:]:
        raise ValueError(
            f"Expected argument `state` to have the shape of one step of `x`, {tuple(x.shape[1:])}, "
            f"but got {tuple(state.membrane.shape)}"
        )
    membrane = state.membrane
    betas, thresholds = spread_over(beta, membrane), spread_over(threshold, membrane)
    if isinstance(thresholds, Tensor):
        membrane.add_(thresholds.clamp(0, 0))  # NaN where the threshold is NaN, else 0
    # spikes of the last step, whose reset is pending
    pending = torch.zeros_like(membrane, dtype=x.dtype) if dynamics.pending_reset else None
    if pending is not None and not rested:
        dynamics.surrogate.fire(membrane, thresholds, out=pending)
    if state.steps == 0:
        state = _start_window(membrane, None if rested else pending, beta, thresholds, dynamics, wanted)
    elif wanted != (state.beta is not None, state.threshold is not None):
        raise ValueError(
            f"Expected argument `wanted` to be {(state.beta is not None, state.threshold is not None)} until the next "
            f"window, but got {wanted}"
        )
    spike_count, along_input, along_beta, along_threshold = state[2:]
    assert spike_count is not None
    assert along_input is not None

    gains = None  # tangents along the input at every step, if they need no scan
    if _tangent_is_shared(dynamics):
        gains = _shared_tangents(along_input.tangent, beta, len(x))
        state = state._replace(input=Trace(gains.pop(), along_input.total))
        if _has_axes(beta):
            along_input, gains = Trace(spread_over(gains[0], membrane), along_input.total), None

    spikes = x.new_empty_strided(x.shape, (membrane.numel(), *membrane.stride()))
    # neurons are independent, so any contiguous part of the memory is a block, whatever the layout
    axes = sorted(range(membrane.dim()), key=membrane.stride, reverse=True)
    currents, fired = (steps.permute(0, *(axis + 1 for axis in axes)).flatten(1) for steps in (x, spikes))
    neurons = tree_map(
        lambda value: value.permute(axes).flatten() if _has_axes(value) else value,
        _Neurons(membrane, pending, spike_count, betas, thresholds, along_input, along_beta, along_threshold),
    )
    count = membrane.numel()
    size = min(count, CACHED_ELEMENTS) if x.device.type == "cpu" else count
    steps = steps_per_block(currents[:, :size], FEW_STEPS)
    scratch = [membrane.new_empty(shape) for shape in ((steps, size), (size,), (size,))]
    for start in range(0, count, max(size, 1)):
        block = slice(start, start + size)
        part = tree_map(lambda value: value[block] if _has_axes(value) else value, neurons)  # noqa: B023
        buffers = [buffer[..., : count - start] for buffer in scratch]
        _scan(currents[:, block], fired[:, block], part, gains, dynamics, buffers)
    return spikes, state._replace(steps=state.steps + len(x))


def _tangent_is_shared(dynamics: Dynamics) -> bool:
    """Return whether rho does not depend on the spikes, so that neurons of equal decay share it."""
    return dynamics.reset == "subtract" and dynamics.detach_reset


def _shared_tangents(tangent: float | Tensor, beta: float | Tensor, steps: int) -> list[float | Tensor]:
    """Return rho of each step and of the step after the last one, ``rho_{t+1} = 1 + beta rho_t``."""
    tangents = [tangent]
    for _ in range(steps):
        tangents.append(1 + beta * tangents[-1])
    return tangents


def _start_window(
    membrane: Tensor,
    pending: Tensor | None,
    beta: float | Tensor,
    threshold: float | Tensor,
    dynamics: Dynamics,
    wanted: tuple[bool, bool],
) -> RateState:
    """Return the state at the start of a window: sums of zero, and the tangents of the first membrane."""
    tangent: float | Tensor = 1.0
    if not _tangent_is_shared(dynamics):
        tangent = torch.ones_like(membrane)
    elif isinstance(beta, Tensor):
        tangent = torch.ones_like(beta, dtype=membrane.dtype)
    along_input = Trace(tangent, torch.zeros_like(membrane))
    along_beta = Trace(membrane.clone(), torch.zeros_like(membrane)) if wanted[0] else None
    along_threshold = None
    if wanted[1]:
        first = torch.full_like(membrane, -1.0)
        if pending is not None:
            first.sub_(pending)
        along_threshold = Trace(first, torch.zeros_like(membrane))
    return RateState(membrane, 0, torch.zeros_like(membrane), along_input, along_beta, along_threshold)


class _Neurons(NamedTuple):
    """Arguments and buffers of the scan, `[n]`; numbers and scalars apply to all neurons."""

    carried: Tensor
    pending: Tensor | None
    spike_count: Tensor
    beta: float | Tensor
    threshold: float | Tensor
    along_input: Trace
    along_beta: Trace | None
    along_threshold: Trace | None


def _has_axes(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _scan(
    currents: Tensor,
    spikes: Tensor,
    neurons: _Neurons,
    gains: list[float | Tensor] | None,
    dynamics: Dynamics,
    scratch: list[Tensor],
) -> None:
    """Run all steps `[t, n]` of a block of neurons, in place on buffers that fit into the cache.

    The first buffer of `scratch` holds the membrane potentials of some steps, `[k, n]`, the others are `[n]`.

    `gains` are the tangents along the input at every step, if all neurons share them.
    """
    surrogate = dynamics.surrogate
    state, pending, spike_count, beta, threshold, along_input, along_beta, along_threshold = neurons
    membranes, slope, change = scratch
    carried, block = state, len(membranes)
    for t, (current, spike) in enumerate(zip(currents.unbind(0), spikes.unbind(0), strict=True)):
        membrane = membranes[t % block]
        # multiply, then add: rounds as `lif` does
        torch.mul(carried, beta, out=membrane).add_(current)
        if pending is not None:
            minus_scaled(membrane, pending, threshold, out=membrane)
            pending = spike
        surrogate.fire(membrane, threshold, out=spike)
        surrogate.derivative_(torch.sub(membrane, threshold, out=slope))

        step = (spike, membrane, slope, change, beta, threshold, dynamics)
        if gains is not None:
            minus_scaled(along_input.total, slope, -gains[t], out=along_input.total)
        else:
            _advance(along_input, *step).add_(1)
        if along_threshold is not None:
            _advance(along_threshold, *step, along_threshold=True).sub_(1)
        if pending is None:
            reset(membrane, spike, threshold, dynamics, out=carried)
        else:  # the state is the membrane before its reset
            carried = membrane
        if along_beta is not None:
            _advance(along_beta, *step).add_(carried)
        if (t + 1) % block == 0 or t == len(spikes) - 1:
            steps = slice(t // block * block, t + 1)
            propagate_nan(spikes[steps], membranes[: t % block + 1], out=spikes[steps])
    if pending is not None:
        state.copy_(carried)
    spike_count.add_(spikes[0] if len(spikes) == 1 else spikes.sum(0, dtype=spike_count.dtype))


def _advance(
    trace: Trace,
    spike: Tensor,
    membrane: Tensor,
    slope: Tensor,
    change: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    dynamics: Dynamics,
    along_threshold: bool = False,
) -> Tensor:
    """Add the tangent of the spike to the total, and advance the tangent through reset and leak, in place.

    ``ds = h dv``, then ``du = dv - threshold ds`` (and ``- s`` along the threshold) or ``du = (1 - s) dv - v ds``.
    """
    tangent, total = trace
    assert isinstance(tangent, Tensor)
    if dynamics.detach_reset:
        total.addcmul_(slope, tangent)
    else:
        total.add_(torch.mul(slope, tangent, out=change))
    if along_threshold:
        tangent.add_(1)  # tangent of the membrane instead of its distance to the threshold
    if dynamics.pending_reset:
        tangent.mul_(beta)
    if dynamics.reset == "zero":
        reset(tangent, spike, threshold, dynamics, out=tangent)
        if not dynamics.detach_reset:
            tangent.addcmul_(membrane, change, value=-1)
    else:
        if not dynamics.detach_reset:
            minus_scaled(tangent, change, threshold, out=tangent)
        if along_threshold:
            tangent.sub_(spike)
    return tangent if dynamics.pending_reset else tangent.mul_(beta)
