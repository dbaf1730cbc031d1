"""Restoring what the Trainer leaves out when it resumes a run."""

from lightning_snn.resuming.averages import add_epoch_sums, epoch_metrics, epoch_sums
from lightning_snn.resuming.generators import Generators
from lightning_snn.resuming.loaders import TrackedLoaders, restore_loader_states, track_loaders
from lightning_snn.resuming.loops import Moment, complete_last_batch, start_next_epoch, validate_next, validation_is_due

__all__ = [
    "Generators",
    "Moment",
    "TrackedLoaders",
    "add_epoch_sums",
    "complete_last_batch",
    "epoch_metrics",
    "epoch_sums",
    "restore_loader_states",
    "start_next_epoch",
    "track_loaders",
    "validate_next",
    "validation_is_due",
]
