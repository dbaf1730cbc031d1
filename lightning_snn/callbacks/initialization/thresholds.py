"""Thresholds by which the initialization of a network is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_snn.functional.jacobian import SlopeStatistics

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Band:
    """Range of a quantity that is ok, within a wider range that only warns.

    Args:
        passes: lowest and highest value that are ok.
        warns: lowest and highest value that only warn. Values outside fail, and so does nan.

    Raises:
        ValueError: if the range that passes is not within the range that warns.

    Example:
        >>> Band((0.1, 10.0), (0.01, 100.0)).verdict(20.0)
        'warn'
    """

    passes: tuple[float, float]
    warns: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.warns
        if not low <= self.passes[0] <= self.passes[1] <= high:
            raise ValueError(f"Expected argument `passes` to be a range within {self.warns}, but got {self.passes}")

    def verdict(self, value: float) -> Verdict:
        """Return the verdict on a value."""
        if self.passes[0] <= value <= self.passes[1]:
            return "ok"
        return "warn" if self.warns[0] <= value <= self.warns[1] else "fail"


@dataclass(frozen=True)
class Thresholds:
    """Ranges of the quantities that `InitializationCheck` measures.

    The bands of spiking layers separate networks that learn from the same networks when they are silent or saturated.
    Networks of this library, of snntorch and of SpikingJelly with their default initialization, on digits and events,
    had membrane potentials with a standard deviation of 0.2 to 2.1 thresholds, and hidden rates of 0.0015 to 0.18. With
    weights x 0.01 these were at most 0.02 and 0; with weights x 100 they were at least 85 and about 0.5. Twenty layers
    whose surrogate derivative was too narrow had a gradient ratio of 0.0035.

    The upper limits of membrane potentials follow from training. A 784-100-10 network of snntorch's `Leaky` neurons,
    with its loss on the membranes and its weights and biases x 1, 3, 5, 10, 20, 50, had hidden membranes of standard
    deviation 0.8, 2.2, 3.9, 8.7, 19, 49. After 6 epochs of 1,024 digits its spikes classified 87, 80, 63, 34, 24, 15 %
    of other digits correctly (mean of seeds 0 and 1); with `LIF` and a linear readout 86, 87, 84, 64, 35, 12 %. Layers
    that are silent at first may still learn if their membranes are near the threshold: with weights x 0.05, which fail
    here, the networks reached 80 and 83 %. So `InitializationCheck` lets a trial training decide on failures that a
    network may recover from, unless it has `thresholds` of its own.

    Args:
        smallest_slope: slopes below it warn; slopes of at most 0 fail.
        slope_variation: ratio of standard deviation and mean of slopes, above which they warn.
        spectral_radius: of the Jacobian of a layer with as many neurons as inputs, mean over samples.
        depth_gain: of the product of Jacobians over depth, ||P||_F / sqrt(N).
        gradient_ratio: ratio of the gradient norms of the first and the last weights.
        active_fraction: fraction of active neurons and samples of a ReLU layer.
        firing_rate: spikes per neuron and time step of a spiking layer.
        dead_share: fraction of neurons of a spiking layer that never spike.
        saturated_share: fraction of neurons of a spiking layer that spike in nearly every step.
        membrane_sd: standard deviation of a spiking layer's membrane potentials in units of the threshold.
        spike_gain: of the Jacobian of a spiking layer with respect to the previous one.
    """

    smallest_slope: float = 0.1
    slope_variation: float = 0.5
    spectral_radius: Band = Band((0.8, 1.25), (0.5, 2.0))
    depth_gain: Band = Band((0.1, 10.0), (1e-3, 1e3))
    gradient_ratio: Band = Band((0.1, 10.0), (1e-2, 1e2))
    active_fraction: Band = Band((0.2, 0.8), (0.0, 1.0))
    firing_rate: Band = Band((1e-3, 0.5), (1e-4, 0.8))
    dead_share: Band = Band((0.0, 0.8), (0.0, 0.95))
    saturated_share: Band = Band((0.0, 0.1), (0.0, 0.5))
    membrane_sd: Band = Band((0.1, 3.0), (0.02, 8.0))
    spike_gain: Band = Band((0.1, 10.0), (1e-3, 1e3))

    def slope_verdict(self, slopes: SlopeStatistics) -> Verdict:
        """Return the verdict on the slopes of a layer of neurons that spike at most once."""
        if not slopes.minimum > 0:
            return "fail"
        varied = slopes.std > self.slope_variation * slopes.mean
        return "warn" if varied or slopes.minimum < self.smallest_slope else "ok"
