"""Ranking by uncertainty: risk against coverage, and detection of out-of-distribution inputs."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_snn.checks import check_choice, check_fraction
from lightning_snn.metrics.functional._inputs import accumulation_dtype, check_values, in_order, kind_of

Positive = Literal["out", "in"]

POSITIVE: tuple[Positive, ...] = ("out", "in")


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


def area_under_generalized_risk_coverage(uncertainty: Tensor, errors: Tensor) -> Tensor:
    """Compute the area under the generalized risk-coverage curve: the mean risk of undetected errors.

    AUGRC = integral over the coverage c of c risk(c), by the trapezoid rule over c = 0, 1/N, ..., 1

    The generalized risk ``c risk(c)`` is the share of all samples that are answered and wrong. An error of the i-th
    most certain sample counts with about (1 - i / N) / N, in the AURC with about log(N / i) / N, so here a few errors
    of high certainty do not dominate. For errors of 0 and 1, ``AUGRC = (1 - AUROC) a (1 - a) + (1 - a)^2 / 2``, with
    the accuracy a and the area AUROC under the ROC curve of detecting errors by the uncertainty.

    Args:
        uncertainty: shape `(N,)`, N of at least 1. Samples of equal uncertainty all count with their mean error.
        errors: cost of each prediction, shape `(N,)`, at least 0.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1/2] for errors of 0 and 1. It is half the error rate
        if the uncertainty is constant.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: after J. Traub et al., "Overcoming common flaws in the evaluation of selective classification systems",
    NeurIPS 2024.

    Example:
        >>> area_under_generalized_risk_coverage(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([False, False, True]))
        tensor(0.0556, dtype=torch.float64)
    """
    coverage, risk = risk_coverage(uncertainty, errors)
    generalized = coverage * risk
    return generalized.mean() - generalized[-1] / (2 * len(generalized))


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


def ood_fpr(
    uncertainty_in: Tensor, uncertainty_out: Tensor, recall: float = 0.95, positive: Positive = "out"
) -> Tensor:
    """Compute the false positive rate of out-of-distribution detection at a true positive rate, "FPR95".

    With ``positive="out"``, inputs of an uncertainty of at least t are taken for out of distribution. The threshold t
    is the largest one that detects at least a share `recall` of the out-of-distribution inputs, and the rate is the
    share of the in-distribution inputs that are taken for out of distribution.

    With ``positive="in"``, inputs of an uncertainty of at most t are taken for in distribution. The threshold t is the
    smallest one that keeps at least a share `recall` of the in-distribution inputs, and the rate is the share of the
    out-of-distribution inputs that are taken for in distribution. The two rates differ. Papers report either.

    Inputs of equal uncertainty are never separated, so the result does not depend on the order of the inputs.

    Args:
        uncertainty_in: uncertainties of in-distribution inputs, shape `(N,)`, N of at least 1.
        uncertainty_out: uncertainties of out-of-distribution inputs, shape `(M,)`, M of at least 1.
        recall: smallest true positive rate, within (0, 1).
        positive: inputs that are to be found: "out" or "in".

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1]; lower is better.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: after S. Liang, Y. Li and R. Srikant, "Enhancing the reliability of out-of-distribution image detection in
    neural networks", ICLR 2018 ("in"), and D. Hendrycks, M. Mazeika and T. Dietterich, "Deep anomaly detection with
    outlier exposure", ICLR 2019 ("out").

    Example:
        >>> inside, outside = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.35, 0.7])
        >>> ood_fpr(inside, outside)
        tensor(0.2500, dtype=torch.float64)
        >>> ood_fpr(inside, outside, positive="in")
        tensor(0.5000, dtype=torch.float64)
    """
    check_fraction("recall", recall)
    positives, negatives = _scores(uncertainty_in, uncertainty_out, positive)
    number = len(positives)
    found = math.ceil(recall * number)
    # the product may round to just above an integer
    if (found - 1) / number >= recall:
        found -= 1
    threshold = positives.sort(descending=True).values[found - 1]
    return (negatives >= threshold).sum().to(accumulation_dtype(negatives.device)) / len(negatives)


def ood_aupr(uncertainty_in: Tensor, uncertainty_out: Tensor, positive: Positive = "out") -> Tensor:
    """Compute the area under the precision-recall curve of out-of-distribution detection, as the average precision.

    ``AUPR = sum_t (recall_t - recall_(t-1)) precision_t``, over all thresholds t in descending order of the score

    The score is the uncertainty for ``positive="out"`` ("AUPR-out") and its negative for ``positive="in"``
    ("AUPR-in"). The sum has no interpolation between thresholds. Inputs of equal uncertainty share one threshold, so
    the result does not depend on the order of the inputs. At chance the area is the share of positives, so compare it
    only between equal numbers of inputs.

    Args:
        uncertainty_in: uncertainties of in-distribution inputs, shape `(N,)`, N of at least 1.
        uncertainty_out: uncertainties of out-of-distribution inputs, shape `(M,)`, M of at least 1.
        positive: inputs that are to be found: "out" or "in".

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within (0, 1]: 1 if all positives have a higher score than all
        others.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: after D. Hendrycks and K. Gimpel, "A baseline for detecting misclassified and out-of-distribution examples
    in neural networks", ICLR 2017.

    Example:
        >>> inside, outside = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.35, 0.7])
        >>> ood_aupr(inside, outside)
        tensor(0.8333, dtype=torch.float64)
        >>> ood_aupr(inside, outside, positive="in")
        tensor(0.9500, dtype=torch.float64)
    """
    positives, negatives = (each.sort().values for each in _scores(uncertainty_in, uncertainty_out, positive))
    # of each positive, the inputs whose scores are at least as high
    true_positives = len(positives) - torch.searchsorted(positives, positives, right=False)
    false_positives = len(negatives) - torch.searchsorted(negatives, positives, right=False)
    dtype = accumulation_dtype(positives.device)
    return (true_positives.to(dtype) / (true_positives + false_positives)).mean()


def _scores(uncertainty_in: Tensor, uncertainty_out: Tensor, positive: Positive) -> tuple[Tensor, Tensor]:
    """Return the scores of positives and negatives in one dtype; they are higher for those to be found."""
    check_choice("positive", positive, POSITIVE)
    check_values("uncertainty_in", uncertainty_in)
    check_values("uncertainty_out", uncertainty_out)
    dtype = torch.promote_types(uncertainty_in.dtype, uncertainty_out.dtype)
    if not dtype.is_floating_point:
        dtype = accumulation_dtype(uncertainty_in.device)
    inside, outside = uncertainty_in.detach().to(dtype), uncertainty_out.detach().to(dtype)
    return (outside, inside) if positive == "out" else (-inside, -outside)
