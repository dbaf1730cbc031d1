"""Constraints of hardware on weights and spike times, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_snn.checks import check_between, check_choice
from lightning_snn.functional.quantization import (
    IntegerWeights,
    check_bits,
    check_percentile,
    integer_weights,
    quantize_weight,
    weight_range,
)
from lightning_snn.functional.ttfs import TimeConstraints

WeightRanges = Literal["layer", "channel"]


@dataclass(frozen=True)
class HardwareConstraints:
    """Constraints of a chip on weights and spike times; the defaults do nothing.

    Constraints on weights act on every linear and convolutional layer separately; biases, and so thresholds, keep full
    precision. Constraints on times act on `FirstSpike` neurons and, except for their slopes, on the `SpikeEncoder`.
    Random quantities are drawn in every batch, so training sees many chips, and a measurement is a mean over some.

    Args:
        jitter: standard deviation of spike times, in units of the input window, at least 0.
        jitter_silent: whether jitter acts on silent neurons too, so that some of them spike; for comparison.
        time_bits: bits of spike times, 1 to 16: they are rounded to 2^time_bits instants of their window. None leaves
            them continuous.
        weight_bits: bits of quantized weights, 1 to 16: 2^weight_bits values over their range. None leaves weights
            continuous.
        weight_percentile: percentage of the weights within the range, larger than 50 and at most 100. The others are
            clipped to it.
        weight_ranges: "layer" for one range of weights per layer, or "channel" for one per output channel, as on chips
            that scale the sum of each column. Batch normalization that was merged into the weights makes channels very
            different in size, and the small ones use few values of the range of a layer.
        latency_factor: divisor of the windows, at least 1. Earlier spikes occur at the start of their window.
        slope_mismatch: standard deviation of the slopes of membrane potentials around 1, from 0 to 1.
        weight_noise: standard deviation of weights, as a fraction of the largest magnitude in their range, at least 0.

    Raises:
        ValueError: if an argument is out of range, or depends on another that is not set.

    Example:
        >>> HardwareConstraints(weight_bits=1).weight(torch.tensor([[-1.0, 0.2, 0.6, 1.0]]))
        tensor([[-1.,  1.,  1.,  1.]])
    """

    jitter: float = 0.0
    jitter_silent: bool = False
    time_bits: int | None = None
    weight_bits: int | None = None
    weight_percentile: float = 100.0
    weight_ranges: WeightRanges = "layer"
    latency_factor: float = 1.0
    slope_mismatch: float = 0.0
    weight_noise: float = 0.0

    def __post_init__(self) -> None:
        _ = self.times  # checks its part
        check_between("latency_factor", self.latency_factor, 1, float("inf"))
        check_between("weight_noise", self.weight_noise, 0, float("inf"))
        check_percentile("weight_percentile", self.weight_percentile)
        check_choice("weight_ranges", self.weight_ranges, get_args(WeightRanges))
        if self.weight_bits is not None:
            check_bits("weight_bits", self.weight_bits)
        elif self.weight_percentile != 100:
            raise ValueError("Expected argument `weight_bits` to be set if `weight_percentile` is, but got None")
        if self.weight_ranges != "layer" and not self.on_weights:
            raise ValueError(
                "Expected argument `weight_bits` or `weight_noise` to be set if `weight_ranges` is, but got neither"
            )
        if self.jitter_silent and self.jitter == 0:
            raise ValueError("Expected argument `jitter` to be larger than 0 if `jitter_silent` is set, but got 0")

    @property
    def times(self) -> TimeConstraints:
        """Constraints that time-to-first-spike neurons apply themselves."""
        return TimeConstraints(self.jitter, self.jitter_silent, self.time_bits, self.slope_mismatch)

    @property
    def on_times(self) -> list[str]:
        """Names of the constraints on spike times that are set."""
        names, neutral = ("jitter", "time_bits", "latency_factor", "slope_mismatch"), HardwareConstraints
        return [name for name in names if getattr(self, name) != getattr(neutral, name)]

    @property
    def on_weights(self) -> list[str]:
        """Names of the constraints on weights that are set."""
        names, neutral = ("weight_bits", "weight_noise"), HardwareConstraints
        return [name for name in names if getattr(self, name) != getattr(neutral, name)]

    def weight(self, weight: Tensor, channel_dimension: int = 0) -> Tensor:
        """Return the weights that a chip uses instead of a layer's weights: quantized, then noisy.

        Args:
            weight: weight of a layer.
            channel_dimension: dimension of the weight that is the output channels.
        """
        dimension = channel_dimension if self.weight_ranges == "channel" else None
        if self.weight_bits is not None:
            weight = quantize_weight(weight, self.weight_bits, self.weight_percentile, dimension)
        if self.weight_noise > 0:
            low, high = weight_range(weight, channel_dimension=dimension)
            weight = weight + self.weight_noise * torch.maximum(-low, high) * torch.randn_like(weight)
        return weight

    def integers(self, weight: Tensor, channel_dimension: int = 0) -> IntegerWeights:
        """Return the integers that a chip stores for a layer's weights.

        Args:
            weight: weight of a layer.
            channel_dimension: dimension of the weight that is the output channels.

        Raises:
            ValueError: if `weight_bits` is not set.
        """
        if self.weight_bits is None:
            raise ValueError("Expected argument `constraints` to have `weight_bits` for an export, but got None")
        dimension = channel_dimension if self.weight_ranges == "channel" else None
        return integer_weights(weight, self.weight_bits, self.weight_percentile, dimension)
