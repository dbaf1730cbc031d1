"""Firing rate, first-spike latency and decision latency of spike trains.

Spikes are tensors `[T, B, ...]` of T time steps, B samples and neurons of any shape; any nonzero value is a spike.
Spikes per neuron and sample are in `lightning_snn.metrics.ttfs`, which counts them in such tensors and in
time-to-first-spike networks. Latencies are numbers of time steps, from 1 to T: an event in the first step has latency
1.

Each class computes the same value as its function, over all batches and processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_snn.checks import check_choice
from lightning_snn.metrics.functional import Reduction, accumulation_dtype, check_numbers


def firing_rate(spikes: Tensor) -> Tensor:
    """Compute the spikes per neuron and time step.

    r = 1 / (T B N) sum_{t, b, i} 1[s_i^b(t) != 0]

    Args:
        spikes: shape `(T, B, ...)`.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1]; nan if there are no neurons, samples or steps.

    Raises:
        ValueError: if `spikes` has fewer than two axes, or a spike is nan.

    Example:
        >>> firing_rate(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
        tensor(0.7500, dtype=torch.float64)
    """
    return _ratio(*_spike_counts(spikes))


def spikes_of_neurons(spikes: Tensor) -> Tensor:
    """Count the spikes of each neuron over time steps and samples.

    Args:
        spikes: shape `(T, B, ...)`.

    Returns:
        Integers of shape `(...)`.

    Raises:
        ValueError: if `spikes` has fewer than two axes, or a spike is nan.

    Example:
        >>> spikes_of_neurons(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
        tensor([2, 1])
    """
    check_spikes(spikes)
    # A byte can hold the count of 255 rows. Contiguous bytes are summed about 15 times faster than booleans.
    fired = (spikes != 0).contiguous().flatten(0, 1).view(torch.uint8)
    return torch.stack([rows.sum(0, dtype=torch.uint8) for rows in fired.split(255)]).sum(0)


def first_spike_latency(spikes: Tensor) -> Tensor:
    """Compute the mean number of time steps until a neuron's first spike.

    l = mean_{b, i} min {t : s_i^b(t) != 0},   t = 1, ..., T

    Neurons without a spike are excluded, so the latency of a nearly silent network may be misleadingly small.

    Args:
        spikes: shape `(T, B, ...)`.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [1, T]; nan if no neuron spiked.

    Raises:
        ValueError: if `spikes` has fewer than two axes, or a spike is nan.

    Example:
        >>> first_spike_latency(torch.tensor([[[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]]]))
        tensor(2., dtype=torch.float64)
    """
    return _ratio(*_latency_counts(spikes))


def decision_latency(probabilities: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute the number of time steps after which the predicted class no longer changes.

    l_b = min {t : argmax_c p_t'^b[c] = argmax_c p_T^b[c] for all t' = t, ..., T},   t = 1, ..., T

    An ideal early exit would stop the network at this step. The final class need not be the true one.

    Args:
        probabilities: class probabilities after each step, shape `(T, B, C)`, or any scores with the same order of
            classes, such as logits or summed spikes. Ties go to the first class.
        reduction: `"mean"` over samples, or `"none"` for one integer per sample.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), or shape `(B,)`, within [1, T]. The mean is nan if there
        is no sample.

    Raises:
        ValueError: if an argument is not as stated above.

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
    check_numbers("probabilities", probabilities)
    classes = probabilities.argmax(2)
    # number of steps at the end during which the class is the final one
    lasting = (classes == classes[-1]).flip(0).long().cumprod(0).sum(0)
    latency = len(classes) - lasting + 1
    return latency.to(accumulation_dtype(latency.device)).mean() if reduction == "mean" else latency


class CountRatio(Metric, ABC):
    """Ratio of two counts, both summed as integers over batches and processes.

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
        # Integers do not change when a module that holds this metric is cast to another dtype.
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def add(self, count: Tensor, total: Tensor | int) -> None:
        """Add to the numerator and to the denominator."""
        self.count = self.count + count
        self.total = self.total + total

    def compute(self) -> Tensor:
        """Return the ratio over all batches so far, a scalar; nan if the denominator is 0."""
        return _ratio(self.count, self.total)


class TensorCountRatio(CountRatio, ABC):
    """Ratio of two counts that are computed from a tensor `[T, B, ...]`; see `CountRatio`."""

    @staticmethod
    @abstractmethod
    def counts(values: Tensor) -> tuple[Tensor, Tensor | int]:
        """Return the numerator and the denominator."""

    def update(self, values: Tensor) -> None:
        """Add a batch; see the function of the same name for its shape.

        Raises:
            ValueError: if the shape is different, or a value is nan.
        """
        self.add(*self.counts(values))


class FiringRate(TensorCountRatio):
    """Spikes per neuron and time step of spike trains `[T, B, ...]`; see `firing_rate`.

    Batches may differ in time steps, samples and neurons. Each step of each neuron has the same weight.

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
        """Return the number of spikes, and neurons times steps times samples."""
        return _spike_counts(values)


class FirstSpikeLatency(TensorCountRatio):
    """Mean number of time steps until a neuron's first spike, for spikes `[T, B, ...]`; see `first_spike_latency`.

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
        """Return the sum of latencies, and the number of neurons and samples with a spike."""
        return _latency_counts(values)


class DecisionLatency(TensorCountRatio):
    """Mean number of time steps after which the predicted class no longer changes; see `decision_latency`.

    `update` takes class probabilities `[T, B, C]`.

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
        """Return the sum of latencies, and the number of samples."""
        latency = decision_latency(values, "none")
        return latency.sum(), len(latency)


def check_spikes(spikes: Tensor) -> None:
    """Check for axes of time and samples, and for numbers.

    Raises:
        ValueError: if `spikes` has fewer than two axes, or a spike is nan.
    """
    if spikes.dim() < 2:
        raise ValueError(f"Expected argument `spikes` to be of shape (T, B, ...), but got {tuple(spikes.shape)}")
    check_numbers("spikes", spikes)


def _spike_counts(spikes: Tensor) -> tuple[Tensor, int]:
    check_spikes(spikes)
    return torch.count_nonzero(spikes), spikes.numel()


def _latency_counts(spikes: Tensor) -> tuple[Tensor, Tensor]:
    check_spikes(spikes)
    # number of steps before the first spike; T without a spike
    waited = (spikes == 0).long().cumprod(0).sum(0)
    spiked = waited < len(spikes)
    return ((waited + 1) * spiked).sum(), spiked.sum()


def _ratio(count: Tensor, total: Tensor | int) -> Tensor:
    return count.to(accumulation_dtype(count.device)) / total
