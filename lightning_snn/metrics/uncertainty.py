"""Scores of a prediction's uncertainty as torchmetrics classes.

The functional forms are in `lightning_snn.metrics.functional`. Scores that rank all samples store one or two numbers
per sample until they are reset.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_snn.checks import check_integer
from lightning_snn.metrics.functional import (
    accumulation_dtype,
    adaptive_gap,
    area_under_risk_coverage,
    mutual_information,
    ood_auroc,
    predictive_entropy,
    top_label,
)
from lightning_snn.metrics.functional.calibration import binned_gap, binned_sums
from lightning_snn.metrics.probability import RunningMean, WideStates
from lightning_snn.processes import gather_parts


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


class AdaptiveCalibrationError(Metric):
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
        super().__init__(**{"dist_sync_fn": gather_parts, **kwargs})
        self.n_bins = n_bins
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

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
        return adaptive_gap(_joined(self.confidence), _joined(self.correct), self.n_bins)


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


class AreaUnderRiskCoverage(Metric):
    """Area under the risk-coverage curve of a predictor that answers only its most certain samples.

    AURC = 1/N sum_k risk_k, where risk_k is the mean error of the k most certain samples

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = AreaUnderRiskCoverage()
        >>> metric.update(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([False, False, True]))
        >>> metric.compute()
        tensor(0.1111, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    uncertainty: list[Tensor]
    errors: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": gather_parts, **kwargs})
        self.add_state("uncertainty", [], dist_reduce_fx="cat")
        self.add_state("errors", [], dist_reduce_fx="cat")

    def update(self, uncertainty: Tensor, errors: Tensor) -> None:
        """Add a batch: uncertainties, shape `(N,)`, and the cost of each prediction, shape `(N,)`, at least 0.

        Raises:
            ValueError: if the shapes are different.
        """
        _check_pair("errors", uncertainty, errors)
        self.uncertainty.append(uncertainty.detach())
        self.errors.append(errors.detach())

    def compute(self) -> Tensor:
        """Return the area over all samples so far, a scalar.

        Raises:
            ValueError: if there was no sample, an uncertainty is nan or an error negative.
        """
        return area_under_risk_coverage(_joined(self.uncertainty), _joined(self.errors))


class OutOfDistributionAUROC(Metric):
    """Area under the ROC curve of out-of-distribution detection by uncertainty.

    AUROC = P(u_out > u_in) + 1/2 P(u_out = u_in)

    torchmetrics' `BinaryAUROC` gives other values, because it applies a sigmoid to each batch that has scores above 1.

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = OutOfDistributionAUROC()
        >>> metric.update(torch.tensor([0.1, 0.2, 0.2, 0.7]), torch.tensor([False, False, True, True]))
        >>> metric.compute()
        tensor(0.8750, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    uncertainty: list[Tensor]
    outside: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": gather_parts, **kwargs})
        self.add_state("uncertainty", [], dist_reduce_fx="cat")
        self.add_state("outside", [], dist_reduce_fx="cat")

    def update(self, uncertainty: Tensor, outside: Tensor) -> None:
        """Add a batch: uncertainties, shape `(N,)`, and which inputs are out of distribution, bool of shape `(N,)`.

        Raises:
            ValueError: if the shapes are different, or `outside` is not bool.
        """
        _check_pair("outside", uncertainty, outside)
        if outside.dtype != torch.bool:
            raise ValueError(f"Expected argument `outside` to be of dtype torch.bool, but got {outside.dtype}")
        self.uncertainty.append(uncertainty.detach())
        self.outside.append(outside.detach())

    def compute(self) -> Tensor:
        """Return the area over all samples so far, a scalar.

        Raises:
            ValueError: if there was no in-distribution or no out-of-distribution sample, or an uncertainty is nan.
        """
        uncertainty, outside = _joined(self.uncertainty), _joined(self.outside).bool()
        return ood_auroc(uncertainty[~outside], uncertainty[outside])


def _check_pair(name: str, uncertainty: Tensor, other: Tensor) -> None:
    if uncertainty.ndim != 1 or other.shape != uncertainty.shape:
        raise ValueError(
            f"Expected arguments `uncertainty` and `{name}` to have the same shape (N,), but got "
            f"{tuple(uncertainty.shape)} and {tuple(other.shape)}"
        )


def _check_axes(name: str, values: Tensor, shape: str, axes: int) -> None:
    if values.ndim != axes:
        raise ValueError(f"Expected argument `{name}` to be of shape {shape}, but got {tuple(values.shape)}")


def _joined(parts: list[Tensor]) -> Tensor:
    return dim_zero_cat(parts) if len(parts) else torch.empty(0)
