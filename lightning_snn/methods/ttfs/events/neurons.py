"""The potential of a neuron from event to event."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Fired(NamedTuple):
    """What n neurons did, each field of shape `[n]`.

    Attributes:
        times: spike times, infinite where there is none.
        potential: at t_min.
        peak: the largest potential up to t_min.
        early: whether the threshold was reached before t_min.
        overflow: whether the potential was above the threshold at t_min.
    """

    times: Tensor
    potential: Tensor
    peak: Tensor
    early: Tensor
    overflow: Tensor


def fire(
    times: Tensor, jumps: Tensor, threshold: Tensor, slope: Tensor | None, t_min: float, t_max: float, gated: bool
) -> Fired:
    """Walk through the piecewise linear potentials of n neurons, one event after the other.

    Args:
        times: events of each neuron, `[n, K]`, infinite where there is none; none is later than `t_min`. The potential
            is 0 until the first.
        jumps: what each event adds to the slope, `[n, K]`.
        threshold: `[n]`.
        slope: that of the potential from `t_min` on, `[n]`; None keeps what the events have made of it.
        t_min, t_max: the window in which the neurons fire. What is at its threshold at t_min fires there.
        gated: no spike before t_min; otherwise at the first crossing.
    """
    times, order = times.sort(1)
    jumps = jumps.gather(1, order).where(times.isfinite(), 0.0)
    events = int(times.isfinite().sum(1).max())
    # what has no event left waits for t_min
    times = torch.cat([times[:, :events], times[:, :1]], 1).clamp(max=t_min)
    times[:, events] = t_min
    now, potential = times[:, 0], torch.zeros_like(threshold)
    rate, peak = torch.zeros_like(threshold), potential
    crossed = torch.where(threshold <= 0, now, torch.inf)
    for event in range(events):
        rate = rate + jumps[:, event]
        until = times[:, event + 1]
        reached = potential + rate * (until - now)
        # between events the potential is a line: a crossing shows at its end
        crosses = (potential < threshold) & (reached >= threshold) & crossed.isinf()
        crossed = torch.where(crosses, now + (threshold - potential) / rate, crossed)
        now, potential, peak = until, reached, torch.maximum(peak, reached)
    rate = rate if slope is None else slope
    spike = t_min + (threshold - potential) / rate
    spike = torch.where((rate > 0) & (spike < t_max), spike, torch.inf)
    spike = torch.where(potential >= threshold, t_min, spike)
    overflow = potential > threshold
    return Fired(
        spike if gated else torch.minimum(spike, crossed), potential, peak, overflow | (crossed < t_min), overflow
    )
