"""Scores of predictions and of their uncertainty as pure functions: the twins of the classes in
`lightning_snn.metrics`.

Class probabilities, not logits, are of shape `(N, C)`: rows within [0, 1] that sum to one; spike probabilities of
outputs need not. Nothing is clamped or
renormalised. Sums run in float64 whatever the dtype of the input (float32 on Apple's MPS, which lacks it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_snn.checks import check_choice, check_integer
from lightning_snn.functional.entropy import expected_entropy as expected_entropy
from lightning_snn.functional.entropy import mutual_information as mutual_information
from lightning_snn.functional.entropy import predictive_entropy as predictive_entropy

# Rounding to bfloat16 makes a row of probabilities miss one by up to 0.2 %; independent sigmoids miss it by far more.
_ROW_SUM_TOLERANCE = 0.01
_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

Reduction = Literal["mean", "none"]


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which scores are summed on `device`: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def negative_log_likelihood(probabilities: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Negative log-likelihood of the true classes under the predicted probabilities.

    NLL = -1/N sum_n log p_n[y_n]

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        reduction: `"mean"` over samples, or `"none"` for one value a sample.

    Returns:
        A scalar, or shape `(N,)`, in nats, within [0, inf]. A true class that was given probability 0 makes it inf: the
        model called what happened impossible. The mean of no sample is nan.

    Raises:
        ValueError: if an argument is not what is stated above.

    Example:
        >>> negative_log_likelihood(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([1, 0]))
        tensor(0.3466, dtype=torch.float64)
    """
    _check_samples(probabilities, targets)
    of_true_class = probabilities.gather(1, targets.long().unsqueeze(1)).squeeze(1)
    return _reduce(-of_true_class.to(accumulation_dtype(probabilities.device)).log(), reduction)


def brier_score(probabilities: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Brier score for several classes: the squared distance of the probabilities from the one-hot truth.

    BS = 1/N sum_n sum_c (p_n[c] - 1[y_n = c])^2

    This is Brier's own definition, summed over the classes. It is twice the two-class form that looks at one class
    only, and C times the form that is averaged over the classes.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        reduction: `"mean"` over samples, or `"none"` for one value a sample.

    Returns:
        A scalar, or shape `(N,)`, within [0, 2]. The mean of no sample is nan.

    Raises:
        ValueError: if an argument is not what is stated above.

    Source: G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950.

    Example:
        >>> brier_score(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([1, 0]))
        tensor(0.2500, dtype=torch.float64)
    """
    _check_samples(probabilities, targets)
    truth = one_hot(targets.long(), probabilities.shape[1])
    difference = probabilities.to(accumulation_dtype(probabilities.device)) - truth
    return _reduce(difference.square().sum(dim=1), reduction)


def within_pair_accuracy(
    probabilities: Tensor, targets: Tensor, pairs: Sequence[tuple[int, int]], reduction: Reduction = "mean"
) -> Tensor:
    """Accuracy of telling the two classes of a pair apart, over the samples whose true class is in a pair.

    A = 1/M sum_m 1[argmax_{c in pair(y_m)} p_m[c] = y_m], over the M samples whose class y_m belongs to a pair

    With pairs that differ in the direction of motion only (clockwise and counter-clockwise), it tells a model that uses
    time, at most 1, from one that sums over time, near 0.5. Classes outside of the pair do not enter, so it is no
    accuracy among all classes.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        pairs: disjoint pairs of classes. Equal probabilities are decided for the class that its pair names first.
        reduction: `"mean"` over the samples in pairs, or `"none"` for one value (0 or 1) for each of them, in order.

    Returns:
        A scalar, or shape `(M,)`, within [0, 1]. The mean is nan if no sample belongs to a pair.

    Raises:
        ValueError: if an argument is not what is stated above.

    Example:
        >>> probabilities = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0], [0.1, 0.1, 0.8]])
        >>> within_pair_accuracy(probabilities, torch.tensor([1, 1, 2]), pairs=[(0, 1)])
        tensor(0.5000, dtype=torch.float64)
    """
    _check_samples(probabilities, targets)
    check_pairs(pairs)
    number_of_classes = probabilities.shape[1]
    if max(max(pair) for pair in pairs) >= number_of_classes:
        raise ValueError(
            f"Expected argument `pairs` to name classes below {number_of_classes}, the number of columns of "
            f"`probabilities`, but got {list(pairs)}"
        )
    first, second = torch.tensor(list(pairs), device=targets.device).unbind(dim=1)
    prefers_second = probabilities[:, second] > probabilities[:, first]
    predicted = torch.where(prefers_second, second, first)
    in_pair = (targets.unsqueeze(1) == first) | (targets.unsqueeze(1) == second)
    correct = (predicted == targets.unsqueeze(1))[in_pair]
    return _reduce(correct.to(accumulation_dtype(probabilities.device)), reduction)


def bit_accuracy(spike_probabilities: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Share of the outputs that say rightly, each by itself, whether they are the class.

    A = 1/(N C) sum_n sum_c 1[(p_n[c] > 1/2) = (y_n = c)]

    It is no accuracy among classes and far above one: outputs that never spike reach 1 - 1/C.

    Args:
        spike_probabilities: probability of a spike of each output by itself, shape `(N, C)`, in [0, 1]; the rows need
            not sum to one.
        targets: true classes, integers of shape `(N,)`, in [0, C).
        reduction: `"mean"` over samples, or `"none"` for one value a sample.

    Returns:
        A scalar, or shape `(N,)`, within [0, 1]. The mean of no sample is nan.

    Raises:
        ValueError: if an argument is not what is stated above.

    Example:
        >>> bit_accuracy(torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.3, 0.2]]), torch.tensor([0, 1]))
        tensor(0.6667, dtype=torch.float64)
    """
    _check_samples(spike_probabilities, targets, "spike_probabilities", whole=False)
    truth = one_hot(targets.long(), spike_probabilities.shape[1]).bool()
    right = (spike_probabilities > 0.5) == truth
    return _reduce(right.to(accumulation_dtype(right.device)).mean(dim=1), reduction)


def reliability_bins(probabilities: Tensor, targets: Tensor, n_bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, accuracy and count of the most probable class in equal-width bins of its probability.

    Bin b holds the samples with b / n_bins <= max_c p_n[c] < (b + 1) / n_bins; the last bin also holds the value 1.
    The expected calibration error is sum_b count_b / N |accuracy_b - confidence_b|.

    It equals torchmetrics' `MulticlassCalibrationError(norm="l1")` with as many bins unless a confidence is exactly 1
    in float32: torchmetrics counts such samples as a bin of their own, which can only make its error larger.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        n_bins: number of bins.

    Returns:
        Mean confidence and accuracy, within [0, 1], nan where a bin is empty, and the integer count, each of shape
        `(n_bins,)`.

    Raises:
        ValueError: if an argument is not what is stated above.

    Source: C. Guo et al., "On calibration of modern neural networks", ICML 2017, equations 2 to 4.
    """
    check_integer("n_bins", n_bins)
    confidence, correct = top_label(probabilities, targets)
    # Compared in float32, as torchmetrics does, so that a confidence on an edge falls on the same side of it.
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float32, device=probabilities.device)
    index = (torch.bucketize(confidence.float(), edges, right=True) - 1).clamp(max=n_bins - 1)
    membership = one_hot(index, n_bins)
    count = membership.sum(dim=0)
    dtype = accumulation_dtype(probabilities.device)
    sums = torch.stack([confidence.to(dtype), correct.to(dtype)]) @ membership.to(dtype)
    mean_confidence, accuracy = sums / count
    return mean_confidence, accuracy, count


def expected_calibration_error(probabilities: Tensor, targets: Tensor, n_bins: int = 15) -> Tensor:
    """Mean distance of confidence and accuracy in bins of the confidence; see `reliability_bins`.

    ECE = sum_b count_b / N |accuracy_b - confidence_b|

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        n_bins: number of bins.

    Returns:
        A scalar, within [0, 1]; nan for no sample.

    Raises:
        ValueError: if an argument is not what is stated above.
    """
    confidence, accuracy, count = reliability_bins(probabilities, targets, n_bins)
    gaps = torch.where(count > 0, (accuracy - confidence).abs(), 0)
    return (gaps * count).sum() / count.sum()


def adaptive_calibration_error(probabilities: Tensor, targets: Tensor, n_bins: int = 15) -> Tensor:
    """Expected calibration error of the most probable class, in bins that hold equally many samples each.

    AdaECE = sum_b count_b / N |accuracy_b - confidence_b|, where the N samples in ascending order of their confidence
    max_c p_n[c] are cut into n_bins runs whose lengths differ by one at most

    Equal-width bins leave most bins of a confident network nearly empty and one with nearly all samples, whose errors
    cancel. Samples of equal confidence cannot be told apart by it: each counts with their mean accuracy, so the order
    of the samples never matters. With fewer samples than bins each is a bin of its own.

    It looks at the most probable class only, unlike the adaptive calibration error of Nixon et al. (2019), a mean over
    all classes.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        n_bins: number of bins.

    Returns:
        A scalar, within [0, 1]; nan for no sample.

    Raises:
        ValueError: if an argument is not what is stated above.

    Source: K. Nguyen and B. O'Connor, "Posterior calibration and exploratory analysis for natural language processing
    models", EMNLP 2015, section 3; for several classes as in J. Mukhoti et al., "Calibrating deep neural networks using
    focal loss", NeurIPS 2020.

    Example:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0]])
        >>> adaptive_calibration_error(probabilities, torch.tensor([1, 0, 0, 0]), n_bins=2)
        tensor(0.0625, dtype=torch.float64)
    """
    return adaptive_gap(*top_label(probabilities, targets), n_bins)


def top_label(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the most probable class, shape `(N,)`, and whether it is the true one, bool of shape `(N,)`.

    Raises:
        ValueError: if the arguments are not class probabilities `(N, C)` and classes `(N,)`.
    """
    _check_samples(probabilities, targets)
    confidence, predicted = probabilities.max(dim=1)
    return confidence, predicted == targets


def adaptive_gap(confidence: Tensor, correct: Tensor, n_bins: int) -> Tensor:
    """`adaptive_calibration_error` of what `top_label` gives.

    Raises:
        ValueError: if `n_bins` is less than 1.
    """
    check_integer("n_bins", n_bins)
    ascending, accuracy = _ranked(confidence.detach(), correct)
    gaps = (accuracy - ascending).tensor_split(n_bins)
    return torch.stack([gap.sum().abs() for gap in gaps]).sum() / len(ascending)


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
    _check_values("uncertainty", uncertainty)
    _check_values("errors", errors)
    if errors.shape != uncertainty.shape or not (errors >= 0).all():
        raise ValueError(
            f"Expected argument `errors` to hold one number of at least 0 for each of the {len(uncertainty)} values of "
            f"`uncertainty`, but got {_kind(errors)} with smallest value {errors.min():g}"
        )
    _, ranked = _ranked(uncertainty.detach(), errors.detach())
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
    _check_values("uncertainty_in", uncertainty_in)
    _check_values("uncertainty_out", uncertainty_out)
    dtype = torch.promote_types(uncertainty_in.dtype, uncertainty_out.dtype)
    inside, outside = uncertainty_in.detach().to(dtype).sort().values, uncertainty_out.detach().to(dtype)
    lower = torch.searchsorted(inside, outside, right=False)
    lower_or_equal = torch.searchsorted(inside, outside, right=True)
    pairs = len(inside) * len(outside)
    return (lower + lower_or_equal).sum().to(accumulation_dtype(inside.device)) / (2 * pairs)


def check_pairs(pairs: Sequence[tuple[int, int]]) -> None:
    """Refuse pairs that are not disjoint pairs of non-negative integers.

    Raises:
        ValueError: naming the offence.
    """
    expectation = (
        f"Expected argument `pairs` to be disjoint pairs of class indices like [(1, 2), (3, 4)], but got {pairs!r}"
    )
    try:
        classes = [label for first, second in pairs for label in (first, second)]
    except (TypeError, ValueError) as error:
        raise ValueError(expectation) from error
    if any(isinstance(label, bool) or not isinstance(label, int) or label < 0 for label in classes):
        raise ValueError(expectation)
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(expectation)


def _ranked(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys in ascending order, and the values in that order, each replaced by the mean over those of equal key."""
    ascending, order = keys.sort()
    dtype = accumulation_dtype(keys.device)
    _, group, size = ascending.unique_consecutive(return_inverse=True, return_counts=True)
    total = values[order].to(dtype).cumsum(0)
    of_groups = torch.cat([total.new_zeros(1), total[size.cumsum(0) - 1]]).diff()
    return ascending.to(dtype), (of_groups / size)[group]


def _reduce(values: Tensor, reduction: Reduction) -> Tensor:
    check_choice("reduction", reduction, ("mean", "none"))
    return values.mean() if reduction == "mean" else values


def _check_samples(probabilities: Tensor, targets: Tensor, name: str = "probabilities", whole: bool = True) -> None:
    """Refuse anything but probabilities `(N, C)`, `whole` ones of rows that sum to one, and classes `(N,)`."""
    if not isinstance(probabilities, Tensor) or not probabilities.is_floating_point() or probabilities.ndim != 2:
        raise ValueError(
            f"Expected argument `{name}` to be a floating-point tensor of shape (N, C), but got {_kind(probabilities)}"
        )
    if not isinstance(targets, Tensor) or targets.dtype not in _INTEGER_DTYPES or targets.ndim != 1:
        raise ValueError(f"Expected argument `targets` to be an integer tensor of shape (N,), but got {_kind(targets)}")
    samples, number_of_classes = probabilities.shape
    if targets.shape[0] != samples:
        raise ValueError(
            f"Expected argument `targets` to hold one class for each of the {samples} rows of `{name}`, "
            f"but got {targets.shape[0]}"
        )
    if number_of_classes < 2:
        raise ValueError(f"Expected argument `{name}` to have at least 2 columns, but got {number_of_classes}")
    if samples == 0:
        return
    low, high = probabilities.detach().aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"Expected argument `{name}` to hold values within [0, 1], but got values from {low:g} to {high:g}"
        )
    excess = (probabilities.detach().float().sum(dim=1) - 1).abs().max()
    if whole and excess > _ROW_SUM_TOLERANCE:
        raise ValueError(
            f"Expected argument `{name}` to sum to 1 over the classes, but got a row that misses 1 by {excess:g}"
        )
    lowest, highest = targets.aminmax()
    if lowest < 0 or highest >= number_of_classes:
        raise ValueError(
            f"Expected argument `targets` to hold classes from 0 to {number_of_classes - 1}, "
            f"but got values from {lowest} to {highest}"
        )


def _check_values(name: str, values: Tensor) -> None:
    if not isinstance(values, Tensor) or values.ndim != 1 or len(values) == 0 or values.is_complex():
        raise ValueError(
            f"Expected argument `{name}` to be a tensor of shape (N,) with N of at least 1, but got {_kind(values)}"
        )
    if values.isnan().any():
        raise ValueError(f"Expected argument `{name}` to hold numbers, but got {values.isnan().sum()} nan")


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of dtype {value.dtype} and shape {tuple(value.shape)}"
    return f"{type(value).__name__}"
