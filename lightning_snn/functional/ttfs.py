r"""Time to first spike (TTFS): two-phase integrate-and-fire neurons in closed form, without time steps.

A layer has a window from :math:`t_\min` to :math:`t_\max = t_\min + \Delta`. The windows of successive layers follow
each other without gaps. A value is coded as the remaining time :math:`\hat x = t_\max - t \ge 0`: early spikes are
large values, and silence is 0. During the window of its inputs, of length :math:`\Delta'`, a neuron integrates ramps;
then its membrane potential rises with slope B:

.. math:: \dot V = A + \sum_j W_j H(t - t_j) \;\text{ before } t_\min, \quad \dot V = B \;\text{ from } t_\min, \quad
    V(t_\min) = A \Delta' + \sum_j W_j \hat x_j.

It fires once, when V reaches the threshold :math:`\theta`, and not before :math:`t_\min`:

.. math:: t = \min(t_\min + (\theta - V(t_\min)) / B, t_\max), \quad
    \hat x = \max(0, \sum_j w_j \hat x_j + b), \quad w = W / B, \quad b = \Delta + (A \Delta' - \theta) / B.

With ``A = 0``, ``B = 1`` and :math:`\theta = \Delta - D`, the values and gradients are those of a ReLU layer with
weights W and bias D, for any window. The membrane potential decides which neurons spike, not the spike time, because
near :math:`t_\max` rounded times are ambiguous. A potential, slope or time of NaN gives NaN, never silence.

After Stanojevic et al. 2024, arXiv 2306.08744. Our extensions are the gate at :math:`t_\min` and the option to jitter
only emitted spikes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_snn.checks import check_between, check_integer
from lightning_snn.functional.quantization import MAX_BITS, quantize_to_steps
from lightning_snn.functional.scalars import value_like

Overflow = Literal["pass", "clip", "error"]
OVERFLOWS: tuple[Overflow, ...] = ("pass", "clip", "error")


@dataclass(frozen=True)
class TimeConstraints:
    """Hardware effects on spike times.

    Attributes:
        jitter: standard deviation of the noise on spike times, in units of the input window, at least 0.
        jitter_silent: whether silent neurons are jittered too, so half of them spike late in the window.
        time_bits: number of bits, 1 to 16, of spike times, which are rounded to 2^time_bits instants of their window,
            including both ends; None for continuous times.
        slope_mismatch: standard deviation of the slope B of a neuron around 1, from 0 to 1. All samples of a batch
            share the slopes; each batch draws new ones, as for a different device.
        time_steps: number of equal steps of a window, from 1, to whose ends spike times are rounded; None as for
            `time_bits`, which is ``time_steps=2**time_bits - 1``. At most one of the two.

    Raises:
        ValueError: if an attribute is outside its range, or both `time_bits` and `time_steps` are set.
    """

    jitter: float = 0.0
    jitter_silent: bool = False
    time_bits: int | None = None
    slope_mismatch: float = 0.0
    time_steps: int | None = None

    def __post_init__(self) -> None:
        check_between("jitter", self.jitter, 0, float("inf"))
        if self.time_bits is not None:
            check_integer("time_bits", self.time_bits)
            check_between("time_bits", self.time_bits, 1, MAX_BITS)
        check_between("slope_mismatch", self.slope_mismatch, 0, 1)
        if self.time_steps is not None:
            check_integer("time_steps", self.time_steps)
            check_between("time_steps", self.time_steps, 1, 2**MAX_BITS - 1)
            if self.time_bits is not None:
                raise ValueError(
                    "Expected at most one of the arguments `time_bits` and `time_steps`, but got "
                    f"{self.time_bits} and {self.time_steps}. Leave one of them out"
                )

    @property
    def steps(self) -> int | None:
        """Steps of a window, of `time_steps` or of `time_bits`; None for continuous times."""
        return self.time_steps if self.time_bits is None else 2**self.time_bits - 1

    @property
    def active(self) -> bool:
        """True if any constraint changes spike times."""
        return self.jitter > 0 or self.steps is not None or self.slope_mismatch > 0


def spike_times(
    potential: Tensor,
    threshold: Tensor | float,
    slope: Tensor | float = 1.0,
    window: Tensor | float = 1.0,
    t_min: Tensor | float = 0.0,
) -> Tensor:
    r"""Compute first spike times, :math:`t = \min(t_\min + (\theta - V) / B, t_\max)`.

    Args:
        potential: membrane potential V at `t_min`, any shape.
        threshold: :math:`\theta`, broadcasts to `potential`.
        slope: B, broadcasts to `potential`; neurons with ``B <= 0`` stay silent.
        window: length :math:`\Delta` of the window, larger than 0.
        t_min: start of the window.

    Returns:
        spike times of the shape and dtype of `potential`. For silent neurons, they are exactly `t_max` with a gradient
        of 0. Times before `t_min` are not clipped. NaN gives NaN.

    Example:
        >>> spike_times(torch.tensor([0.75, -0.5]), threshold=1.0, window=1.0)
        tensor([0.2500, 1.0000])
    """
    window, t_min, slope = (value_like(value, potential) for value in (window, t_min, slope))
    # conditions are those of silence, because all comparisons with NaN are false
    silent = (potential + slope * window <= threshold) | (slope <= 0)
    times = t_min + (threshold - potential) / torch.where(slope <= 0, 1, slope)
    t_max = t_min + window
    # rounding may move an emitted spike past t_max
    return torch.where(silent | (times >= t_max), t_max, times)


def remaining_time(
    potential: Tensor,
    threshold: Tensor | float,
    slope: Tensor | float = 1.0,
    window: Tensor | float = 1.0,
) -> Tensor:
    r"""Compute the time from the spike to the end of the window, :math:`\hat x = \max(0, (V + B \Delta - \theta) / B)`.

    Args:
        potential: membrane potential V at the start of the window, any shape.
        threshold: :math:`\theta`, broadcasts to `potential`.
        slope: B, broadcasts to `potential`; neurons with ``B <= 0`` stay silent.
        window: length :math:`\Delta` of the window, larger than 0.

    Returns:
        remaining times of the shape and dtype of `potential`, 0 for silent neurons and NaN for NaN.

    Example:
        >>> remaining_time(torch.tensor([0.75, -0.5]), threshold=1.0, window=1.0)
        tensor([0.7500, 0.0000])
    """
    slope = value_like(slope, potential)
    excess = torch.relu(potential + slope * window - threshold)
    return torch.where(slope <= 0, 0, excess / torch.where(slope <= 0, 1, slope))


def relu_from_two_phase(
    weight: Tensor,
    threshold: Tensor,
    slope_before: Tensor | float,
    slope: Tensor,
    window: Tensor | float,
    previous_window: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Convert two-phase neurons to a ReLU layer, ``w = W / B``, ``b = window + (A previous_window - theta) / B``.

    Args:
        weight: W, shape `[out, ...]`.
        threshold: theta, shape `[out]`.
        slope_before: A, a number or of shape `[out]`.
        slope: B, shape `[out]`, larger than 0.
        window: length of the neurons' window.
        previous_window: length of the window of their inputs.

    Returns:
        weight w `[out, ...]` and bias b `[out]`.

    Example:
        >>> weight, threshold, slope = torch.tensor([[4.0]]), torch.tensor([3.0]), torch.tensor([2.0])
        >>> relu_from_two_phase(weight, threshold, 1.0, slope, window=2.0, previous_window=1.0)
        (tensor([[2.]]), tensor([1.]))
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
    """Convert a ReLU layer to two-phase neurons, ``W = B w``, ``theta = B (window - b) + A previous_window``.

    This is the inverse of `relu_from_two_phase`.

    Args:
        weight: w, shape `[out, ...]`.
        bias: b, shape `[out]`.
        slope_before: A, a number or of shape `[out]`.
        slope: B, shape `[out]`, larger than 0.
        window: length of the neurons' window.
        previous_window: length of the window of their inputs.

    Returns:
        synaptic weights W `[out, ...]` and thresholds theta `[out]`.

    Example:
        >>> weight, bias, slope = torch.tensor([[2.0]]), torch.tensor([1.0]), torch.tensor([2.0])
        >>> two_phase_from_relu(weight, bias, 1.0, slope, window=2.0, previous_window=1.0)
        (tensor([[4.]]), tensor([3.]))
    """
    per_neuron = slope.view(-1, *(1,) * (weight.dim() - 1))
    return weight * per_neuron, slope * (window - bias) + slope_before * previous_window


def jitter_times(times: Tensor, t_max: Tensor, sigma: float, emitted: Tensor | None = None) -> Tensor:
    r"""Add noise to spike times, :math:`t + \mathcal N(0, \sigma^2)`; spikes after `t_max` are dropped.

    Args:
        times: spike times; `t_max` for silent neurons.
        t_max: end of the window.
        sigma: standard deviation, in units of time; with 0, no random numbers are drawn.
        emitted: mask of the neurons that spiked; the others stay silent. None adds noise to all.

    Returns:
        spike times of the same shape, at most `t_max`. Noise is from torch's default generator.
    """
    if sigma == 0:
        return times
    noisy = times + sigma * torch.randn_like(times)
    late = noisy >= t_max  # false for NaN
    return torch.where(late if emitted is None else late | ~emitted, t_max, noisy)


def round_times(times: Tensor, window: Tensor | float, steps: int) -> Tensor:
    """Round times to the ends of equal steps of their window: ``steps + 1`` instants.

    Args:
        times: times since the start of the window; times outside the window are moved to its ends.
        window: length of the window.
        steps: number of steps, from 1 to 2^16 - 1; ``2^bits - 1`` for times of some bits.

    Returns:
        rounded times; those within the window change by at most ``window / (2 steps)``. The gradient is 1 within the
        window and 0 outside.

    Raises:
        ValueError: if `steps` is outside its range.

    Example:
        >>> round_times(torch.tensor([0.3, 0.8]), window=1.0, steps=3)
        tensor([0.3333, 0.6667])
    """
    return quantize_to_steps(times, steps, 0.0, window)


def through_time(
    current: Tensor,
    window: Tensor,
    t_min: Tensor | float = 0.0,
    overflow: Overflow = "pass",
    constraints: TimeConstraints | None = None,
) -> Tensor:
    r"""Compute remaining times from spike times, for neurons of unit slope: :math:`t = t_\min + \Delta - u`.

    Hardware effects change the spike times, in this order: clip at `t_min` (``overflow="clip"``), jitter, rounding.
    Spike times are computed in float32 or wider.

    Args:
        current: u, integrated input current plus offset D of the threshold, shape `[B, ...]`; neurons spike if it is
            positive.
        window: length :math:`\Delta` of the window, a scalar.
        t_min: start of the window.
        overflow: "clip" moves spikes before `t_min` to `t_min`, with a gradient of 0; other values keep their time.
        constraints: hardware effects on spike times; None for ideal hardware.

    Returns:
        remaining times of the shape and dtype of `current`, at least 0.

    Example:
        >>> through_time(torch.tensor([[0.25, -0.5, 1.5]]), torch.tensor(1.0), overflow="clip")
        tensor([[0.2500, 0.0000, 1.0000]])
    """
    dtype = current.dtype
    current = current.to(torch.promote_types(dtype, torch.float32))
    # in one dtype, rounding keeps the order of times, so none is later than t_max
    window = window.to(current.dtype)
    start = t_min.to(current.dtype) if isinstance(t_min, Tensor) else t_min
    t_max = start + window
    if constraints is None or constraints.slope_mismatch == 0:
        # theta - V = window - u, and at most the window: cut at u = 0, where rounded times do not affect the mask
        remaining = torch.relu(current)
    else:
        noise = torch.randn(current.shape[1:], dtype=current.dtype, device=current.device)
        slope = 1 + constraints.slope_mismatch * noise
        remaining = remaining_time(current, window, slope, window)
    times = start + (window - remaining)
    if overflow == "clip":
        times = _clip_start(start, times)
    if constraints is not None:
        emitted = None if constraints.jitter_silent else remaining != 0
        times = jitter_times(times, t_max, constraints.jitter, emitted)
        if overflow == "clip":
            # spikes that arrive before the receivers integrate count from the start of integration
            times = _clip_start(start, times)
        if constraints.steps is not None:
            times = start + round_times(times - start, window, constraints.steps)
    return (t_max - times).to(dtype)


def _clip_start(start: Tensor | float, times: Tensor) -> Tensor:
    # at equality the constant, with its gradient of 0; NaN stays NaN
    return torch.where(times <= start, start, times)
