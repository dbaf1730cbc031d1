"""Losses written out by hand in NumPy, one sample after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def cross_entropy(output: Array, y: Array, smoothing: float = 0.0, weights: Sequence[float] | None = None) -> float:
    """Return the weighted mean over samples of the cross-entropy with smoothed labels."""
    classes = output.shape[1]
    weights = [1.0] * classes if weights is None else weights
    total = norm = 0.0
    for logits, label in zip(output, y, strict=True):
        probabilities = [smoothing / classes + (1 - smoothing) * (each == label) for each in range(classes)]
        surprise = -log_softmax(logits)
        total += sum(p * w * s for p, w, s in zip(probabilities, weights, surprise, strict=True))
        norm += weights[label]
    return total / norm


def binary_cross_entropy(output: Array, y: Array, pos_weight: Sequence[float] | None = None) -> float:
    weights = [1.0] * output.shape[1] if pos_weight is None else pos_weight
    present = 1 / (1 + np.exp(-output))
    return float(-np.mean(np.asarray(weights) * y * np.log(present) + (1 - y) * np.log(1 - present)))


def squared_error(output: Array, y: Array) -> float:
    return float(np.mean((output - y) ** 2))


def temporal_efficient(outputs: Array, y: Array, weight: float, target: float) -> float:
    """Return the loss of outputs `[T, B, C]`."""
    steps = [(1 - weight) * cross_entropy(each, y) + weight * np.mean((each - target) ** 2) for each in outputs]
    return float(np.mean(steps))


def divergence(teacher: Array, student: Array, temperature: float) -> float:
    """Return the mean over samples of the KL of the teacher from the student."""
    total = 0.0
    for taught, learned in zip(teacher / temperature, student / temperature, strict=True):
        log_p, log_q = log_softmax(taught), log_softmax(learned)
        total += float((np.exp(log_p) * (log_p - log_q)).sum())
    return total / len(teacher)
