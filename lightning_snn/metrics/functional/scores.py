"""Scores of class predictions: means over samples, or one value per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_snn.metrics.functional._inputs import (
    Reduction,
    accumulation_dtype,
    check_pairs,
    check_samples,
    reduced,
)


def negative_log_likelihood(probabilities: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute the negative log-likelihood of the true classes under the predicted probabilities.

    NLL = -1/N sum_n log p_n[y_n]

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        reduction: `"mean"` over samples, or `"none"` for one value per sample.

    Returns:
        A scalar, or shape `(N,)`, in nats, within [0, inf]; inf if a true class has probability 0. The mean is nan if
        there is no sample.

    Raises:
        ValueError: if an argument is not as stated above.

    Example:
        >>> negative_log_likelihood(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([1, 0]))
        tensor(0.3466, dtype=torch.float64)
    """
    check_samples(probabilities, targets)
    true_class_probability = probabilities.gather(1, targets.long().unsqueeze(1)).squeeze(1)
    return reduced(-true_class_probability.to(accumulation_dtype(probabilities.device)).log(), reduction)


def brier_score(probabilities: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute the Brier score: the squared distance between the probabilities and the one-hot true class.

    BS = 1/N sum_n sum_c (p_n[c] - 1[y_n = c])^2

    This is Brier's definition, a sum over the classes. It is twice the form for two classes that uses one class only,
    and C times the form that is averaged over the classes.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        reduction: `"mean"` over samples, or `"none"` for one value per sample.

    Returns:
        A scalar, or shape `(N,)`, within [0, 2]. The mean is nan if there is no sample.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78, 1950.

    Example:
        >>> brier_score(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([1, 0]))
        tensor(0.2500, dtype=torch.float64)
    """
    check_samples(probabilities, targets)
    truth = one_hot(targets.long(), probabilities.shape[1])
    difference = probabilities.to(accumulation_dtype(probabilities.device)) - truth
    return reduced(difference.square().sum(dim=1), reduction)


def within_pair_accuracy(
    probabilities: Tensor, targets: Tensor, pairs: Sequence[tuple[int, int]], reduction: Reduction = "mean"
) -> Tensor:
    """Compute the accuracy of distinguishing the two classes of a pair, over the samples whose class is in a pair.

    A = 1/M sum_m 1[argmax_{c in pair(y_m)} p_m[c] = y_m], over the M samples whose class y_m belongs to a pair

    If the classes of each pair differ only in the direction of motion (clockwise and counter-clockwise), a model that
    sums over time is near 0.5, and a model that uses the order of events can reach 1. The probabilities of classes
    outside of the pair are ignored, so this is not the accuracy among all classes.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1].
        targets: true classes, integers of shape `(N,)`, in [0, C).
        pairs: disjoint pairs of classes. If both probabilities are equal, the first class of the pair is predicted.
        reduction: `"mean"` over the samples in pairs, or `"none"` for one value (0 or 1) for each of them, in order.

    Returns:
        A scalar, or shape `(M,)`, within [0, 1]. The mean is nan if no sample belongs to a pair.

    Raises:
        ValueError: if an argument is not as stated above.

    Example:
        >>> probabilities = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0], [0.1, 0.1, 0.8]])
        >>> within_pair_accuracy(probabilities, torch.tensor([1, 1, 2]), pairs=[(0, 1)])
        tensor(0.5000, dtype=torch.float64)
    """
    check_samples(probabilities, targets)
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
    return reduced(correct.to(accumulation_dtype(probabilities.device)), reduction)


def bit_accuracy(spike_probabilities: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute the fraction of output neurons whose spike or silence is correct, each considered independently.

    A = 1/(N C) sum_n sum_c 1[(p_n[c] > 1/2) = (y_n = c)]

    This is not the accuracy among classes, and it is much higher: outputs that never spike reach 1 - 1/C.

    Args:
        spike_probabilities: probability that each output spikes, shape `(N, C)`, in [0, 1]; the rows need not sum to
            one.
        targets: true classes, integers of shape `(N,)`, in [0, C).
        reduction: `"mean"` over samples, or `"none"` for one value per sample.

    Returns:
        A scalar, or shape `(N,)`, within [0, 1]. The mean is nan if there is no sample.

    Raises:
        ValueError: if an argument is not as stated above.

    Example:
        >>> bit_accuracy(torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.3, 0.2]]), torch.tensor([0, 1]))
        tensor(0.6667, dtype=torch.float64)
    """
    check_samples(spike_probabilities, targets, "spike_probabilities", whole=False)
    truth = one_hot(targets.long(), spike_probabilities.shape[1]).bool()
    right = (spike_probabilities > 0.5) == truth
    return reduced(right.to(accumulation_dtype(right.device)).mean(dim=1), reduction)
