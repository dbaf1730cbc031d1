"""Ranking by uncertainty as torchmetrics classes: risk against coverage, and out-of-distribution detection.

The functional forms are in `lightning_snn.metrics.functional`. The metrics store two numbers per sample until they are
reset.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_snn.checks import check_choice, check_fraction
from lightning_snn.metrics.functional import (
    Positive,
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    ood_aupr,
    ood_auroc,
    ood_fpr,
)
from lightning_snn.metrics.functional.ranking import POSITIVE
from lightning_snn.metrics.stored import StoredSamples


class _RiskCoverage(StoredSamples):
    """Base of scores of uncertainties and of the cost of each prediction."""

    is_differentiable = False
    higher_is_better = False
    plot_lower_bound = 0.0

    uncertainty: list[Tensor]
    errors: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("uncertainty", "errors", **kwargs)

    def update(self, uncertainty: Tensor, errors: Tensor) -> None:
        """Add a batch: uncertainties, shape `(N,)`, and the cost of each prediction, shape `(N,)`, at least 0.

        Raises:
            ValueError: if the shapes are different.
        """
        _check_pair("errors", uncertainty, errors)
        self.uncertainty.append(uncertainty.detach())
        self.errors.append(errors.detach())


class AreaUnderRiskCoverage(_RiskCoverage):
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

    def compute(self) -> Tensor:
        """Return the area over all samples so far, a scalar.

        Raises:
            ValueError: if there was no sample, an uncertainty is nan or an error negative.
        """
        return area_under_risk_coverage(*self.joined())


class AreaUnderGeneralizedRiskCoverage(_RiskCoverage):
    """Area under the generalized risk-coverage curve: the mean risk of undetected errors.

    AUGRC = integral over the coverage c of c risk(c), by the trapezoid rule over c = 0, 1/N, ..., 1

    See `lightning_snn.metrics.functional.area_under_generalized_risk_coverage`.

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> metric = AreaUnderGeneralizedRiskCoverage()
        >>> metric.update(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([False, False, True]))
        >>> metric.compute()
        tensor(0.0556, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """Return the area over all samples so far, a scalar.

        Raises:
            ValueError: if there was no sample, an uncertainty is nan or an error negative.
        """
        return area_under_generalized_risk_coverage(*self.joined())


class _OutOfDistribution(StoredSamples):
    """Base of scores of out-of-distribution detection by uncertainty."""

    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    uncertainty: list[Tensor]
    outside: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("uncertainty", "outside", **kwargs)

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

    def _groups(self) -> tuple[Tensor, Tensor]:
        """Return the uncertainties of in-distribution and of out-of-distribution inputs."""
        uncertainty, outside = self.joined()
        outside = outside.bool()
        return uncertainty[~outside], uncertainty[outside]


class OutOfDistributionAUROC(_OutOfDistribution):
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

    def compute(self) -> Tensor:
        """Return the area over all samples so far, a scalar.

        Raises:
            ValueError: if there was no in-distribution or no out-of-distribution sample, or an uncertainty is nan.
        """
        return ood_auroc(*self._groups())


class OutOfDistributionFPR(_OutOfDistribution):
    """False positive rate of out-of-distribution detection by uncertainty, at a true positive rate ("FPR95").

    - ``positive="out"``: the share of in-distribution inputs that are taken for out of distribution where a share
      `recall` of the out-of-distribution inputs is detected;
    - ``positive="in"``: the share of out-of-distribution inputs that are taken for in distribution where a share
      `recall` of the in-distribution inputs is kept.

    See `lightning_snn.metrics.functional.ood_fpr`.

    Args:
        recall: smallest true positive rate, within (0, 1).
        positive: inputs that are to be found: "out" or "in".
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if an argument is not as stated above.

    Example:
        >>> metric = OutOfDistributionFPR()
        >>> metric.update(torch.tensor([0.1, 0.2, 0.2, 0.7]), torch.tensor([False, False, True, True]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, recall: float = 0.95, positive: Positive = "out", **kwargs: Any) -> None:
        check_fraction("recall", recall)
        check_choice("positive", positive, POSITIVE)
        super().__init__(**kwargs)
        self.recall, self.positive = recall, positive

    def compute(self) -> Tensor:
        """Return the rate over all samples so far, a scalar.

        Raises:
            ValueError: if there was no in-distribution or no out-of-distribution sample, or an uncertainty is nan.
        """
        return ood_fpr(*self._groups(), self.recall, self.positive)


class OutOfDistributionAUPR(_OutOfDistribution):
    """Area under the precision-recall curve of out-of-distribution detection by uncertainty ("AUPR-out", "AUPR-in").

    ``AUPR = sum_t (recall_t - recall_(t-1)) precision_t``, over all thresholds t

    See `lightning_snn.metrics.functional.ood_aupr`.

    Args:
        positive: inputs that are to be found: "out" or "in".
        kwargs: see `torchmetrics.Metric`.

    Raises:
        ValueError: if `positive` is not one of these.

    Example:
        >>> metric = OutOfDistributionAUPR()
        >>> metric.update(torch.tensor([0.1, 0.2, 0.2, 0.7]), torch.tensor([False, False, True, True]))
        >>> metric.compute()
        tensor(0.8333, dtype=torch.float64)
    """

    def __init__(self, positive: Positive = "out", **kwargs: Any) -> None:
        check_choice("positive", positive, POSITIVE)
        super().__init__(**kwargs)
        self.positive = positive

    def compute(self) -> Tensor:
        """Return the area over all samples so far, a scalar.

        Raises:
            ValueError: if there was no in-distribution or no out-of-distribution sample, or an uncertainty is nan.
        """
        return ood_aupr(*self._groups(), self.positive)


def _check_pair(name: str, uncertainty: Tensor, other: Tensor) -> None:
    if uncertainty.ndim != 1 or other.shape != uncertainty.shape:
        raise ValueError(
            f"Expected arguments `uncertainty` and `{name}` to have the same shape (N,), but got "
            f"{tuple(uncertainty.shape)} and {tuple(other.shape)}"
        )
