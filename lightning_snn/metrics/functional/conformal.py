"""Conformal prediction sets: sets of classes that contain the true class with a chosen probability.

Calibration: compute the score of the true class for held-out data, and from these scores the threshold. Prediction: the
set holds all classes whose score is at most the threshold. If calibration and test data are exchangeable, the set of a
new sample contains its true class with a probability of at least 1 - alpha, whatever the predictor.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from lightning_snn.checks import check_between, check_choice, check_fraction, check_integer
from lightning_snn.metrics.functional._inputs import (
    INTEGER_DTYPES,
    accumulation_dtype,
    check_numbers,
    check_samples,
    kind_of,
)

Score = Literal["lac", "aps", "raps"]

SCORES: tuple[Score, ...] = ("lac", "aps", "raps")


def conformal_scores(
    probabilities: Tensor,
    score: Score = "aps",
    generator: torch.Generator | None = None,
    penalty: float = 0.01,
    free_classes: int = 5,
) -> Tensor:
    """Compute the nonconformity score of each class: how badly the class fits the prediction.

    - "lac": ``s[c] = 1 - p[c]``; the smallest sets on average, but of nearly the same size for easy and hard samples;
    - "aps": ``s[c] = sum of all p[j] before c + u p[c]``, with the classes in descending order of their probability;
      the sizes follow the difficulty of the sample;
    - "raps": "aps" plus ``penalty max(0, rank[c] - free_classes)``, with the rank of the most probable class 1; without
      the large sets that "aps" gives for many improbable classes.

    With a generator, u is drawn uniformly from [0, 1), once per sample; without one, u = 1, and the sets of "aps" and
    "raps" cover more than 1 - alpha. Classes of equal probability are in the order of their index.

    Args:
        probabilities: class probabilities, shape `(N, C)`, in [0, 1]; or after each of T time steps, shape `(T, N, C)`,
            with the same u in all of them.
        score: "lac" (least ambiguous set-valued classifier), "aps" (adaptive prediction sets) or "raps" (regularized
            adaptive prediction sets).
        generator: source of the random numbers u, on any device; "lac" draws none.
        penalty: penalty of "raps" for each further class, at least 0.
        free_classes: number of classes without a penalty in "raps", at least 0.

    Returns:
        Scores in float64 (float32 on Apple's MPS), of the shape of `probabilities`, at least 0.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: after M. Sadinle, J. Lei and L. Wasserman, "Least ambiguous set-valued classifiers with bounded error
    levels", JASA 2019 ("lac"); Y. Romano, M. Sesia and E. Candes, "Classification with valid and adaptive coverage",
    NeurIPS 2020 ("aps"); and A. Angelopoulos et al., "Uncertainty sets for image classifiers using conformal
    prediction", ICLR 2021 ("raps").

    Example:
        >>> conformal_scores(torch.tensor([[0.5, 0.25, 0.25]]), "lac")
        tensor([[0.5000, 0.7500, 0.7500]], dtype=torch.float64)
        >>> conformal_scores(torch.tensor([[0.5, 0.25, 0.25]]), "aps")
        tensor([[0.5000, 0.7500, 1.0000]], dtype=torch.float64)
    """
    check_conformal(score, penalty, free_classes)
    _check_probabilities(probabilities)
    wide = probabilities.detach().to(accumulation_dtype(probabilities.device))
    if score == "lac":
        return 1 - wide
    descending, order = wide.sort(dim=-1, descending=True, stable=True)
    before = descending.cumsum(-1) - descending
    samples = wide.shape[-2]
    share = torch.ones(samples, dtype=torch.float64)
    if generator is not None:
        share = torch.rand(samples, generator=generator, dtype=torch.float64, device=generator.device)
    ranked = before + share.to(wide.device, wide.dtype).unsqueeze(-1) * descending
    if score == "raps":
        rank = torch.arange(1, wide.shape[-1] + 1, device=wide.device, dtype=wide.dtype)
        ranked = ranked + penalty * (rank - free_classes).clamp(min=0)
    return torch.zeros_like(wide).scatter(-1, order, ranked)


def true_class_scores(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the scores of the true classes, those from which `conformal_threshold` is computed.

    Args:
        scores: scores from `conformal_scores`, shape `(N, C)` or `(T, N, C)`.
        targets: true classes, integers of shape `(N,)`, in [0, C).

    Returns:
        Shape `(N,)` or `(T, N)`.

    Raises:
        ValueError: if an argument is not as stated above.

    Example:
        >>> true_class_scores(torch.tensor([[0.5, 0.75], [0.25, 1.0]]), torch.tensor([1, 0]))
        tensor([0.7500, 0.2500])
    """
    _check_axes("scores", scores)
    _check_classes(targets, scores, "scores")
    return scores.gather(-1, _columns(targets, scores)).squeeze(-1)


def conformal_threshold(scores: Tensor, alpha: float = 0.1) -> Tensor:
    """Compute the threshold of the prediction sets from the scores of the true classes of held-out data.

    The threshold is the k-th smallest of the n scores with ``k = ceil((n + 1) (1 - alpha))``, and infinite if k > n,
    which gives sets of all classes: at least ``1 / alpha - 1`` samples are needed for smaller sets.

    Args:
        scores: scores of the true classes, shape `(n,)`, or `(T, n)` for one threshold after each time step.
        alpha: chosen probability that a set lacks the true class, within (0, 1).

    Returns:
        A scalar, or shape `(T,)`, in the dtype of the scores.

    Raises:
        ValueError: if an argument is not as stated above, there is no score, or one is nan.

    Source: after V. Vovk, A. Gammerman and G. Shafer, "Algorithmic learning in a random world", 2005; the formula is in
    A. Angelopoulos and S. Bates, "A gentle introduction to conformal prediction", 2021.

    Example:
        >>> conformal_threshold(torch.tensor([0.1, 0.4, 0.2, 0.3]), alpha=0.2)
        tensor(0.4000)
        >>> conformal_threshold(torch.tensor([0.1, 0.4, 0.2, 0.3]), alpha=0.1)
        tensor(inf)
    """
    check_fraction("alpha", alpha)
    if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.ndim not in (1, 2):
        raise ValueError(
            f"Expected argument `scores` to be a floating-point tensor of shape (n,) or (T, n), but got "
            f"{kind_of(scores)}"
        )
    number = scores.shape[-1]
    if number == 0:
        raise ValueError("Expected argument `scores` to hold at least one score of held-out data, but got none")
    check_numbers("scores", scores)
    rank = number + 1 - _missed(number, alpha)
    if rank > number:
        return scores.new_full(scores.shape[:-1], math.inf)
    return scores.sort(dim=-1).values[..., rank - 1]


def prediction_sets(scores: Tensor, threshold: Tensor | float) -> Tensor:
    """Return the prediction sets: the classes whose scores are at most the threshold.

    A set may be empty: in "lac", and in "aps" and "raps" with random numbers. Adding the most probable class to each
    set keeps the guarantee and makes the coverage larger than chosen.

    Args:
        scores: scores from `conformal_scores`, shape `(N, C)` or `(T, N, C)`.
        threshold: threshold from `conformal_threshold`, a scalar, or shape `(T,)`.

    Returns:
        Whether each class is in the set, bool of the shape of `scores`.

    Raises:
        ValueError: if an argument is not as stated above, or the threshold is nan.

    Example:
        >>> prediction_sets(torch.tensor([[0.5, 0.75, 1.0], [0.9, 0.99, 1.0]]), 0.75)
        tensor([[ True,  True, False],
                [False, False, False]])
    """
    _check_axes("scores", scores)
    limit = torch.as_tensor(threshold, dtype=scores.dtype, device=scores.device)
    if limit.ndim > 1 or (limit.ndim == 1 and (scores.ndim != 3 or len(limit) != len(scores))):
        raise ValueError(
            "Expected argument `threshold` to be one number, or one for each time step of `scores`, but got shape "
            f"{tuple(limit.shape)} for scores of shape {tuple(scores.shape)}"
        )
    check_numbers("threshold", limit)
    return scores <= (limit[:, None, None] if limit.ndim else limit)


def set_coverage(sets: Tensor, targets: Tensor) -> Tensor:
    """Compute the coverage of prediction sets: the fraction of samples whose set contains the true class.

    Args:
        sets: whether each class is in the set, bool of shape `(N, C)` or `(T, N, C)`.
        targets: true classes, integers of shape `(N,)`, in [0, C).

    Returns:
        A scalar, or shape `(T,)`, in float64 (float32 on Apple's MPS), within [0, 1]; nan if there is no sample.

    Raises:
        ValueError: if an argument is not as stated above.

    Example:
        >>> set_coverage(torch.tensor([[True, True, False], [False, True, False]]), torch.tensor([0, 2]))
        tensor(0.5000, dtype=torch.float64)
    """
    return covered(sets, targets).to(accumulation_dtype(sets.device)).mean(-1)


def covered(sets: Tensor, targets: Tensor) -> Tensor:
    """Return whether each prediction set contains the true class; see `set_coverage`.

    Returns:
        Bool of shape `(N,)` or `(T, N)`.

    Raises:
        ValueError: if an argument is not as `set_coverage` states.
    """
    check_sets(sets)
    _check_classes(targets, sets, "sets")
    return sets.gather(-1, _columns(targets, sets)).squeeze(-1)


def set_size(sets: Tensor) -> Tensor:
    """Compute the mean number of classes in prediction sets.

    Args:
        sets: whether each class is in the set, bool of shape `(N, C)` or `(T, N, C)`.

    Returns:
        A scalar, or shape `(T,)`, in float64 (float32 on Apple's MPS), within [0, C]; nan if there is no sample.

    Raises:
        ValueError: if `sets` is not as stated above.

    Example:
        >>> set_size(torch.tensor([[True, True, False], [False, True, False]]))
        tensor(1.5000, dtype=torch.float64)
    """
    check_sets(sets)
    return sets.sum(-1).to(accumulation_dtype(sets.device)).mean(-1)


def coverage_interval(calibration: int, test: int, alpha: float = 0.1, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the coverage that chance alone gives for exchangeable data.

    For scores without ties, the number of covered test samples has a beta-binomial distribution with the parameters
    ``n + 1 - l`` and ``l = floor((n + 1) alpha)`` for n calibration samples. A coverage outside of the interval is
    evidence that calibration and test data differ.

    Args:
        calibration: number n of calibration samples, at least 1.
        test: number of test samples, at least 1.
        alpha: chosen probability that a set lacks the true class, within (0, 1).
        level: probability of a coverage within the interval, within (0, 1); at least this, with equal tails.

    Returns:
        Smallest and largest coverage; both 1 if there are too few calibration samples for sets of less than all
        classes.

    Raises:
        ValueError: if an argument is not as stated above.

    Source: after V. Vovk, "Conditional validity of inductive conformal predictors", ACML 2012.

    Example:
        >>> low, high = coverage_interval(calibration=1000, test=1000, alpha=0.1)
        >>> round(low, 3), round(high, 3)
        (0.873, 0.925)
    """
    check_integer("calibration", calibration)
    check_integer("test", test)
    check_fraction("alpha", alpha)
    check_fraction("level", level)
    missed = _missed(calibration, alpha)
    if missed == 0:
        return 1.0, 1.0
    first, second = float(calibration + 1 - missed), float(missed)
    number = torch.arange(test + 1, dtype=torch.float64)
    log_probability = _log_beta(number + first, test - number + second) - _log_beta(
        torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    )
    log_probability -= _log_beta(number + 1, test - number + 1) + math.log(test + 1)
    cumulative = log_probability.exp().cumsum(0)
    tail = (1 - level) / 2
    low, high = (int((cumulative < edge).sum()) for edge in (tail, 1 - tail))
    return low / test, min(high, test) / test


def check_conformal(score: str, penalty: float, free_classes: int) -> None:
    """Check the settings of a score.

    Raises:
        ValueError: if a setting is outside the range that `conformal_scores` states.
    """
    check_choice("score", score, SCORES)
    check_between("penalty", penalty, 0, math.inf)
    check_integer("free_classes", free_classes, minimum=0)


def check_sets(sets: Tensor) -> None:
    """Check for prediction sets, bool of shape `(N, C)` or `(T, N, C)`.

    Raises:
        ValueError: if they are anything else.
    """
    if not isinstance(sets, Tensor) or sets.dtype != torch.bool or sets.ndim not in (2, 3):
        raise ValueError(
            f"Expected argument `sets` to be a tensor of dtype torch.bool and shape (N, C) or (T, N, C), but got "
            f"{kind_of(sets)}"
        )


def _check_probabilities(probabilities: Tensor) -> None:
    _check_axes("probabilities", probabilities)
    rows = probabilities.flatten(0, -2)
    check_samples(rows, torch.zeros(len(rows), dtype=torch.long, device=rows.device))


def _check_axes(name: str, values: Tensor) -> None:
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.ndim not in (2, 3):
        raise ValueError(
            f"Expected argument `{name}` to be a floating-point tensor of shape (N, C) or (T, N, C), but got "
            f"{kind_of(values)}"
        )


def _check_classes(targets: Tensor, values: Tensor, name: str) -> None:
    if not isinstance(targets, Tensor) or targets.dtype not in INTEGER_DTYPES or targets.shape != values.shape[-2:-1]:
        raise ValueError(
            f"Expected argument `targets` to be an integer tensor with one class for each of the {values.shape[-2]} "
            f"samples of `{name}`, but got {kind_of(targets)}"
        )
    if len(targets) and not (targets.min() >= 0 and targets.max() < values.shape[-1]):
        raise ValueError(
            f"Expected argument `targets` to hold classes from 0 to {values.shape[-1] - 1}, but got values from "
            f"{targets.min()} to {targets.max()}. Leave out samples without a label."
        )


def _columns(targets: Tensor, values: Tensor) -> Tensor:
    """Return the true classes as indices of shape `(..., N, 1)` into values of shape `(..., N, C)`."""
    return targets.long().to(values.device).unsqueeze(-1).expand(*values.shape[:-1], 1)


def _missed(number: int, alpha: float) -> int:
    """Return ``floor((n + 1) alpha)`` for the decimal number that `alpha` is written as, without rounding."""
    return math.floor((number + 1) * Fraction(repr(float(alpha))))


def _log_beta(first: Tensor, second: Tensor) -> Tensor:
    return first.lgamma() + second.lgamma() - (first + second).lgamma()
