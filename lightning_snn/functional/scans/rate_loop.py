"""The scan of LIF neurons with forward-mode derivatives as a loop over time, in place on blocks that fit in the cache.

`functional.eligibility` has the equations.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_snn.functional.dynamics import Dynamics
from lightning_snn.functional.scans.buffers import (
    CACHED_ELEMENTS,
    FEW_STEPS,
    minus_scaled,
    reset,
    spread_over,
    steps_per_block,
)
from lightning_snn.functional.surrogate import propagate_nan


class Trace(NamedTuple):
    """Forward-mode derivative of the spikes along one direction.

    Attributes:
        tangent: tangent of ``v - threshold`` in the next step. A tensor of the shape of the decay applies to all
            neurons of that decay. None for one that follows from a decay that is a number, see `shared_tangent`.
        total: sum of the tangents of the spikes so far.
    """

    tangent: Tensor | None
    total: Tensor


def tangent_is_shared(dynamics: Dynamics) -> bool:
    """Return whether rho does not depend on the spikes, so that neurons of equal decay share it."""
    return dynamics.reset == "subtract" and dynamics.detach_reset


@lru_cache(maxsize=4096)
def shared_tangent(beta: float, steps: int) -> float:
    """Return rho of the step after `steps` steps of a window, where rho does not depend on the spikes.

    Example:
        >>> shared_tangent(0.5, 2)
        1.75
    """
    tangent = 1.0
    for _ in range(steps):
        tangent = 1 + beta * tangent
    return tangent


def shared_link(beta: float, steps: int) -> float:
    """Return what is left of the membrane before a window after `steps` steps, where it does not depend on the spikes.

    Example:
        >>> shared_link(0.5, 2)
        0.25
    """
    return beta**steps


def rate_loop(
    x: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    membrane: Tensor,
    spike_count: Tensor,
    along_input: Trace,
    along_beta: Trace | None,
    along_threshold: Trace | None,
    along_membrane: Trace | None,
    steps: int,
    rested: bool,
    dynamics: Dynamics,
) -> Tensor:
    """Run the scan of `functional.eligibility.lif_rate`, which overwrites the buffers, and return the spikes.

    Args:
        x: input current of the next t steps, `[t, B, ...]`.
        beta: decay of the membrane, a number or a tensor that broadcasts to `[B, ...]`.
        threshold: firing threshold, a number or a tensor that broadcasts to `[B, ...]`.
        membrane: membrane potential after its reset, or before it if the reset is pending, `[B, ...]`, dense.
        spike_count: sum of the spikes, `[B, ...]`.
        along_input: trace along a constant shift of the input current.
        along_beta: trace along the decay, or None.
        along_threshold: trace along the threshold, or None.
        along_membrane: trace along the membrane potential before the window, or None; its tangent is None if it follows
            from a decay that is a number.
        steps: number of steps since the start of the window. At 0, counts and traces have no values yet.
        rested: whether the neurons are at rest. The membrane has no values then either.
        dynamics: reset, order and surrogate.
    """
    if rested:
        membrane.zero_()
    betas, thresholds = spread_over(beta, membrane), spread_over(threshold, membrane)
    if isinstance(thresholds, Tensor):
        membrane.add_(thresholds.clamp(0, 0))  # NaN where the threshold is NaN, else 0
    # spikes of the last step, whose reset is pending; at rest no reset is, even if the threshold is below 0
    pending = torch.zeros_like(membrane, dtype=x.dtype) if dynamics.pending_reset else None
    if pending is not None and not rested:
        dynamics.surrogate.fire(membrane, thresholds, out=pending)
    if steps == 0:
        _start_window(membrane, None if rested else pending, spike_count, along_input, along_beta, along_threshold)
        if along_membrane is not None:
            along_membrane.total.zero_()
            if along_membrane.tangent is not None:
                along_membrane.tangent.fill_(1)

    gains: list[Any] | None = None  # tangents along the input at every step, if they need no scan
    tangent = along_input.tangent
    if tangent_is_shared(dynamics):
        gains = [shared_tangent(beta, steps) if not isinstance(beta, Tensor) else tangent]
        for _ in range(len(x)):
            gains.append(1 + beta * gains[-1])
        tangent_after = gains.pop()
        if _has_axes(beta):
            along_input, gains = Trace(spread_over(gains[0], membrane), along_input.total), None  # type: ignore[arg-type]

    links: list[float] | None = None
    if along_membrane is not None and along_membrane.tangent is None:
        assert not isinstance(beta, Tensor)
        links = [shared_link(beta, steps + t) for t in range(len(x))]

    spikes = empty_spikes(x, membrane)
    # neurons are independent, so any contiguous part of the memory is a block, whatever the layout
    axes = sorted(range(membrane.dim()), key=membrane.stride, reverse=True)
    currents, fired = (each.permute(0, *(axis + 1 for axis in axes)).flatten(1) for each in (x, spikes))
    neurons = tree_map(
        lambda value: value.permute(axes).flatten() if _has_axes(value) else value,
        _Neurons(
            membrane, pending, spike_count, betas, thresholds, along_input, along_beta, along_threshold, along_membrane
        ),
    )
    count = membrane.numel()
    size = min(count, CACHED_ELEMENTS) if x.device.type == "cpu" else count
    at_once = steps_per_block(currents[:, :size], FEW_STEPS)
    scratch = [membrane.new_empty(shape) for shape in ((at_once, size), (size,), (size,))]
    for start in range(0, count, max(size, 1)):
        block = slice(start, start + size)
        part = tree_map(lambda value: value[block] if _has_axes(value) else value, neurons)  # noqa: B023
        buffers = [buffer[..., : count - start] for buffer in scratch]
        _scan(currents[:, block], fired[:, block], part, gains, links, dynamics, buffers)
    if tangent is not None and tangent_is_shared(dynamics):
        tangent.copy_(tangent_after)
    return spikes


def empty_spikes(x: Tensor, membrane: Tensor) -> Tensor:
    """Return an empty tensor for the spikes of input `x` `[t, B, ...]`, whose steps lie in memory as `membrane`."""
    return x.new_empty_strided(x.shape, (membrane.numel(), *membrane.stride()))


def _start_window(
    membrane: Tensor,
    pending: Tensor | None,
    spike_count: Tensor,
    along_input: Trace,
    along_beta: Trace | None,
    along_threshold: Trace | None,
) -> None:
    """Set counts and sums to zero, and the tangents to those of the first membrane."""
    spike_count.zero_()
    if along_input.tangent is not None:
        along_input.tangent.fill_(1)
    for trace in (along_input, along_beta, along_threshold):
        if trace is not None:
            trace.total.zero_()
    if along_beta is not None and along_beta.tangent is not None:
        along_beta.tangent.copy_(membrane)
    if along_threshold is not None and along_threshold.tangent is not None:
        along_threshold.tangent.fill_(-1)
        if pending is not None:
            along_threshold.tangent.sub_(pending)


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
    along_membrane: Trace | None


def _has_axes(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _scan(
    currents: Tensor,
    spikes: Tensor,
    neurons: _Neurons,
    gains: list[float | Tensor] | None,
    links: list[float] | None,
    dynamics: Dynamics,
    scratch: list[Tensor],
) -> None:
    """Run all steps `[t, n]` of a block of neurons, in place on buffers that fit into the cache.

    The first buffer of `scratch` holds the membrane potentials of some steps, `[k, n]`, the others are `[n]`.

    `gains` are the tangents along the input at every step, if all neurons share them, and `links` those along the
    membrane before the window.
    """
    surrogate = dynamics.surrogate
    state, pending, spike_count, beta, threshold, along_input, along_beta, along_threshold, along_membrane = neurons
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
        if links is not None:
            assert along_membrane is not None
            minus_scaled(along_membrane.total, slope, -links[t], out=along_membrane.total)
        elif along_membrane is not None:
            _advance(along_membrane, *step)
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
