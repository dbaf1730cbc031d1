"""Metrics of validation and test data, by task."""

from __future__ import annotations

from collections.abc import Sequence

from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_snn.metrics.probability import BrierScore, NegativeLogLikelihood, WithinPairAccuracy
from lightning_snn.metrics.uncertainty import ExpectedCalibrationError


def evaluation_metrics(num_classes: int | None, pairs: Sequence[tuple[int, int]] = ()) -> MetricCollection:
    """Return accuracy, negative log-likelihood, Brier score and calibration error, or the mean squared error.

    Args:
        num_classes: number of classes C of a classification; None for a regression.
        pairs: pairs of classes whose within-pair accuracy is a further metric.

    Raises:
        ValueError: if a pair holds a class of `num_classes` or above.

    Example:
        >>> sorted(evaluation_metrics(num_classes=3))
        ['accuracy', 'brier', 'ece', 'nll']
    """
    if num_classes is None:
        return MetricCollection({"mse": MeanSquaredError()})
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "nll": NegativeLogLikelihood(),
        "brier": BrierScore(),
        "ece": ExpectedCalibrationError(n_bins=15),
    }
    if pairs:
        metrics["pair_accuracy"] = WithinPairAccuracy(pairs)
        if max(max(pair) for pair in pairs) >= num_classes:
            raise ValueError(f"Expected argument `pairs` to hold classes below {num_classes}, but got {list(pairs)!r}")
    return MetricCollection(metrics, compute_groups=False)
