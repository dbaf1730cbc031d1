"""Moments of a fit at which checkpoints are written, and how the loops of a Trainer continue from each of them.

The Trainer leaves out what it had still to do when the checkpoint was written: the validation after a batch, and the
end of an epoch after its last batch. With `max_steps` it mistakes a finished epoch for an unfinished one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.evaluation_loop import RestartStage


@dataclass(frozen=True)
class Moment:
    """Moment of a fit.

    Attributes:
        epochs: finished epochs, the one included whose end hooks are called.
        between_epochs: whether no batch of an unfinished epoch was trained on.
        epoch_end: whether the end hooks of an epoch are called.
        batch_end: whether the end hooks of a batch are called.
        within_batch: whether a batch was begun and not finished.
        last_batch: whether the last batch was the last one of its epoch.
        validation: whether a validation comes next, or is under way.
        accumulates: whether gradients are accumulated over the last batch and the next.
    """

    epochs: int
    between_epochs: bool
    epoch_end: bool
    batch_end: bool
    within_batch: bool
    last_batch: bool
    validation: bool
    accumulates: bool

    @classmethod
    def now(cls, trainer: pl.Trainer, validates: bool) -> Moment:
        """Return the present moment of a fit.

        Args:
            trainer: the Trainer.
            validates: whether a validation is under way.
        """
        fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        epochs: Any = fit_loop.epoch_progress.current
        batches: Any = epoch_loop.batch_progress.current
        between = epochs.started == epochs.processed
        within = not between and batches.ready > batches.processed
        batch_end = not between and not within and batches.processed > batches.completed
        return cls(
            epochs=epochs.processed,
            between_epochs=between,
            epoch_end=between and epochs.processed > epochs.completed,
            batch_end=batch_end,
            within_batch=within,
            last_batch=not between and not within and epoch_loop._num_ready_batches_reached(),
            validation=validates or (batch_end and validation_is_due(trainer)),
            accumulates=not between and not within and batches.ready > 0 and epoch_loop._should_accumulate(),
        )

    @property
    def epoch_ends(self) -> bool:
        """True if the end of the epoch comes next."""
        return self.last_batch and not self.validation

    @property
    def batch_comes_next(self) -> bool:
        """True if another batch of the same epoch comes next."""
        return not (self.between_epochs or self.validation or self.last_batch)


def validation_is_due(trainer: pl.Trainer) -> bool:
    """Return whether a validation follows the batch whose end hooks are called."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and bool(trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher))


def complete_last_batch(state: dict[str, Any], moment: Moment) -> None:
    """Count the last batch of a checkpoint as completed if what follows it is not the next batch.

    Otherwise the Trainer leaves out the validation, or the hooks at the end of the epoch and at the start of the next.

    Args:
        state: state of the fit loop in the checkpoint, which is changed.
        moment: moment at which the checkpoint was written.
    """
    if not moment.batch_end or moment.batch_comes_next:
        return
    for count in ("total", "current"):
        state["epoch_loop.batch_progress"][count]["completed"] += 1
    if moment.epoch_ends:
        state["epoch_loop.state_dict"]["_batches_that_stepped"] += 1


def validate_next(trainer: pl.Trainer) -> None:
    """Let a resumed epoch continue with a whole validation; call this in `on_train_start`."""
    val_loop = trainer.fit_loop.epoch_loop.val_loop
    val_loop.restarting = False
    val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION


def start_next_epoch(trainer: pl.Trainer) -> None:
    """Let a fit that is resumed between two epochs start the next one; call this in `on_train_start`."""
    fit_loop = trainer.fit_loop
    epochs: Any = fit_loop.epoch_progress.current
    if epochs.ready != epochs.started:
        return  # written while the epoch started, which the Trainer does again
    if epochs.completed < epochs.processed:
        fit_loop.epoch_progress.increment_completed()
    fit_loop.reset_restart_stage()
    fit_loop._restarting = False
    fit_loop.epoch_loop.restarting = False
