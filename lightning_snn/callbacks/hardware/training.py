"""What a trainer is asked for in the midst of a run: validation unseen, other learning rates, scores forgotten."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor


def validate(trainer: pl.Trainer, metric: str) -> dict[str, Tensor]:
    """A metric of the validation data by its name, or "all" that it logs, within a fit; callbacks, loggers and random
    numbers notice nothing."""
    loop, stage = trainer.fit_loop.epoch_loop.val_loop, trainer.state.stage
    callbacks, loggers = trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    known = [(logged, dict(logged)) for logged in _logged(trainer)]
    try:
        trainer.callbacks, trainer.loggers = [], []  # type: ignore[attr-defined]
        trainer.validating = True
        trainer.callback_metrics.clear()
        with isolate_rng():
            # the same noise whenever a network is measured
            torch.manual_seed(0)
            loop.run()
        # where a module logs without `sync_dist` every process has its own
        found = values(trainer, metric)
        return {name: found[name].clone() for name in sorted(found)}
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
        trainer.state.stage = stage
        for logged, before in known:
            logged.clear()
            logged.update(before)


def forget_best(trainer: pl.Trainer) -> None:
    """Let checkpoints of the best epoch, and stopping early, begin anew: scores from now on are of another network."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = callback.kth_value = None  # type: ignore[assignment]
    for stopping in trainer.early_stopping_callbacks:
        stopping.wait_count = 0
        stopping.best_score = torch.full_like(stopping.best_score, torch.inf if stopping.mode == "min" else -torch.inf)


def _logged(trainer: pl.Trainer) -> list[dict[str, Any]]:
    return [trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics]


def values(trainer: pl.Trainer, metric: str) -> dict[str, Tensor]:
    """What was logged last, by name: one metric, or "all".

    Raises:
        ValueError: if there is none of that name.
    """
    logged = trainer.callback_metrics
    if metric == "all":
        return dict(logged)
    if metric not in logged:
        found = ", ".join(logged) or "nothing"
        raise ValueError(f"Expected argument `metric` to be what validation logs, which is {found}, but got {metric!r}")
    return {metric: logged[metric]}


def scale_learning_rates(trainer: pl.Trainer, factor: float) -> None:
    """Multiply the learning rates of all optimizers, and those that their schedules come back to."""
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
        # those that chain others
        schedulers += getattr(scheduler, "_schedulers", [])
