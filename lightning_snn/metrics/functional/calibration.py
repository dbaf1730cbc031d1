"""Whether the probability of the most probable class is how often it is right."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_snn.checks import check_integer
from lightning_snn.metrics.functional._inputs import accumulation_dtype, check_samples, in_order


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
    confidence, correct, count = binned_sums(probabilities, targets, n_bins)
    return confidence / count, correct.to(confidence.dtype) / count, count


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
    return binned_gap(*binned_sums(probabilities, targets, n_bins))


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
    check_samples(probabilities, targets)
    confidence, predicted = probabilities.max(dim=1)
    return confidence, predicted == targets


def adaptive_gap(confidence: Tensor, correct: Tensor, n_bins: int) -> Tensor:
    """`adaptive_calibration_error` of what `top_label` gives.

    Raises:
        ValueError: if `n_bins` is less than 1.
    """
    check_integer("n_bins", n_bins)
    ascending, accuracy = in_order(confidence.detach(), correct)
    gaps = (accuracy - ascending).tensor_split(n_bins)
    return torch.stack([gap.sum().abs() for gap in gaps]).sum() / len(ascending)


def binned_sums(probabilities: Tensor, targets: Tensor, n_bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the confidence of the most probable class, the correct predictions and the samples in equal-width bins.

    Full confidence belongs to the last bin.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        n_bins: number of bins, at least 1.

    Returns:
        The summed confidence in float64 (float32 on Apple's MPS), the number of correct predictions and the number of
        samples, both int64, each of shape `(n_bins,)`.

    Raises:
        ValueError: if an argument is not as stated above.
    """
    check_integer("n_bins", n_bins)
    confidence, correct = top_label(probabilities, targets)
    # Compared in float32, as torchmetrics does, so that a confidence on an edge falls into the same bin.
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float32, device=probabilities.device)
    index = (torch.bucketize(confidence.float(), edges, right=True) - 1).clamp(max=n_bins - 1)
    membership = one_hot(index, n_bins)
    dtype = accumulation_dtype(probabilities.device)
    return (
        confidence.to(dtype) @ membership.to(dtype),
        (membership * correct.unsqueeze(1)).sum(dim=0),
        membership.sum(dim=0),
    )


def binned_gap(confidence: Tensor, correct: Tensor, count: Tensor) -> Tensor:
    """Return the expected calibration error from the sums of `binned_sums`, a scalar; nan if there is no sample."""
    return (correct - confidence).abs().sum() / count.sum()
