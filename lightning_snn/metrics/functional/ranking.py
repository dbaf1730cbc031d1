"""Ranking by uncertainty: risk against coverage, and detection of out-of-distribution inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.metrics.functional._inputs import accumulation_dtype, check_values, in_order, kind_of


def risk_coverage(uncertainty: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the risk of a selective predictor that answers only its k most certain samples, for every k.

    coverage_k = k / N,   risk_k = 1/k sum_{i <= k} e_(i), with samples in ascending order of uncertainty

    Samples of equal uncertainty all count with their mean error. This is the expected risk if ties are broken at
    random, so the result does not depend on the order of the samples.

    Args:
        uncertainty: shape `(N,)`, N of at least 1, any scale: predictive entropy, 1 - confidence, ...
        errors: cost of each prediction, shape `(N,)`: bool, integers or floats, at least 0. With costs of 0 and 1 the
            risk is an error rate.

    Returns:
        Coverage, ascending within (0, 1], and risk, both of shape `(N,)`; the last risk is the mean error.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: Y. Geifman and R. El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017.

    Example:
        >>> coverage, risk = risk_coverage(torch.tensor([0.1, 0.9, 0.2]), torch.tensor([False, True, False]))
        >>> coverage
        tensor([0.3333, 0.6667, 1.0000], dtype=torch.float64)
        >>> risk
        tensor([0.0000, 0.0000, 0.3333], dtype=torch.float64)
    """
    check_values("uncertainty", uncertainty)
    check_values("errors", errors)
    if errors.shape != uncertainty.shape or not (errors >= 0).all():
        raise ValueError(
            f"Expected argument `errors` to hold one number of at least 0 for each of the {len(uncertainty)} values of "
            f"`uncertainty`, but got {kind_of(errors)} with smallest value {errors.min():g}"
        )
    _, ranked = in_order(uncertainty.detach(), errors.detach())
    count = torch.arange(1, len(ranked) + 1, device=ranked.device)
    return count.to(ranked.dtype) / len(ranked), ranked.cumsum(0) / count


def area_under_risk_coverage(uncertainty: Tensor, errors: Tensor) -> Tensor:
    """Compute the area under the risk-coverage curve, the mean of its risks; lower is better.

    AURC = 1/N sum_k risk_k

    The area also decreases with the error rate, so compare uncertainties of one model, or models of equal error.

    Args:
        uncertainty: shape `(N,)`, N of at least 1.
        errors: cost of each prediction, shape `(N,)`, at least 0.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1] for errors of 0 and 1. It equals the error rate if
        the uncertainty is constant.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: Y. Geifman, G. Uziel and R. El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers",
    ICLR 2019.

    Example:
        >>> area_under_risk_coverage(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([False, False, True]))
        tensor(0.1111, dtype=torch.float64)
    """
    return risk_coverage(uncertainty, errors)[1].mean()


def ood_auroc(uncertainty_in: Tensor, uncertainty_out: Tensor) -> Tensor:
    """Compute the area under the ROC curve of out-of-distribution detection by uncertainty.

    AUROC = P(u_out > u_in) + 1/2 P(u_out = u_in), over all pairs of an in- and an out-of-distribution input

    This is the Mann-Whitney statistic divided by the number of pairs. It is computed by sorting, without thresholds or
    bins.

    Args:
        uncertainty_in: uncertainties of in-distribution inputs, shape `(N,)`, N of at least 1.
        uncertainty_out: uncertainties of out-of-distribution inputs, shape `(M,)`, M of at least 1.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1]: 1 if every out-of-distribution input is more
        uncertain than every in-distribution input, 1/2 at chance.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: D. Hendrycks and K. Gimpel, "A baseline for detecting misclassified and out-of-distribution examples in
    neural networks", ICLR 2017.

    Example:
        >>> ood_auroc(torch.tensor([0.1, 0.2]), torch.tensor([0.2, 0.7]))
        tensor(0.8750, dtype=torch.float64)
    """
    check_values("uncertainty_in", uncertainty_in)
    check_values("uncertainty_out", uncertainty_out)
    dtype = torch.promote_types(uncertainty_in.dtype, uncertainty_out.dtype)
    inside, outside = uncertainty_in.detach().to(dtype).sort().values, uncertainty_out.detach().to(dtype)
    lower = torch.searchsorted(inside, outside, right=False)
    lower_or_equal = torch.searchsorted(inside, outside, right=True)
    pairs = len(inside) * len(outside)
    return (lower + lower_or_equal).sum().to(accumulation_dtype(inside.device)) / (2 * pairs)
