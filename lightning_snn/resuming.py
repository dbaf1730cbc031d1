"""Restoring what the Trainer leaves out when it resumes a run."""

from __future__ import annotations

import lightning.pytorch as pl


def restore_loader_states(trainer: pl.Trainer) -> None:
    """Load the states of resumable training loaders that a Trainer read from a checkpoint and did not load.

    A Trainer sets up the loaders before it restores the loops if `configure_optimizers` asks for
    `estimated_stepping_batches`, and then does not load their states (Lightning issue 20550): the run starts the epoch
    again. Call this in `on_train_start`. It does nothing if the states were loaded, or if no epoch is resumed. Loaders
    are resumable if they have `state_dict` and `load_state_dict`.

    Args:
        trainer: the Trainer, which has set up its loaders.

    Raises:
        RuntimeError: if the checkpoint holds another number of loader states.
    """
    loop = trainer.fit_loop
    if loop.restarting and loop._combined_loader_states_to_load and loop._data_fetcher is not None:
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)  # the first iterator was created before the states were loaded
