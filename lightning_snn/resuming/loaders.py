"""Positions of the training loaders in their epoch, and how to reach them again with the same random numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_snn.resuming.facts import keeps_workers, length, parts, persists
from lightning_snn.resuming.generators import Generators


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


def track_loaders(trainer: pl.Trainer) -> TrackedLoaders:
    """Track the training loaders of a Trainer; call this in `setup` of a fit, before it requests them.

    The loaders themselves, their order and their random numbers stay as they are. Further calls for the same Trainer
    return the same object, ready for another fit.
    """
    source: Any = trainer.fit_loop._data_source
    tracked = source.dataloader
    if not isinstance(tracked, TrackedLoaders):
        tracked = source.dataloader = TrackedLoaders(trainer, source.dataloader)
    tracked.reset()
    return tracked


class TrackedLoaders:
    """Iterations of a Trainer through its training loaders.

    An iteration is repeated from three states of the generators: before the iterator was created, before its first
    batch was fetched, and the present one. The batches between are fetched again and discarded, because samplers, data
    sets and worker processes may draw random numbers for each of them.

    Args:
        trainer: the Trainer.
        request: returns its training loaders.

    Attributes:
        armed: False until training starts, while loaders are set up and states are restored.
        prefetches: whether the Trainer fetches a batch in advance, to know the last one.
        iterations: present iteration through each loader.
    """

    def __init__(self, trainer: pl.Trainer, request: Any) -> None:
        self.trainer, self.request = trainer, request
        self.reset()

    def reset(self) -> None:
        """Forget all iterations and positions."""
        self.armed = self.prefetches = self._ended = False
        self.iterations: dict[int, _Iteration] = {}
        self._loaders: list[Any] = []
        self._checkpoint: dict[str, Any] | None = None
        self._positions: dict[int, dict[str, Any]] = {}
        self._states: dict[str, Any] | None = None
        self._epoch = 0

    def __call__(self) -> Any:
        """Return the loaders for the Trainer, combined such that their iterations are tracked."""
        loaders = self.request()
        loop = next(kind for kind in type(self.trainer.fit_loop).__mro__ if kind.__name__ == "_FitLoop")
        combined = sys.modules[loop.__module__].CombinedLoader  # of the package that the Trainer is of
        if isinstance(loaders, combined):
            made = _tracked_kind(combined)(loaders.iterables, loaders._mode)
        else:
            made = _tracked_kind(combined)(loaders, "max_size_cycle")
        made.tracked = self
        return made

    def generators(self) -> Generators:
        """Return the generators of training: global ones, and those of the module, the data module and the loaders."""
        owners: list[object] = [*self.trainer.lightning_module.modules(), getattr(self.trainer, "datamodule", None)]
        for loader in self._loaders:
            owners += parts(loader)
        return Generators(self.trainer.strategy.root_device, owners)

    def states(self) -> dict[str, Any]:
        """Return the states of the generators from which the next batch is fetched."""
        return self.generators().states() if self._states is None else self._states

    def positions(self, ahead: int, between_epochs: bool) -> list[dict[str, Any]]:
        """Return the position of each loader as plain data.

        Args:
            ahead: batches that were fetched and are not trained on.
            between_epochs: whether the next batch is the first one of an epoch.
        """
        return [
            self._positions.get(index) or iteration.position(ahead, between_epochs)
            for index, iteration in sorted(self.iterations.items())
        ]

    def resume(self, checkpoint: dict[str, Any], epoch: int, ended: bool) -> None:
        """Continue from a checkpoint when the next batches are fetched.

        Args:
            checkpoint: what this process saved, with `positions` and `states`.
            epoch: epochs that were finished.
            ended: whether the unfinished epoch has no batches left.
        """
        self._checkpoint, self._ended = checkpoint, ended
        self._positions = dict(enumerate(checkpoint["positions"]))
        self._states, self._epoch = checkpoint["states"], epoch

    def take_checkpoint(self) -> dict[str, Any] | None:
        """Return the checkpoint from which the run resumes, once."""
        checkpoint, self._checkpoint = self._checkpoint, None
        return checkpoint

    def restore(self) -> None:
        """Restore the states of the generators of the resumed run, once."""
        states, self._states = self._states, None
        if states is not None:
            self.generators().restore(states)

    @property
    def resumes(self) -> bool:
        """True until training starts in a run that resumes from a checkpoint."""
        return self._checkpoint is not None

    def check_end(self) -> None:
        """Raise StopIteration if the resumed epoch has no batches left, although a loader may have more."""
        if self._ended:
            raise StopIteration

    def take(self, index: int, of_this_epoch: bool = True) -> dict[str, Any] | None:
        """Return the position from which a loader has to continue, once.

        Args:
            index: number of the loader.
            of_this_epoch: False returns it only if the resumed epoch has ended without another batch.
        """
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        ended = self.armed and epochs.processed != self._epoch
        return None if ended is of_this_epoch else self._positions.pop(index, None)

    def validation_workers(self) -> list[bool]:
        """Return whether each validation loader has worker processes that persist."""
        return [keeps_workers(loader) for loader in self._validation_loaders()]

    def start_validation_workers(self, started: list[bool]) -> None:
        """Start the worker processes that the run before had, for which a validation would draw a seed.

        Args:
            started: what `validation_workers` returned.
        """
        if not any(started):
            return
        if not self._validation_loaders():
            self.trainer.validating = True
            self.trainer.fit_loop.epoch_loop.val_loop.setup_data()
            self.trainer.training = True
        for loader, has_workers in zip(self._validation_loaders(), started, strict=False):
            self.start_workers(loader, has_workers)

    def start_workers(self, loader: Any, started: bool) -> None:
        """Start worker processes that persist, without a trace in the generators, if the run before had them."""
        if started and not keeps_workers(loader) and isinstance(loader, DataLoader):
            generators = self.generators()
            states = generators.states()
            DataLoader.__iter__(loader)
            generators.restore(states)

    def begin(self, loaders: list[Any]) -> list[_Tracked]:
        """Return the loaders such that iterators through them are tracked."""
        self._loaders = loaders
        if self.armed:
            self._ended = False
        return [_Tracked(loader, index, self) for index, loader in enumerate(loaders)]

    def warn_of_persistent_workers(self) -> None:
        """Warn if worker processes keep generators from epoch to epoch, which no checkpoint holds."""
        if any(persists(loader) and not hasattr(loader, "rewind") for loader in self._loaders):
            rank_zero_warn(
                "The training loader has worker processes that keep their random number generators from epoch to "
                "epoch, and checkpoints do not hold them. If the data set draws random numbers, a run that resumes "
                "after the first epoch is not exact; then set `persistent_workers=False`"
            )

    def _validation_loaders(self) -> list[Any]:
        combined = self.trainer.fit_loop.epoch_loop.val_loop._combined_loader
        return [] if combined is None else combined.flattened


class _Tracking:
    """Part of a `CombinedLoader` whose iterators report to `tracked`."""

    tracked: TrackedLoaders

    def __iter__(self: Any) -> Any:
        loaders = self.flattened
        self.flattened = self.tracked.begin(loaders)
        try:
            super().__iter__()  # type: ignore[misc]
        finally:
            self.flattened = loaders  # what the Trainer sees
        self.tracked.prefetches = length(self) is None
        return self

    def __next__(self: Any) -> Any:
        self.tracked.check_end()
        return super().__next__()  # type: ignore[misc]

    def reset(self: Any) -> None:
        self.tracked.iterations.clear()
        super().reset()  # type: ignore[misc]


@cache
def _tracked_kind(combined: type) -> Any:
    return type("TrackedCombinedLoader", (_Tracking, combined), {})


class _Tracked:
    """A loader as the modes of a `CombinedLoader` see it: iterated, possibly more than once in an epoch."""

    def __init__(self, loader: Any, index: int, tracked: TrackedLoaders) -> None:
        self.loader, self.index, self.tracked = loader, index, tracked

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> _Iteration:
        iteration = _Iteration(self.loader, self.index, self.tracked)
        self.tracked.iterations[self.index] = iteration
        return iteration


class _Iteration(Iterator[Any]):
    """One iteration through a loader, which can be repeated in another process."""

    def __init__(self, loader: Any, index: int, tracked: TrackedLoaders) -> None:
        self.loader, self.index, self.tracked = loader, index, tracked
        self.batches = 0
        self.exhausted = False
        self.warm = False
        self.started: dict[str, Any] | None = None
        self.first: dict[str, Any] | None = None
        self.last: dict[str, Any] | None = None
        self.iterator: Iterator[Any] | None = None
        if tracked.armed or not tracked.resumes:
            position = tracked.take(index, of_this_epoch=False)
            if position is not None:
                tracked.start_workers(loader, position["warm"])
            self._start()

    def __next__(self) -> Any:
        position = self.tracked.take(self.index)
        if position is not None and position["batches"] is not None:
            self._repeat(position)
            if position["last"] is not None:
                self.tracked.generators().restore(position["last"])
                return self._fetch()
        self.tracked.restore()
        if position is not None and position["batches"] is None:
            self.tracked.start_workers(self.loader, position["warm"])
            self.iterator = None
        if self.iterator is None:
            self._start()
        return self._fetch()

    def position(self, ahead: int, between_epochs: bool) -> dict[str, Any]:
        """Return the position as plain data; see `TrackedLoaders.positions`."""
        prefetched = self.tracked.prefetches and not self.exhausted
        batches = max(0, self.batches - ahead - prefetched)
        if between_epochs and batches:
            trainer: Any = self.tracked.trainer
            warm = keeps_workers(self.loader) and not trainer.reload_dataloaders_every_n_epochs
            return {"batches": None, "last": None, "warm": warm}
        return {
            "batches": batches,
            "started": self.started,
            "first": self.first,
            "last": self.last if prefetched else None,
            "warm": self.warm,
            "length": length(self.loader),
        }

    def _start(self) -> None:
        self.warm = keeps_workers(self.loader)
        self.started = self.tracked.generators().states()
        self.iterator = iter(self.loader)

    def _fetch(self) -> Any:
        assert self.iterator is not None
        if self.batches == 0 or self.tracked.prefetches:
            self.last = self.tracked.generators().states()
            self.first = self.first or self.last
        try:
            batch = next(self.iterator)
        except StopIteration:
            self.exhausted = True
            raise
        self.batches += 1
        return batch

    def _repeat(self, position: dict[str, Any]) -> None:
        """Create the iterator and fetch its batches as in the run before; leave the generators as they are."""
        if position["length"] != length(self.loader):
            raise ValueError(
                f"Expected {position['length']} training batches per epoch, as when the checkpoint was written within "
                f"an epoch, but got {length(self.loader)}. Resume with the same data and batch size, or from a "
                "checkpoint at the end of an epoch"
            )
        generators = self.tracked.generators()
        before = generators.states()
        if rewinds := hasattr(self.loader, "rewind"):
            self.loader.rewind()
        self.tracked.start_workers(self.loader, position["warm"])
        generators.restore(position["started"])
        self._start()
        assert self.iterator is not None
        self.first = position["first"]
        if self.first is not None and (rewinds or not hasattr(self.loader, "load_state_dict")):
            generators.restore(self.first)
            for index in range(position["batches"]):
                if next(self.iterator, self) is self:
                    raise ValueError(
                        f"Expected the {position['batches']} batches that were trained on to be read again, but the "
                        f"loader ended after {index}: its course depends on draws from a global generator for each "
                        "batch. Draw once per epoch, or resume from a checkpoint at the end of an epoch"
                    )
        self.batches = position["batches"]
        generators.restore(before)
