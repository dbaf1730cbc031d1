"""Loader whose position in the epoch is part of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader


class ResumableLoader(DataLoader[Any]):
    """Loader that continues a stopped run with the next batch.

    Batches before that position are read again and discarded. The order must depend on the epoch alone, as with
    `EpochSampler` and `FixedBatches`.

    Attributes:
        position: returns the number of batches of the present epoch that were trained on.
        start: batches that the next iteration leaves out.
    """

    # attributes, because Lightning builds loaders anew from the arguments of `DataLoader` and sets attributes again
    position: Callable[[], int] = staticmethod(lambda: 0)
    start = 0

    def __iter__(self) -> Any:
        # the position belongs to the iterator of the resumed epoch, which the trainer creates before any other
        start, self.start = self.start, 0
        return self._batches(start)

    def _batches(self, start: int) -> Iterator[Any]:
        # lazy, so that the order is that of the epoch that the trainer sets after it has created the iterator
        for index, batch in enumerate(super().__iter__()):
            if index >= start:
                yield batch

    def rewind(self) -> None:
        """Start the next iteration with the first batch; `ExactResume` calls this, and reads batches again itself."""
        self.start = 0

    def state_dict(self) -> dict[str, int]:
        """Return the position in the epoch and the batches per epoch; the trainer calls this."""
        return {"yielded": self.position(), "batches": len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start the next epoch after the batches that were trained on.

        Raises:
            ValueError: if the epoch had another number of batches, so that its position has no meaning.
        """
        start, batches = state_dict["yielded"], state_dict.get("batches", len(self))
        if start and batches != len(self):
            raise ValueError(
                f"Expected {batches} training batches per epoch, as when the checkpoint was written within an epoch, "
                f"but got {len(self)}. Resume with the same data and batch size, or from a checkpoint at the end of an "
                "epoch"
            )
        self.start = start


def trained_batches(trainer: pl.Trainer | None) -> int:
    """Return how many batches of the present epoch a trainer has finished; 0 between epochs.

    A batch in progress does not count, so a checkpoint that is written when training fails repeats it.
    """
    if trainer is None:
        return 0
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    between = epochs.started == epochs.processed or batches.processed >= trainer.num_training_batches
    return 0 if between else int(batches.processed)
