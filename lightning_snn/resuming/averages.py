"""Averages of training metrics over an epoch within which a run resumes."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor


def epoch_sums(trainer: pl.Trainer) -> dict[str, dict[str, Tensor]]:
    """Return the sums, maxima or minima of this process from which training metrics of the epoch are computed."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, metric in _reduced(trainer):
        found[key] = {"value": metric.value.detach().cpu().clone()}
        if metric.meta.is_mean_reduction:
            found[key]["samples"] = metric.cumulated_batch_size.cpu().clone()
    return found


def add_epoch_sums(trainer: pl.Trainer, sums: dict[str, dict[str, Tensor]]) -> None:
    """Add sums of the run before to those of the metrics that are logged by now, and remove them from `sums`."""
    for key, metric in _reduced(trainer) if sums else ():
        if key not in sums:
            continue
        before = {name: part.to(metric.value.device) for name, part in sums.pop(key).items()}
        if metric.meta.is_mean_reduction:
            metric.cumulated_batch_size = before["samples"] + metric.cumulated_batch_size
        if metric.meta.is_mean_reduction or metric.meta.is_sum_reduction:
            metric.value = before["value"] + metric.value
        else:
            metric.value = metric.meta.reduce_fx(before["value"], metric.value)
        metric._computed = None


def epoch_metrics(trainer: pl.Trainer) -> dict[str, Tensor]:
    """Return the training metrics as they are at the end of the epoch, after its last batch."""
    return dict(trainer.fit_loop.epoch_loop._results.metrics(on_step=False)["callback"])


def _reduced(trainer: pl.Trainer) -> list[tuple[str, Any]]:
    results: dict[str, Any] = trainer.fit_loop.epoch_loop._results
    return [
        (key, metric)
        for key, metric in results.items()
        if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset
    ]
