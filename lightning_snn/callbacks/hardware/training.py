"""Changes to a running fit: silent validation, scaled learning rates, and reset best scores."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_snn.callbacks.packages import is_a


def validate(trainer: pl.Trainer, metric: str) -> dict[str, Tensor]:
    """Validate within a fit, without effect on callbacks, loggers, and random numbers.

    Args:
        trainer: trainer of the fit.
        metric: name of a metric that the validation logs, or "all". With several loaders it has one value for each.

    Returns:
        Metrics by name, in alphabetical order.
    """
    loop, stage = trainer.fit_loop.epoch_loop.val_loop, trainer.state.stage
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    tables: list[dict[str, Any]] = [trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics]
    saved = [(table, dict(table)) for table in tables]
    try:
        trainer.callbacks, trainer.loggers = [], []  # type: ignore[attr-defined]
        trainer.validating = True
        trainer.callback_metrics.clear()
        with isolate_rng():
            # the same noise in each of these validations
            torch.manual_seed(0)
            loop.run()
        # processes differ if the module logs without `sync_dist`
        found = logged_metrics(trainer, metric)
        return {name: found[name].clone() for name in sorted(found)}
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
        trainer.state.stage = stage
        for table, before in saved:
            table.clear()
            table.update(before)


def reset_best_scores(trainer: pl.Trainer) -> None:
    """Reset the best scores of `ModelCheckpoint` and `EarlyStopping`, because the network changes."""
    for callback in trainer.checkpoint_callbacks:
        if is_a(callback, ModelCheckpoint):
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = callback.kth_value = None  # type: ignore[assignment]
    for stopping in trainer.early_stopping_callbacks:
        stopping.wait_count = 0
        stopping.best_score = torch.full_like(stopping.best_score, torch.inf if stopping.mode == "min" else -torch.inf)


def logged_metrics(trainer: pl.Trainer, metric: str) -> dict[str, Tensor]:
    """Return the metrics that were logged last, by name: one metric, or "all".

    Raises:
        ValueError: if there is no metric of that name.
    """
    logged = trainer.callback_metrics
    if metric == "all":
        return dict(logged)
    named = {name: logged[name] for name in logged if metric in (name, name.partition("/dataloader_idx_")[0])}
    if not named:
        found = ", ".join(logged) or "nothing"
        raise ValueError(
            f"Expected argument `metric` to be logged by the validation (one of {found}), but got {metric!r}"
        )
    return named


def scale_learning_rates(trainer: pl.Trainer, factor: float) -> None:
    """Multiply the learning rates of all optimizers and the base values of their schedules."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for name in ("lr", "initial_lr", "max_lr", "min_lr"):
                if name in group:
                    group[name] = group[name] * factor
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    while schedulers:
        scheduler = schedulers.pop()
        for name in ("base_lrs", "max_lrs"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])
        # of schedulers that combine others
        schedulers += getattr(scheduler, "_schedulers", [])
