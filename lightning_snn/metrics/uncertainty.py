"""Entropies and calibration errors as torchmetrics classes.

The functional forms are in `lightning_snn.metrics.functional`. Scores that need all samples store two numbers per
sample until they are reset.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_snn.checks import check_choice, check_integer
from lightning_snn.metrics.functional import (
    accumulation_dtype,
    adaptive_gap,
    mutual_information,
    predictive_entropy,
    smooth_gap,
    top_label,
)
from lightning_snn.metrics.functional.calibration import binned_gap, binned_sums, classwise_gap, classwise_sums
from lightning_snn.metrics.functional.smooth_calibration import KERNELS, Kernel
from lightning_snn.metrics.probability import RunningMean, WideStates
from lightning_snn.metrics.stored import StoredSamples


class PredictiveEntropy(RunningMean):
    """Mean entropy of the predictions, in nats: their total uncertainty.

    H = 1/N sum_n H[p_n], within [0, log C]

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = PredictiveEntropy()
        >>> metric.update(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        >>> metric.compute()
        tensor(0.3466, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = None
    plot_lower_bound = 0.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("predictive_entropy", **kwargs)

    def update(self, probabilities: Tensor) -> None:
        """Add a batch of class probabilities, shape `(N, C)`, in [0, 1].

        Raises:
            ValueError: if the shape is different.
        """
        _check_axes("probabilities", probabilities, "(N, C)", 2)
        self.add(predictive_entropy(probabilities))


class MutualInformation(RunningMean):
    """Mean mutual information of class and model, in nats (BALD): the disagreement of K predictions.

    I = 1/N sum_n (H[mean_k p_kn] - mean_k H[p_kn]), within [0, log min(K, C)] up to rounding

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = MutualInformation()
        >>> metric.update(torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]))
        >>> metric.compute()
        tensor(0.3466, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("mutual_information", **kwargs)

    def update(self, samples: Tensor) -> None:
        """Add a batch of K predictions for each of N inputs: class probabilities, shape `(K, N, C)`, in [0, 1].

        Raises:
            ValueError: if the shape is different, or K is 0.
        """
        _check_axes("samples", samples, "(K, N, C)", 3)
        self.add(mutual_information(samples))


class AdaptiveCalibrationError(StoredSamples):
    """Calibration error of the most probable class, in bins with equal numbers of samples.

    ``AdaECE = sum_b count_b / N |accuracy_b - confidence_b|``, with bins of samples in ascending order of confidence

    Args:
        n_bins: number of bins, at least 1.
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if `n_bins` is outside its range.

    Example:
        >>> metric = AdaptiveCalibrationError(n_bins=2)
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0]])
        >>> metric.update(probabilities, torch.tensor([1, 0, 0, 0]))
        >>> metric.compute()
        tensor(0.0625, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self, n_bins: int = 15, **kwargs: Any) -> None:
        check_integer("n_bins", n_bins)
        super().__init__("confidence", "correct", **kwargs)
        self.n_bins = n_bins

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add a batch: class probabilities, shape `(N, C)`, in [0, 1], and true classes, integers of shape `(N,)`.

        Raises:
            ValueError: if an argument is not as stated above.
        """
        confidence, correct = top_label(probabilities, targets)
        self.confidence.append(confidence.detach())
        self.correct.append(correct)

    def compute(self) -> Tensor:
        """Return the error over all samples so far, a scalar; nan if there was none."""
        confidence, correct = self.joined()
        return adaptive_gap(confidence, correct, self.n_bins)


class ExpectedCalibrationError(WideStates):
    """Expected calibration error of the most probable class, in bins of equal width.

    ``ECE = sum_b count_b / N |accuracy_b - confidence_b|``

    Full confidence belongs to the last bin; see `lightning_snn.metrics.functional.reliability_bins`.

    Args:
        n_bins: number of bins, at least 1.
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if `n_bins` is outside its range.

    Example:
        >>> metric = ExpectedCalibrationError(n_bins=2)
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0], [1.0, 0.0]])
        >>> metric.update(probabilities, torch.tensor([1, 0, 0, 0]))
        >>> metric.compute()
        tensor(0.3750, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    confidence: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self, n_bins: int = 15, **kwargs: Any) -> None:
        check_integer("n_bins", n_bins)
        super().__init__(**kwargs)
        self.n_bins = n_bins
        dtype = accumulation_dtype(torch.device("cpu"))
        self.add_state("confidence", torch.zeros(n_bins, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros(n_bins, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(n_bins, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add a batch: class probabilities, shape `(N, C)`, in [0, 1], and true classes, integers of shape `(N,)`.

        Raises:
            ValueError: if an argument is not as stated above.
        """
        confidence, correct, count = binned_sums(probabilities, targets, self.n_bins)
        self.confidence = self.confidence + confidence.detach()
        self.correct = self.correct + correct
        self.count = self.count + count

    def compute(self) -> Tensor:
        """Return the error over all samples so far, a scalar; nan if there was none."""
        return binned_gap(self.confidence, self.correct, self.count)


class ClasswiseCalibrationError(WideStates):
    """Calibration error of the probability of each class, in bins of equal width, averaged over the classes.

    ``cwECE = 1/C sum_c sum_b count_bc / N |frequency_bc - probability_bc|``

    See `lightning_snn.metrics.functional.classwise_calibration_error`.

    Args:
        num_classes: number of classes C, at least 2.
        n_bins: number of bins of each class, at least 1.
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> metric = ClasswiseCalibrationError(num_classes=2, n_bins=2)
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0], [1.0, 0.0]])
        >>> metric.update(probabilities, torch.tensor([1, 0, 0, 0]))
        >>> metric.compute()
        tensor(0.3750, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    probability: Tensor
    occurrences: Tensor
    count: Tensor

    def __init__(self, num_classes: int, n_bins: int = 15, **kwargs: Any) -> None:
        check_integer("num_classes", num_classes, minimum=2)
        check_integer("n_bins", n_bins)
        super().__init__(**kwargs)
        self.num_classes, self.n_bins = num_classes, n_bins
        zeros = torch.zeros(num_classes, n_bins, dtype=torch.long)
        self.add_state("probability", zeros.to(accumulation_dtype(zeros.device)), dist_reduce_fx="sum")
        self.add_state("occurrences", zeros, dist_reduce_fx="sum")
        self.add_state("count", zeros, dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add a batch: class probabilities, shape `(N, C)`, in [0, 1], and true classes, integers of shape `(N,)`.

        Raises:
            ValueError: if an argument is not as stated above.
        """
        probability, occurrences, count = classwise_sums(probabilities, targets, self.n_bins)
        if len(count) != self.num_classes:
            raise ValueError(
                f"Expected argument `probabilities` to have num_classes = {self.num_classes} columns, "
                f"but got {len(count)}"
            )
        self.probability = self.probability + probability
        self.occurrences = self.occurrences + occurrences
        self.count = self.count + count

    def compute(self) -> Tensor:
        """Return the error over all samples so far, a scalar; nan if there was none."""
        return classwise_gap(self.probability, self.occurrences, self.count)


class SmoothCalibrationError(StoredSamples):
    """Smooth calibration error of the most probable class, with a Gaussian kernel instead of bins.

    ``smECE = s`` where ``s = integral |1/N sum_n K_s(t, confidence_n) (correct_n - confidence_n)| dt``

    See `lightning_snn.metrics.functional.smooth_calibration_error`.

    Args:
        kernel: "reflected", a Gaussian over the confidence, or "logit", one over a quarter of its logit.
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if `kernel` is not one of these.

    Example:
        >>> metric = SmoothCalibrationError()
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0], [1.0, 0.0]])
        >>> metric.update(probabilities, torch.tensor([1, 0, 0, 0]))
        >>> metric.compute()
        tensor(0.3750, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self, kernel: Kernel = "reflected", **kwargs: Any) -> None:
        check_choice("kernel", kernel, KERNELS)
        super().__init__("confidence", "correct", **kwargs)
        self.kernel = kernel

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add a batch: class probabilities, shape `(N, C)`, in [0, 1], and true classes, integers of shape `(N,)`.

        Raises:
            ValueError: if an argument is not as stated above.
        """
        confidence, correct = top_label(probabilities, targets)
        self.confidence.append(confidence.detach())
        self.correct.append(correct)

    def compute(self) -> Tensor:
        """Return the error over all samples so far, a scalar; nan if there was none."""
        confidence, correct = self.joined()
        return smooth_gap(confidence, correct, self.kernel)


def _check_axes(name: str, values: Tensor, shape: str, axes: int) -> None:
    if values.ndim != axes:
        raise ValueError(f"Expected argument `{name}` to be of shape {shape}, but got {tuple(values.shape)}")
