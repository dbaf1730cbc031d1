"""How well uncertainties rank inputs: errors after right answers, inputs from outside after those from inside."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.metrics.functional._inputs import accumulation_dtype, check_values, in_order, kind_of


def risk_coverage(uncertainty: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Risk of a selective predictor that answers the k samples it is most certain of, for every k.

    coverage_k = k / N,   risk_k = 1/k sum_{i <= k} e_(i), with samples in ascending order of uncertainty

    Samples of equal uncertainty cannot be told apart by it: each counts with their mean error, which is the risk
    expected when ties are broken at random, so the order of the samples never matters.

    Args:
        uncertainty: shape `(N,)`, N of at least 1, any scale: predictive entropy, 1 - confidence, ...
        errors: what a wrong answer costs, shape `(N,)`: bool, integers or floats, at least 0; 0 and 1 make the risk an
            error rate.

    Returns:
        Coverage, ascending within (0, 1], and risk, both of shape `(N,)`; the last risk is the mean error.

    Raises:
        ValueError: if an argument is not what is stated above.

    Source: Y. Geifman and R. El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017.
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
    """Area under the risk-coverage curve, the mean of its risks: the lower, the better certainty tells right from
    wrong.

    AURC = 1/N sum_k risk_k

    It falls with the error rate too: compare uncertainties of one model, or models of equal error.

    Args:
        uncertainty: shape `(N,)`, N of at least 1.
        errors: what a wrong answer costs, shape `(N,)`, at least 0.

    Returns:
        A scalar, within [0, 1] for errors of 0 and 1; the error rate where the uncertainty says nothing.

    Raises:
        ValueError: if an argument is not what is stated above.

    Source: Y. Geifman, G. Uziel and R. El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers",
    ICLR 2019.

    Example:
        >>> area_under_risk_coverage(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([False, False, True]))
        tensor(0.1111, dtype=torch.float64)
    """
    return risk_coverage(uncertainty, errors)[1].mean()


def ood_auroc(uncertainty_in: Tensor, uncertainty_out: Tensor) -> Tensor:
    """Area under the ROC curve of telling inputs from outside of the training distribution by their uncertainty.

    AUROC = P(u_out > u_in) + 1/2 P(u_out = u_in), over all pairs of an inside and an outside input

    It is the Mann-Whitney statistic over the number of pairs, found by sorting: no thresholds, no binning.

    Args:
        uncertainty_in: of inputs like those that were trained on, shape `(N,)`, N of at least 1.
        uncertainty_out: of other inputs, shape `(M,)`, M of at least 1.

    Returns:
        A scalar within [0, 1]: 1 if every outside input is more uncertain than every inside one, 1/2 at chance.

    Raises:
        ValueError: if an argument is not what is stated above.

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
