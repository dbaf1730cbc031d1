"""Signals that end a run: training stops after a batch whose state is saved, and everything else at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lightning_snn.cli import slurm
from lightning_snn.cli.checkpoints import LastCheckpoint


class Stopped(SystemExit):
    """A signal ended the run. The exit status is 128 plus its number, as shells count.

    Attributes:
        signal: the signal.
        saved: whether the state of training was saved after the last batch.
    """

    def __init__(self, received: signal.Signals, saved: bool = False) -> None:
        super().__init__(128 + received)
        self.signal = received
        self.saved = saved


class StopSignals:
    """Handler of SIGTERM, and in a job of SLURM of the signal that announces its end, in a context.

    It raises `Stopped`, or while `is_deferred` only keeps the signal. Outside the main thread it handles nothing.

    Attributes:
        received: the last signal, if there was one.
        is_deferred: whether signals wait for `StopAfterBatch`.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.is_deferred = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        signals = filter(None, (signal.SIGTERM, slurm.requeue_signal()))
        self._before = {each: signal.getsignal(each) for each in signals}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for each, handler in self._before.items():
                signal.signal(each, handler)

    def install(self) -> None:
        """Take the signals back from others, such as the Trainer, whose handlers end processes at different batches."""
        if threading.current_thread() is threading.main_thread():
            for each in self._before:
                signal.signal(each, self._handle)

    def raise_received(self) -> None:
        """Raise `Stopped` if a signal was received and is still pending."""
        if self.received is not None:
            raise Stopped(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if not self.is_deferred:
            raise Stopped(self.received)
        # `print` must not be called within another `print`
        os.write(2, f"\n{self.received.name}: training stops after a batch whose state can be saved.\n".encode())


class StopAfterBatch(Checkpoint):
    """Callback that ends training on a signal in all processes, after the same batch, whose state it saves.

    A state from which training cannot go on exactly is not saved, that is, one before a validation or with accumulated
    gradients: training stops after a later batch, or after the epoch, whose state `LastCheckpoint` saves. Sanity checks
    and tests stop at once.

    It is a `Checkpoint` so that the Trainer calls it after all others, whose states are then those after the batch.

    Args:
        signals: signals of this process.
        last: callback whose file the state is saved to.
    """

    def __init__(self, signals: StopSignals, last: LastCheckpoint) -> None:
        self.signals = signals
        self.last = last

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.install()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.install()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.install()
        self.signals.is_deferred = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_asked(trainer) and _can_go_on_from(trainer, batch_idx):
            self._stop(trainer, saves=True)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_asked(trainer):
            self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_asked(trainer):
            self._stop(trainer)
        self.signals.is_deferred = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.signals.is_deferred = False

    def _is_asked(self, trainer: pl.Trainer) -> bool:
        """Return whether any process received a signal; all processes get the same answer after the same batch."""
        return trainer.strategy.reduce_boolean_decision(self.signals.received is not None, all=False)

    def _stop(self, trainer: pl.Trainer, saves: bool = False) -> None:
        saves = saves and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if saves:
            trainer.save_checkpoint(self.last.path)
        raise Stopped(self.signals.received or signal.SIGTERM, saves)


def _can_go_on_from(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether neither a validation, nor the end of the epoch or of training, nor an optimizer step is due."""
    ends = trainer.is_last_batch or trainer.global_step == trainer.max_steps
    batches = 1 + (batch_idx if trainer.check_val_every_n_epoch else trainer.fit_loop.total_batch_idx)
    validates = trainer.val_check_batch is not None and batches % trainer.val_check_batch == 0
    return not ends and not validates and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
