r"""Time to first spike: the two-phase integrate-and-fire neuron in closed form, without time stepping.

A layer owns a window from :math:`t_\min` to :math:`t_\max = t_\min + \Delta`; the windows of successive layers tile
time. A value is coded as remaining time :math:`\hat x = t_\max - t \ge 0`: early spikes are large values, silence is 0.
While the window of its inputs lasts, of length :math:`\Delta'`, a neuron integrates ramps; then its membrane rises with
slope B:

.. math:: \dot V = A + \sum_j W_j H(t - t_j) \;\text{ before } t_\min, \quad \dot V = B \;\text{ from } t_\min, \quad
    V(t_\min) = A \Delta' + \sum_j W_j \hat x_j.

It fires once, where V meets the threshold :math:`\theta`, and not before :math:`t_\min`:

.. math:: t = \min(t_\min + (\theta - V(t_\min)) / B, t_\max), \quad
    \hat x = \max(0, \sum_j w_j \hat x_j + b), \quad w = W / B, \quad b = \Delta + (A \Delta' - \theta) / B.

With ``A = 0``, ``B = 1`` and :math:`\theta = \Delta - D` this is a ReLU layer with weights W and bias D whatever the
window, with its gradients. Which neurons spike is read from the membrane potential, never from rounded times: near
:math:`t_\max` a rounded time cannot tell.

After Stanojevic et al. 2024, arXiv 2306.08744; the gate at :math:`t_\min` and jitter of emitted spikes only are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_snn.checks import check_between, check_integer
from lightning_snn.functional.quantization import MAX_BITS, quantize

Overflow = Literal["pass", "clip", "error"]
OVERFLOWS: tuple[Overflow, ...] = ("pass", "clip", "error")


@dataclass(frozen=True)
class TimeConstraints:
    """What hardware does to spike times.

    Attributes:
        jitter: standard deviation of the noise on spike times, in units of the input window, at least 0.
        jitter_silent: whether silent neurons are jittered too, so that half of them spike late in the window.
        time_bits: spike times are rounded to 2^time_bits instants of their window, both ends included, 1 to 16; None
            leaves them continuous.
        slope_mismatch: standard deviation of the slope B of a neuron around 1, from 0 to 1. Slopes are drawn anew for
            every batch, that is for another device, and shared by its samples.

    Raises:
        ValueError: if an attribute is outside its range.
    """

    jitter: float = 0.0
    jitter_silent: bool = False
    time_bits: int | None = None
    slope_mismatch: float = 0.0

    def __post_init__(self) -> None:
        check_between("jitter", self.jitter, 0, float("inf"))
        if self.time_bits is not None:
            check_integer("time_bits", self.time_bits)
            check_between("time_bits", self.time_bits, 1, MAX_BITS)
        check_between("slope_mismatch", self.slope_mismatch, 0, 1)

    @property
    def active(self) -> bool:
        """Whether any of them changes spike times."""
        return self.jitter > 0 or self.time_bits is not None or self.slope_mismatch > 0


def spike_times(
    potential: Tensor,
    threshold: Tensor | float,
    slope: Tensor | float = 1.0,
    window: Tensor | float = 1.0,
    t_min: Tensor | float = 0.0,
) -> Tensor:
    r"""When neurons first spike, :math:`t = \min(t_\min + (\theta - V) / B, t_\max)`.

    Args:
        potential: membrane potential V at `t_min`, any shape.
        threshold: :math:`\theta`, broadcasts to `potential`.
        slope: B, broadcasts to `potential`; neurons with ``B <= 0`` stay silent.
        window: length :math:`\Delta` of the window, larger than 0.
        t_min: begin of the window.

    Returns:
        spike times of the shape and dtype of `potential`; silent neurons have `t_max` to the last bit and a gradient of
        0. Times before `t_min` are not clipped.
    """
    window, t_min = (
        torch.as_tensor(value, dtype=potential.dtype, device=potential.device) for value in (window, t_min)
    )
    slope = torch.as_tensor(slope, dtype=potential.dtype, device=potential.device)
    emitted = (potential + slope * window > threshold) & (slope > 0)
    times = t_min + (threshold - potential) / torch.where(slope > 0, slope, 1)
    t_max = t_min + window
    # rounding may carry an emitted spike past t_max
    return torch.where(emitted, torch.where(times < t_max, times, t_max), t_max)


def remaining_time(
    potential: Tensor,
    threshold: Tensor | float,
    slope: Tensor | float = 1.0,
    window: Tensor | float = 1.0,
) -> Tensor:
    r"""What is left of the window when neurons spike, :math:`\hat x = \max(0, (V + B \Delta - \theta) / B)`.

    Args:
        potential: membrane potential V at the begin of the window, any shape.
        threshold, slope, window: as in `spike_times`.

    Returns:
        remaining times of the shape and dtype of `potential`, 0 for silent neurons.
    """
    slope = torch.as_tensor(slope, dtype=potential.dtype, device=potential.device)
    excess = torch.relu(potential + slope * window - threshold)
    return torch.where(slope > 0, excess / torch.where(slope > 0, slope, 1), 0)


def relu_from_two_phase(
    weight: Tensor,
    threshold: Tensor,
    slope_before: Tensor | float,
    slope: Tensor,
    window: Tensor | float,
    previous_window: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """The ReLU layer that two-phase neurons compute, ``w = W / B``, ``b = window + (A previous_window - theta) / B``.

    Args:
        weight: W, shape `[out, ...]`.
        threshold: theta, shape `[out]`.
        slope_before: A, a number or of shape `[out]`.
        slope: B, shape `[out]`, larger than 0.
        window: length of the neurons' window.
        previous_window: length of the window of their inputs.

    Returns:
        weight `[out, ...]` and bias `[out]`.
    """
    per_neuron = slope.view(-1, *(1,) * (weight.dim() - 1))
    return weight / per_neuron, window + (slope_before * previous_window - threshold) / slope


def two_phase_from_relu(
    weight: Tensor,
    bias: Tensor,
    slope_before: Tensor | float,
    slope: Tensor,
    window: Tensor | float,
    previous_window: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """The inverse of `relu_from_two_phase`: ``W = B w``, ``theta = B (window - b) + A previous_window``.

    Args:
        weight: w, shape `[out, ...]`.
        bias: b, shape `[out]`.
        slope_before, slope, window, previous_window: as in `relu_from_two_phase`.

    Returns:
        efficacies `[out, ...]` and thresholds `[out]`.
    """
    per_neuron = slope.view(-1, *(1,) * (weight.dim() - 1))
    return weight * per_neuron, slope * (window - bias) + slope_before * previous_window


def jitter_times(times: Tensor, t_max: Tensor, sigma: float, emitted: Tensor | None = None) -> Tensor:
    r"""Spike times with noise, :math:`t + \mathcal N(0, \sigma^2)`; what falls behind `t_max` is no spike.

    Args:
        times: spike times, `t_max` where a neuron is silent.
        t_max: end of the window.
        sigma: standard deviation, in units of time; 0 draws nothing.
        emitted: which neurons spiked; the others stay silent. None jitters all.

    Returns:
        spike times of the same shape, at most `t_max`; noise is from torch's generator.
    """
    if sigma == 0:
        return times
    noisy = times + sigma * torch.randn_like(times)
    spikes = noisy < t_max if emitted is None else (noisy < t_max) & emitted
    return torch.where(spikes, noisy, t_max)


def round_times(times: Tensor, window: Tensor | float, bits: int) -> Tensor:
    """Times since the begin of their window, rounded to 2^bits instants of it, both ends included.

    Args:
        times: times since the begin of the window; those outside of it are moved to its ends.
        window: length of the window.
        bits: 1 to 16.

    Returns:
        times on the grid, at most ``window / (2 (2^bits - 1))`` away; the gradient is that of the identity within the
        window and 0 outside.

    Raises:
        ValueError: if `bits` is outside its range.
    """
    return quantize(times, bits, 0.0, window)


def through_time(
    drive: Tensor,
    window: Tensor,
    t_min: Tensor | float = 0.0,
    overflow: Overflow = "pass",
    constraints: TimeConstraints | None = None,
) -> Tensor:
    r"""Remaining times by way of spike times, for neurons of unit slope: :math:`t = t_\min + \Delta - u`.

    Everything that hardware does to a spike is done to its time: the clip at `t_min` (``overflow="clip"``), jitter,
    rounding, in this order. Times are of the drive's dtype, in float32 or wider.

    Args:
        drive: u, membrane potential at `t_min` plus threshold offset D, shape `[B, ...]`; positive means a spike.
        window: length of the window, a scalar.
        t_min: begin of the window.
        overflow: "clip" moves spikes before `t_min` to it, with a gradient of 0; else they keep their time.
        constraints: what hardware does to spike times.

    Returns:
        remaining times of the drive's shape and dtype, at least 0.
    """
    narrow = drive.dtype
    drive = drive.to(torch.promote_types(narrow, torch.float32))
    # in one dtype rounding keeps the order of times, so that none is later than t_max
    window = window.to(drive.dtype)
    begin = t_min.to(drive.dtype) if isinstance(t_min, Tensor) else t_min
    t_max = begin + window
    if constraints is None or constraints.slope_mismatch == 0:
        # theta - V = window - u, and at most the window: cut at u = 0, where no rounded time can mislead the mask
        remaining = torch.relu(drive)
    else:
        noise = torch.randn(drive.shape[1:], dtype=drive.dtype, device=drive.device)
        slope = 1 + constraints.slope_mismatch * noise
        remaining = remaining_time(drive, window, slope, window)
    times = begin + (window - remaining)
    if overflow == "clip":
        times = _not_before(begin, times)
    if constraints is not None:
        emitted = None if constraints.jitter_silent else remaining > 0
        times = jitter_times(times, t_max, constraints.jitter, emitted)
        if overflow == "clip":
            # what arrives before the receivers integrate counts from when they begin
            times = _not_before(begin, times)
        if constraints.time_bits is not None:
            times = begin + round_times(times - begin, window, constraints.time_bits)
    return (t_max - times).to(narrow)


def _not_before(begin: Tensor | float, times: Tensor) -> Tensor:
    # at equality the constant, with its gradient of 0
    return torch.where(times > begin, times, begin)
