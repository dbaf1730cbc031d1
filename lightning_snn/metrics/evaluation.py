"""Metrics of validation and test data, by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MultilabelAccuracy,
    MultilabelExactMatch,
    MultilabelF1Score,
)

from lightning_snn.methods.tasks import Kind
from lightning_snn.metrics.labels import LabelNegativeLogLikelihood
from lightning_snn.metrics.probability import BrierScore, NegativeLogLikelihood, WithinPairAccuracy
from lightning_snn.metrics.uncertainty import ExpectedCalibrationError


def evaluation_metrics(
    kind: Kind,
    num_classes: int | None = None,
    pairs: Sequence[tuple[int, int]] = (),
    further: Mapping[str, Metric] | None = None,
) -> MetricCollection:
    """Return the metrics of a kind of predictions, updated with the mean of a prediction and targets.

    Args:
        kind: "classification" has accuracy, negative log-likelihood, Brier score and calibration error;
            "multi_label" accuracy over labels, the share of samples of which all labels are right, F1, the mean over
            labels, and the negative log-likelihood per label; "regression" the mean squared error; "own" none.
        num_classes: number of classes or labels C.
        pairs: pairs of classes whose within-pair accuracy is a further metric.
        further: further metrics by name, which replace those of the same name.

    Raises:
        ValueError: if a pair holds a class of `num_classes` or above, or there are pairs and no classes, or a further
            metric is none.

    Example:
        >>> sorted(evaluation_metrics("classification", num_classes=3))
        ['accuracy', 'brier', 'ece', 'nll']
    """
    for name, metric in (further or {}).items():
        if not isinstance(metric, Metric):
            raise ValueError(
                f"Expected argument `metrics` to hold torchmetrics by name, but got {metric!r} as {name!r}. Pass an "
                "instance of a Metric"
            )
    metrics = _metrics_of(kind, num_classes)
    if pairs and kind == "classification":
        metrics["pair_accuracy"] = WithinPairAccuracy(pairs)
        if num_classes is not None and max(max(pair) for pair in pairs) >= num_classes:
            raise ValueError(f"Expected argument `pairs` to hold classes below {num_classes}, but got {list(pairs)!r}")
    return MetricCollection({**metrics, **(further or {})}, compute_groups=False)


def monitored_metric(metrics: MetricCollection) -> str | None:
    """Return the name of the metric of validation data that schedules and checkpoints minimize by default.

    It is the negative log-likelihood or the mean squared error, and None if there is neither.

    Args:
        metrics: metrics of validation data, from `evaluation_metrics`.

    Example:
        >>> monitored_metric(evaluation_metrics("regression"))
        'val/mse'
    """
    names = set(metrics.keys(keep_base=True))
    return next((f"val/{name}" for name in ("nll", "mse") if name in names), None)


def _metrics_of(kind: Kind, num_classes: int | None) -> dict[str, Metric | MetricCollection]:
    if kind == "regression":
        return {"mse": MeanSquaredError()}
    if kind == "own":
        return {}
    assert num_classes is not None
    if kind == "multi_label":
        return {
            "accuracy": MultilabelAccuracy(num_classes, average="micro"),
            "exact_match": MultilabelExactMatch(num_classes),
            "f1": MultilabelF1Score(num_classes, average="macro"),
            "nll": LabelNegativeLogLikelihood(),
        }
    return {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "nll": NegativeLogLikelihood(),
        "brier": BrierScore(),
        "ece": ExpectedCalibrationError(n_bins=15),
    }
