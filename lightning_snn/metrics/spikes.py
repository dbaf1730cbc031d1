"""What spike trains tell: how much neurons fire, how soon, and when the network has made up its mind.

Spikes are tensors `[T, B, ...]` of T time steps, B samples and neurons of any shape; any value but 0 is a spike. Spikes
per neuron and sample are in `lightning_snn.metrics.ttfs`, which counts them in such tensors and in networks of first
spikes alike. Latencies are numbers of time steps that have passed, from 1 to T: what happens in the first step has
taken one.

The functions and the classes of this module measure the same: a class sums over batches and processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_snn.checks import check_choice
from lightning_snn.metrics.functional import Reduction, accumulation_dtype

SATURATED = 0.95  # of the steps: a neuron that spikes in more tells nothing


def firing_rate(spikes: Tensor) -> Tensor:
    """Spikes per neuron and time step.

    r = 1 / (T B N) sum_{t, b, i} 1[s_i^b(t) != 0]

    Args:
        spikes: shape `(T, B, ...)`.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1]; nan if there are no neurons, samples or steps.

    Raises:
        ValueError: if `spikes` has fewer than two axes.

    Example:
        >>> firing_rate(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
        tensor(0.7500, dtype=torch.float64)
    """
    return _ratio(*_spike_counts(spikes))


def spikes_of_neurons(spikes: Tensor) -> Tensor:
    """Spikes of each neuron, summed over time steps and samples.

    Args:
        spikes: shape `(T, B, ...)`.

    Returns:
        Integers of the shape `(...)`.

    Raises:
        ValueError: if `spikes` has fewer than two axes.
    """
    check_spikes(spikes)
    # A byte holds the count of 255 rows. Contiguous bytes are summed some 15 times faster than booleans.
    fired = (spikes != 0).contiguous().flatten(0, 1).view(torch.uint8)
    return torch.stack([rows.sum(0, dtype=torch.uint8) for rows in fired.split(255)]).sum(0)


def first_spike_latency(spikes: Tensor) -> Tensor:
    """Time steps until a neuron's first spike, the mean over neurons and samples that have one.

    l = mean_{b, i} min {t : s_i^b(t) != 0},   t = 1, ..., T

    Neurons that keep silent do not enter: a network that falls silent may seem to be fast.

    Args:
        spikes: shape `(T, B, ...)`.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [1, T]; nan if no neuron spiked.

    Raises:
        ValueError: if `spikes` has fewer than two axes.

    Example:
        >>> first_spike_latency(torch.tensor([[[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]]]))
        tensor(2., dtype=torch.float64)
    """
    return _ratio(*_latency_counts(spikes))


def decision_latency(probabilities: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Time steps after which the most probable class is the final one for good.

    l_b = min {t : argmax_c p_t'^b[c] = argmax_c p_T^b[c] for all t' = t, ..., T},   t = 1, ..., T

    A network that can be read at any step could stop then, if it knew. Whether the final class is right does not
    matter.

    Args:
        probabilities: of the classes after each step, shape `(T, B, C)`, or anything that orders the classes likewise,
            such as logits or summed spikes. Among equals the first class counts.
        reduction: `"mean"` over samples, or `"none"` for one integer a sample.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), or shape `(B,)`, within [1, T]. The mean of no sample is nan.

    Raises:
        ValueError: if an argument is not what is stated above.

    Example:
        >>> decision_latency(torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.3, 0.7]]]))
        tensor(2., dtype=torch.float64)
    """
    check_choice("reduction", reduction, ("mean", "none"))
    if probabilities.dim() != 3 or 0 in (probabilities.shape[0], probabilities.shape[2]):
        raise ValueError(
            "Expected argument `probabilities` to be of shape (T, B, C) with T and C of at least 1, but got "
            f"{tuple(probabilities.shape)}"
        )
    classes = probabilities.argmax(2)
    # the final class, counted from the end for as long as it lasts
    lasting = (classes == classes[-1]).flip(0).long().cumprod(0).sum(0)
    latency = len(classes) - lasting + 1
    return latency.to(accumulation_dtype(latency.device)).mean() if reduction == "mean" else latency


class CountRatio(Metric, ABC):
    """A ratio of two counts, summed over batches and processes as integers.

    Args:
        kwargs: see `torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    plot_lower_bound = 0.0

    count: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # integers, which a module that is cast to another dtype leaves alone
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def add(self, count: Tensor, total: Tensor | int) -> None:
        """Add what was counted, and of how many."""
        self.count = self.count + count
        self.total = self.total + total

    def compute(self) -> Tensor:
        """The ratio over all batches so far, a scalar; nan if there was nothing to count."""
        return _ratio(self.count, self.total)


class TensorCountRatio(CountRatio, ABC):
    """A ratio of two counts that a tensor `[T, B, ...]` gives; see `CountRatio`."""

    @staticmethod
    @abstractmethod
    def counts(values: Tensor) -> tuple[Tensor, Tensor | int]:
        """What is counted, and of how many."""

    def update(self, values: Tensor) -> None:
        """Add a batch, as the class's function takes it.

        Raises:
            ValueError: if it has another shape.
        """
        self.add(*self.counts(values))


class FiringRate(TensorCountRatio):
    """Spikes per neuron and time step, of spikes `[T, B, ...]`; see `firing_rate`.

    Batches may differ in time steps, samples and neurons: each neuron counts at each of its steps alike.

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = FiringRate()
        >>> metric.update(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    plot_upper_bound = 1.0

    @staticmethod
    def counts(values: Tensor) -> tuple[Tensor, int]:
        """Spikes, and neurons times steps times samples."""
        return _spike_counts(values)


class FirstSpikeLatency(TensorCountRatio):
    """Time steps until a neuron's first spike, of spikes `[T, B, ...]`; see `first_spike_latency`.

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = FirstSpikeLatency()
        >>> metric.update(torch.tensor([[[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]]]))
        >>> metric.compute()
        tensor(2., dtype=torch.float64)
    """

    higher_is_better = False

    @staticmethod
    def counts(values: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of latencies, and neurons times samples that spiked."""
        return _latency_counts(values)


class DecisionLatency(TensorCountRatio):
    """Time steps after which the most probable class stays, of probabilities `[T, B, C]`; see `decision_latency`.

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = DecisionLatency()
        >>> metric.update(torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.3, 0.7]]]))
        >>> metric.compute()
        tensor(2., dtype=torch.float64)
    """

    higher_is_better = False

    @staticmethod
    def counts(values: Tensor) -> tuple[Tensor, int]:
        """The sum of latencies, and samples."""
        latency = decision_latency(values, "none")
        return latency.sum(), len(latency)


def check_spikes(spikes: Tensor) -> None:
    """Refuse tensors without axes of time and samples."""
    if spikes.dim() < 2:
        raise ValueError(f"Expected argument `spikes` to be of shape (T, B, ...), but got {tuple(spikes.shape)}")


def _spike_counts(spikes: Tensor) -> tuple[Tensor, int]:
    check_spikes(spikes)
    return torch.count_nonzero(spikes), spikes.numel()


def _latency_counts(spikes: Tensor) -> tuple[Tensor, Tensor]:
    check_spikes(spikes)
    # steps in which there was no spike yet; there are T of them where there never is one
    waited = (spikes == 0).long().cumprod(0).sum(0)
    spiked = waited < len(spikes)
    return ((waited + 1) * spiked).sum(), spiked.sum()


def _ratio(count: Tensor, total: Tensor | int) -> Tensor:
    return count.to(accumulation_dtype(count.device)) / total
