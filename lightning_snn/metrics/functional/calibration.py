"""Calibration errors in bins: the frequency of a class, or of the most probable one, against its probability."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_snn.checks import check_integer
from lightning_snn.metrics.functional._inputs import accumulation_dtype, check_samples, in_order


def reliability_bins(probabilities: Tensor, targets: Tensor, n_bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Compute confidence, accuracy and count of the most probable class in equal-width bins of its probability.

    Bin b holds the samples with b / n_bins <= max_c p_n[c] < (b + 1) / n_bins; the last bin also holds the value 1.
    The expected calibration error is ``sum_b count_b / N |accuracy_b - confidence_b|``.

    This error equals torchmetrics' `MulticlassCalibrationError(norm="l1")` with the same number of bins unless a
    confidence is exactly 1 in float32. torchmetrics puts such samples into a bin of their own, which can only increase
    the error.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        n_bins: number of bins.

    Returns:
        Mean confidence and accuracy, within [0, 1] and nan for empty bins, and the number of samples, int64, each of
        shape `(n_bins,)`.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: C. Guo et al., "On calibration of modern neural networks", ICML 2017, equations 2 to 4.

    Example:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0], [1.0, 0.0]])
        >>> confidence, accuracy, count = reliability_bins(probabilities, torch.tensor([1, 0, 0, 0]), n_bins=2)
        >>> confidence
        tensor([   nan, 0.8750], dtype=torch.float64)
        >>> accuracy
        tensor([   nan, 0.5000], dtype=torch.float64)
        >>> count
        tensor([0, 4])
    """
    confidence, correct, count = binned_sums(probabilities, targets, n_bins)
    return confidence / count, correct.to(confidence.dtype) / count, count


def expected_calibration_error(probabilities: Tensor, targets: Tensor, n_bins: int = 15) -> Tensor:
    """Compute the expected calibration error of the most probable class, in bins of equal width.

    ``ECE = sum_b count_b / N |accuracy_b - confidence_b|``, with the bins of `reliability_bins`

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        n_bins: number of bins.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1]; nan if there is no sample.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: C. Guo et al., "On calibration of modern neural networks", ICML 2017, equation 5.

    Example:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0], [1.0, 0.0]])
        >>> expected_calibration_error(probabilities, torch.tensor([1, 0, 0, 0]), n_bins=2)
        tensor(0.3750, dtype=torch.float64)
    """
    return binned_gap(*binned_sums(probabilities, targets, n_bins))


def adaptive_calibration_error(probabilities: Tensor, targets: Tensor, n_bins: int = 15) -> Tensor:
    """Compute the calibration error of the most probable class, in bins with equal numbers of samples.

    ``AdaECE = sum_b count_b / N |accuracy_b - confidence_b|``, where the N samples in ascending order of their
    confidence ``max_c p_n[c]`` are split into n_bins consecutive bins whose sizes differ by at most one

    With equal-width bins nearly all samples of a confident network are in one bin, where their errors cancel. Samples
    of equal confidence all count with their mean accuracy, so the result does not depend on the order of the samples.
    If there are fewer samples than bins, each sample is a bin.

    Only the most probable class counts, unlike in the adaptive calibration error of Nixon et al. (2019), which is a
    mean over all classes.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        n_bins: number of bins.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1]; nan if there is no sample.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: K. Nguyen and B. O'Connor, "Posterior calibration and exploratory analysis for natural language processing
    models", EMNLP 2015, section 3; for several classes as in J. Mukhoti et al., "Calibrating deep neural networks using
    focal loss", NeurIPS 2020.

    Example:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0]])
        >>> adaptive_calibration_error(probabilities, torch.tensor([1, 0, 0, 0]), n_bins=2)
        tensor(0.0625, dtype=torch.float64)
    """
    return adaptive_gap(*top_label(probabilities, targets), n_bins)


def classwise_calibration_error(probabilities: Tensor, targets: Tensor, n_bins: int = 15) -> Tensor:
    """Compute the calibration error of the probability of each class, in bins of equal width, averaged over classes.

    ``cwECE = 1/C sum_c sum_b count_bc / N |frequency_bc - probability_bc|``, where bin b of class c holds the samples
    with b / n_bins <= p_n[c] < (b + 1) / n_bins, `frequency_bc` is the share of those whose true class is c, and
    `probability_bc` their mean p_n[c]; the last bin also holds the value 1

    All probabilities count, not only those of the most probable class. A class that is the true class of no sample
    counts with the probability that it was given. With many classes nearly all probabilities are near 0, so the error
    is small and is best compared between predictors of the same classes.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        n_bins: number of bins of each class, at least 1.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1]; nan if there is no sample.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: after M. Kull et al., "Beyond temperature scaling: obtaining well-calibrated multiclass probabilities with
    Dirichlet calibration", NeurIPS 2019; the static calibration error of J. Nixon et al., "Measuring calibration in
    deep learning", CVPR workshops 2019.

    Example:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.25, 0.75], [1.0, 0.0], [1.0, 0.0]])
        >>> classwise_calibration_error(probabilities, torch.tensor([1, 0, 0, 0]), n_bins=2)
        tensor(0.3750, dtype=torch.float64)
    """
    return classwise_gap(*classwise_sums(probabilities, targets, n_bins))


def classwise_sums(probabilities: Tensor, targets: Tensor, n_bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the probabilities, the occurrences and the samples of each class in equal-width bins of its probability.

    A probability of 1 belongs to the last bin.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        n_bins: number of bins of each class, at least 1.

    Returns:
        The summed probability in float64 (float32 on Apple's MPS), the number of samples whose true class it is and the
        number of samples, both int64, each of shape `(C, n_bins)`.

    Raises:
        ValueError: if an argument is not as stated above.
    """
    check_integer("n_bins", n_bins)
    check_samples(probabilities, targets)
    index = _bins(probabilities.detach(), n_bins)
    truth = one_hot(targets.long(), probabilities.shape[1])
    wide = probabilities.detach().to(accumulation_dtype(probabilities.device))
    # one bin at a time, because the membership of all bins would take n_bins times the memory of the probabilities
    sums = [((inside * wide).sum(0), (inside * truth).sum(0), inside.sum(0)) for inside in map(index.eq, range(n_bins))]
    probability, occurrences, count = (torch.stack(each, dim=1) for each in zip(*sums, strict=True))
    return probability, occurrences, count


def classwise_gap(probability: Tensor, occurrences: Tensor, count: Tensor) -> Tensor:
    """Return the class-wise calibration error from the sums of `classwise_sums`; nan if there is no sample."""
    return (occurrences - probability).abs().sum() / count.sum()


def top_label(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the confidence of each prediction, and whether the prediction is correct.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).

    Returns:
        The probability of the most probable class, shape `(N,)`, and whether this is the true class, bool of shape
        `(N,)`.

    Raises:
        ValueError: if an argument is not as stated above.

    Example:
        >>> top_label(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0, 1]))
        (tensor([0.7500, 0.5000]), tensor([ True, False]))
    """
    check_samples(probabilities, targets)
    confidence, predicted = probabilities.max(dim=1)
    return confidence, predicted == targets


def adaptive_gap(confidence: Tensor, correct: Tensor, n_bins: int) -> Tensor:
    """Compute the adaptive calibration error from confidences and correctness; see `adaptive_calibration_error`.

    Args:
        confidence: probability of the most probable class, shape `(N,)`, from `top_label`.
        correct: whether this is the true class, bool of shape `(N,)`, from `top_label`.
        n_bins: number of bins, at least 1.

    Returns:
        A scalar in float64 (float32 on Apple's MPS), within [0, 1]; nan if there is no sample.

    Raises:
        ValueError: if `n_bins` is less than 1.

    Example:
        >>> adaptive_gap(torch.tensor([0.75, 0.5, 1.0, 1.0]), torch.tensor([False, True, True, True]), n_bins=2)
        tensor(0.0625, dtype=torch.float64)
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
    membership = one_hot(_bins(confidence, n_bins), n_bins)
    dtype = accumulation_dtype(probabilities.device)
    return (
        confidence.to(dtype) @ membership.to(dtype),
        (membership * correct.unsqueeze(1)).sum(dim=0),
        membership.sum(dim=0),
    )


def binned_gap(confidence: Tensor, correct: Tensor, count: Tensor) -> Tensor:
    """Return the expected calibration error from the sums of `binned_sums`, a scalar; nan if there is no sample."""
    return (correct - confidence).abs().sum() / count.sum()


def _bins(values: Tensor, n_bins: int) -> Tensor:
    """Return the index of the equal-width bin of each value in [0, 1]; 1 belongs to the last bin."""
    # Compared in float32, as torchmetrics does, so that a value on an edge falls into the same bin.
    edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float32, device=values.device)
    return (torch.bucketize(values.float(), edges, right=True) - 1).clamp(max=n_bins - 1)
