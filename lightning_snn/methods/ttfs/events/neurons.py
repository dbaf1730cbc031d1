"""Potentials of neurons from event to event."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Fired(NamedTuple):
    """State of n neurons after a window, each field of shape `[n]`.

    Attributes:
        times: spike times, infinite for no spike, NaN if the potential is NaN.
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
    """Simulate the piecewise linear potentials of n neurons, one event after the other.

    Args:
        times: events of each neuron, `[n, K]`, infinite for no event, and at most `t_min`. The potential is 0 until the
            first event. A neuron with an event at NaN has a potential of NaN.
        jumps: change of the slope at each event, `[n, K]`. NaN makes the potential NaN.
        threshold: thresholds, `[n]`.
        slope: slope of the potential from `t_min` on, `[n]`; None keeps the slope after the last event.
        t_min: start of the window in which neurons fire. A neuron at its threshold at t_min fires there.
        t_max: end of the window.
        gated: whether neurons cannot spike before t_min; otherwise they spike at the first crossing.
    """
    # a weight of NaN counts even if its input is silent, as in a matrix product
    unknown = (times.isnan() | jumps.isnan()).any(1)
    times, order = times.sort(1)
    jumps = jumps.gather(1, order).where(times.isfinite(), 0.0)
    events = int(times.isfinite().sum(1).max())
    # neurons without further events go on to t_min
    times = torch.cat([times[:, :events], times[:, :1]], 1).clamp(max=t_min)
    times[:, events] = t_min
    now, potential = times[:, 0], torch.zeros_like(threshold).masked_fill(unknown, torch.nan)
    rate, peak = torch.zeros_like(threshold), potential
    crossed = torch.where(threshold <= 0, now, torch.inf)
    for event in range(events):
        rate = rate + jumps[:, event]
        until = times[:, event + 1]
        reached = potential + rate * (until - now)
        # the potential is linear between events, so a crossing is visible at the end
        crosses = (potential < threshold) & (reached >= threshold) & crossed.isinf()
        crossed = torch.where(crosses, now + (threshold - potential) / rate, crossed)
        now, potential, peak = until, reached, torch.maximum(peak, reached)
    rate = rate if slope is None else slope
    spike = t_min + (threshold - potential) / rate
    spike = torch.where((rate <= 0) | (spike >= t_max), torch.inf, spike)
    spike = torch.where(potential >= threshold, t_min, spike)
    overflow = potential > threshold
    return Fired(
        spike if gated else torch.minimum(spike, crossed), potential, peak, overflow | (crossed < t_min), overflow
    )
