"""Predictions and targets of a test: how to read them from what a step returns, and their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_snn.callbacks.predictions import read_prediction, read_step_outputs
from lightning_snn.metrics.functional import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    top_label,
)

PER_CLASS = ("class", "samples", "accuracy", "precision", "f1", "confidence", "nll")


class Tested(NamedTuple):
    """Predictions and targets of a test."""

    prediction: Tensor
    target: Tensor

    @property
    def classes(self) -> int:
        """Number of classes; 0 for a regression."""
        prediction, target = self
        is_classification = prediction.dim() == 2 and target.dim() == 1 and not target.is_floating_point()
        return prediction.shape[1] if is_classification else 0


def read_tested(outputs: Any, pl_module: pl.LightningModule) -> Tested:
    """Return the prediction and the target that a step returned.

    Raises:
        ValueError: if it returned anything else.
    """
    found = read_step_outputs(outputs)
    prediction = None if found is None else read_prediction(found.prediction)
    if found is None or prediction is None or not isinstance(found.target, Tensor):
        got = f"a dict with the keys {list(outputs)}" if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ValueError(
            f"Expected `test_step` of {type(pl_module).__name__} to return "
            '{"prediction": class probabilities [B, C], "target": classes [B]} for the report, but got ' + got
        )
    # small integer types would overflow as indices of classes
    target = found.target if found.target.is_floating_point() else found.target.long()
    return Tested(prediction.mean.detach(), target.detach())


def classified_scores(tested: Tested) -> dict[str, float]:
    """Return the scores of classes: accuracy, negative log-likelihood in nats, Brier score, and ECE (15 bins)."""
    probabilities, targets = tested
    return {
        "accuracy": top_label(probabilities, targets)[1].double().mean().item(),
        "nll": negative_log_likelihood(probabilities, targets).item(),
        "brier": brier_score(probabilities, targets).item(),
        "ece": expected_calibration_error(probabilities, targets).item(),
    }


def per_class(tested: Tested, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return `PER_CLASS` for each class; undefined values are None."""
    classes = len(names)
    probabilities, targets = (part.cpu() for part in tested)
    confidence, predicted = probabilities.max(1)
    nll = negative_log_likelihood(probabilities, targets, reduction="none")
    labels = targets[predicted == targets], targets, predicted
    correct, samples, predictions = (torch.bincount(chosen, minlength=classes).double() for chosen in labels)
    confidences, losses = (torch.bincount(targets, values.double(), classes) for values in (confidence, nll))
    f1 = 2 * correct / (samples + predictions)
    quantities = [correct / samples, correct / predictions, f1, confidences / samples, losses / samples]
    measured = torch.stack(quantities, 1).tolist()
    rows = (
        (name, int(count), *(None if math.isnan(value) else value for value in row))
        for name, count, row in zip(names, samples.tolist(), measured, strict=True)
    )
    return [dict(zip(PER_CLASS, row, strict=True)) for row in rows]
