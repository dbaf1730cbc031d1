"""What hardware does to weights and spike times, as plain data."""

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
    """What a chip does to weights and spike times; the defaults do nothing.

    Weights are those of every linear and convolutional layer, each layer by itself; biases, that is thresholds, keep
    full precision. Times are those of `FirstSpike` neurons and, but for their slopes, of the `SpikeEncoder`. What is
    random is drawn anew with every batch: training meets many chips, and a measurement is the mean over some.

    Args:
        jitter: standard deviation of spike times, in units of the input window, at least 0.
        jitter_silent: whether silent neurons are jittered too, so that some of them spike; for comparison.
        time_bits: spike times are rounded to 2^time_bits instants of their window, 1 to 16; None leaves them
            continuous.
        weight_bits: weights are rounded to 2^weight_bits levels over their range, 1 to 16; None leaves them continuous.
        weight_percentile: percentage of the weights that make up a range, larger than 50 and at most 100; the others
            are clipped to it.
        weight_ranges: whether a "layer" has one range of weights, or each output "channel" of it one of its own, as
            chips have that scale the sum of every column. Batch normalization that went into the weights leaves
            channels of very different sizes, of which the small ones get few levels of a range of the layer.
        latency_factor: what windows are divided by, at least 1. Spikes that would come before their window come as it
            begins.
        slope_mismatch: standard deviation of the slopes of membrane potentials around 1, from 0 to 1.
        weight_noise: standard deviation of weights, as a fraction of the largest magnitude among those of one range,
            at least 0.

    Raises:
        ValueError: if an argument is outside its range, or refines another that is not set.
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
        _ = self.times  # which checks its part
        check_between("latency_factor", self.latency_factor, 1, float("inf"))
        check_between("weight_noise", self.weight_noise, 0, float("inf"))
        check_percentile("weight_percentile", self.weight_percentile)
        check_choice("weight_ranges", self.weight_ranges, get_args(WeightRanges))
        if self.weight_bits is not None:
            check_bits("weight_bits", self.weight_bits)
        elif self.weight_percentile != 100:
            raise ValueError("Expected argument `weight_bits` to be set where `weight_percentile` is, but got None")
        if self.weight_ranges != "layer" and not self.on_weights:
            raise ValueError(
                "Expected argument `weight_bits` or `weight_noise` to be set where `weight_ranges` is, but got neither"
            )
        if self.jitter_silent and self.jitter == 0:
            raise ValueError("Expected argument `jitter` to be larger than 0 where `jitter_silent` is set, but got 0")

    @property
    def times(self) -> TimeConstraints:
        """The part that neurons of time to first spike apply themselves."""
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
        """What a chip computes with instead of a layer's weights: they are quantized, then noisy.

        Args:
            weight: of a layer.
            channel_dimension: of the weight, that of the output channels.
        """
        dimension = channel_dimension if self.weight_ranges == "channel" else None
        if self.weight_bits is not None:
            weight = quantize_weight(weight, self.weight_bits, self.weight_percentile, dimension)
        if self.weight_noise > 0:
            low, high = weight_range(weight, channel_dimension=dimension)
            weight = weight + self.weight_noise * torch.maximum(-low, high) * torch.randn_like(weight)
        return weight

    def integers(self, weight: Tensor, channel_dimension: int = 0) -> IntegerWeights:
        """What a chip stores of a layer's weights.

        Args:
            weight, channel_dimension: as for `weight`.

        Raises:
            ValueError: if `weight_bits` is not set.
        """
        if self.weight_bits is None:
            raise ValueError("Expected argument `constraints` to have weight_bits for an export, but got None")
        dimension = channel_dimension if self.weight_ranges == "channel" else None
        return integer_weights(weight, self.weight_bits, self.weight_percentile, dimension)
