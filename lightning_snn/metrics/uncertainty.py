"""Scores of a prediction's uncertainty as torchmetrics classes.

The mathematics is in `lightning_snn.metrics.functional`. Both scores rank all samples against each other, so they keep
one number or two a sample until they are reset.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_snn.metrics.functional import area_under_risk_coverage, ood_auroc


class AreaUnderRiskCoverage(Metric):
    """Area under the risk-coverage curve of a predictor that answers the samples it is most certain of.

    AURC = 1/N sum_k risk_k, with risk_k the mean error of the k most certain samples

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
        super().__init__(**kwargs)
        self.add_state("uncertainty", [], dist_reduce_fx="cat")
        self.add_state("errors", [], dist_reduce_fx="cat")

    def update(self, uncertainty: Tensor, errors: Tensor) -> None:
        """Add a batch: its uncertainties, shape `(N,)`, and what a wrong answer costs, shape `(N,)`, at least 0.

        Raises:
            ValueError: if the shapes are not these.
        """
        _check_pair("errors", uncertainty, errors)
        self.uncertainty.append(uncertainty.detach())
        self.errors.append(errors.detach())

    def compute(self) -> Tensor:
        """The area over all samples so far, a scalar.

        Raises:
            ValueError: if there was no sample, an uncertainty is nan or an error negative.
        """
        return area_under_risk_coverage(_joined(self.uncertainty), _joined(self.errors))


class OutOfDistributionAUROC(Metric):
    """Area under the ROC curve of telling inputs from outside of the training distribution by their uncertainty.

    AUROC = P(u_out > u_in) + 1/2 P(u_out = u_in)

    torchmetrics' `BinaryAUROC` is not for this: it takes scores above 1 for logits, batch by batch, and squashes them.

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
        super().__init__(**kwargs)
        self.add_state("uncertainty", [], dist_reduce_fx="cat")
        self.add_state("outside", [], dist_reduce_fx="cat")

    def update(self, uncertainty: Tensor, outside: Tensor) -> None:
        """Add a batch: its uncertainties, shape `(N,)`, and whether each is of an outside input, bool of shape `(N,)`.

        Raises:
            ValueError: if the shapes are not these, or `outside` is not bool.
        """
        _check_pair("outside", uncertainty, outside)
        if outside.dtype != torch.bool:
            raise ValueError(f"Expected argument `outside` to be of dtype torch.bool, but got {outside.dtype}")
        self.uncertainty.append(uncertainty.detach())
        self.outside.append(outside.detach())

    def compute(self) -> Tensor:
        """The area over all samples so far, a scalar.

        Raises:
            ValueError: if there was no inside or no outside sample, or an uncertainty is nan.
        """
        uncertainty, outside = _joined(self.uncertainty), _joined(self.outside).bool()
        return ood_auroc(uncertainty[~outside], uncertainty[outside])


def _check_pair(name: str, uncertainty: Tensor, other: Tensor) -> None:
    if uncertainty.ndim != 1 or other.shape != uncertainty.shape:
        raise ValueError(
            f"Expected arguments `uncertainty` and `{name}` to be of one shape (N,), but got "
            f"{tuple(uncertainty.shape)} and {tuple(other.shape)}"
        )


def _joined(parts: list[Tensor]) -> Tensor:
    return dim_zero_cat(parts) if len(parts) else torch.empty(0)
