"""Resuming a run such that it ends with the weights of an uninterrupted one, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from types import MethodType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_snn.callbacks.packages import is_a
from lightning_snn.processes import gather
from lightning_snn.resuming import (
    Moment,
    TrackedLoaders,
    add_epoch_sums,
    complete_last_batch,
    epoch_metrics,
    epoch_sums,
    restore_loader_states,
    start_next_epoch,
    track_loaders,
    validate_next,
    validation_is_due,
)

_KEY = "exact_resume"


class ExactResume(pl.Callback):
    """Callback with which a run that resumes from a checkpoint is the uninterrupted run, bit for bit, at any step.

    Every checkpoint of the Trainer, whichever callback writes it, then holds in addition, for each process,

    - the states of the random number generators: those of torch, of the device, of Python's `random` and of NumPy, and
      those that layers, the data module, loaders, samplers and data sets have as attributes;
    - the states from which the present epoch was shuffled, so that any loader continues with the next batch: batches
      before it are read again and discarded, in worker processes too;
    - the gradients, if the checkpoint is written while they are accumulated;
    - metrics, and the sums behind averages over the epoch, for monitors and `ReduceLROnPlateau`;
    - what the Trainer had to do next: a batch, a validation, or the end of an epoch.

    Training is not changed, and a step without a checkpoint costs a look at counters. The run is resumed as usual, with
    the same callback and the same data: ``trainer.fit(module, data, ckpt_path=...)``. On SLURM, the checkpoint of an
    automatic requeue is written at the end of the batch, and not within it.

    A warning says what is not exact: checkpoints that were written without this callback, by another number of
    processes, or within a batch, after an exception; and data sets that draw random numbers in persistent worker
    processes, whose generators no checkpoint holds (use ``persistent_workers=False``). Without a warning, these are
    not exact: generators that only the code of a data set knows, samplers and streams that draw from a global generator
    for each sample, and averages of `torchmetrics` objects over the interrupted training epoch. On GPUs, operations
    have to be deterministic, ``Trainer(deterministic=True)``.

    Raises:
        ValueError: if the run resumes within an epoch with another number of batches, or with a stream that cannot be
            read again; or if it resumes with a tuner such as `LearningRateFinder`.

    Example:
        >>> trainer = Trainer(callbacks=[ExactResume()])
        >>> trainer.fit(module, data)
        >>> trainer.save_checkpoint("run.ckpt")
        >>> Trainer(max_epochs=4, callbacks=[ExactResume()]).fit(module, data, ckpt_path="run.ckpt")
    """

    def __init__(self) -> None:
        self._loaders: TrackedLoaders | None = None
        self._before_validation: dict[str, Any] | None = None
        self._requeue: Callable[[], None] | None = None
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._within_epoch = False  # whether the hooks of the start of the resumed epoch were not called

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == TrainerFn.FITTING:
            self._loaders = track_loaders(trainer)
            self._before_validation = self._requeue = None
            self._within_epoch, self._sums = False, {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # before the Trainer registers it for a signal that may come within a step
        connector: Any = trainer._signal_connector
        requeue = connector._slurm_sigusr_handler_fn
        if isinstance(requeue, MethodType):  # and not the function below, of an earlier fit or of another callback
            connector._slurm_sigusr_handler_fn = lambda *signal: self._requeue_soon(partial(requeue, *signal))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._loaders is None or trainer.state.fn != TrainerFn.FITTING or _KEY in checkpoint:
            return
        if not self._loaders.armed:  # a tuner, which trains before training starts
            if self._loaders.resumes:
                raise ValueError(
                    "Expected no tuner such as LearningRateFinder in a run that resumes, because it discards what the "
                    "Trainer has read of the checkpoint. Resume without that callback"
                )
            checkpoint[_KEY] = []
            return
        moment = Moment.now(trainer, validates=self._before_validation is not None)
        gradients = {
            name: parameter.grad.cpu()
            for name, parameter in pl_module.named_parameters()
            if moment.accumulates and parameter.grad is not None
        }
        metrics = dict(trainer.callback_metrics)
        if moment.last_batch:
            metrics |= epoch_metrics(trainer)
        checkpoint[_KEY] = gather(
            {
                "moment": asdict(moment),
                "states": self._before_validation or self._loaders.states(),
                "positions": self._loaders.positions(
                    int(moment.within_batch), moment.between_epochs or moment.last_batch
                ),
                "validation_workers": self._loaders.validation_workers(),
                "gradients": gradients,
                "metrics": {name: value.detach().cpu() for name, value in metrics.items()},
                "sums": {**self._sums, **epoch_sums(trainer)} if moment.batch_comes_next or moment.validation else {},
            }
        )

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._loaders is None or trainer.state.fn != TrainerFn.FITTING:
            return
        saved = checkpoint.get(_KEY)
        if saved == [] or self._loaders.resumes:
            return  # of a tuner, or already read by another instance
        if saved is None:
            _warn("the checkpoint was written without this callback")
        elif len(saved) != trainer.world_size:
            _warn(f"the checkpoint was written by {len(saved)} processes, and this run has {trainer.world_size}")
        else:
            own = saved[trainer.global_rank]
            moment = Moment(**own["moment"])
            if moment.within_batch:
                _warn("the checkpoint was written within a batch, whose random numbers are drawn anew")
            complete_last_batch(checkpoint["loops"]["fit_loop"], moment)
            self._loaders.resume(own, moment.epochs, moment.last_batch)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._loaders is not None
        restore_loader_states(trainer)
        self._loaders.armed = True
        self._loaders.warn_of_persistent_workers()
        saved = self._loaders.take_checkpoint()
        if saved is None:
            return
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
        moment = Moment(**saved["moment"])
        if moment.validation:
            self._before_validation = saved["states"]
            validate_next(trainer)
        elif moment.between_epochs:
            start_next_epoch(trainer)
        self._within_epoch = not moment.between_epochs
        self._sums = dict(saved["sums"])
        self._loaders.start_validation_workers(saved["validation_workers"])
        if not moment.batch_comes_next:
            self._loaders.restore()
        parameters = dict(pl_module.named_parameters())
        for name, gradient in saved["gradients"].items():
            parameters[name].grad = gradient.to(parameters[name].device)
        metrics = {name: value.to(pl_module.device) for name, value in saved["metrics"].items()}
        trainer.callback_metrics.update(metrics)
        if moment.epoch_end:
            _step_on_plateau(trainer, metrics, moment.epochs)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        self._before_validation = None
        if self._within_epoch:
            self._within_epoch = False
            _repeat_epoch_start(trainer, pl_module)
        add_epoch_sums(trainer, self._sums)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        add_epoch_sums(trainer, self._sums)
        if validation_is_due(trainer):
            self._expect_validation()  # now, because the validation loaders draw a seed before any hook is called
        self._requeue_now()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self._before_validation is None:
            self._expect_validation()

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        if not trainer.sanity_checking:
            self._requeue_now()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before_validation = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before_validation, self._within_epoch = None, False
        add_epoch_sums(trainer, self._sums)
        self._sums = {}
        # otherwise `ReduceLROnPlateau` leaves out the end of a resumed epoch
        trainer.fit_loop._restarting = False

    def _expect_validation(self) -> None:
        assert self._loaders is not None
        self._before_validation = self._loaders.states()

    def _requeue_soon(self, requeue: Callable[[], None]) -> None:
        self._requeue = requeue

    def _requeue_now(self) -> None:
        requeue, self._requeue = self._requeue, None
        if requeue is not None:
            requeue()


def _repeat_epoch_start(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Call the hook of Lightning's callbacks that keep what they set at the start of an epoch nowhere else."""
    for callback in getattr(trainer, "callbacks", ()):
        if is_a(callback, GradientAccumulationScheduler) or is_a(callback, StochasticWeightAveraging):
            callback.on_train_epoch_start(trainer, pl_module)


def _step_on_plateau(trainer: pl.Trainer, metrics: dict[str, Tensor], epochs: int) -> None:
    """Take the steps of an epoch's end, which come after the hooks that write checkpoints."""
    for config in trainer.lr_scheduler_configs:
        due = config.reduce_on_plateau and config.interval == "epoch" and epochs % config.frequency == 0
        if due and config.monitor in metrics:
            trainer.lightning_module.lr_scheduler_step(config.scheduler, metrics[config.monitor])


def _warn(reason: str) -> None:
    rank_zero_warn(f"ExactResume: the resumed run is not exact, because {reason}.")
