"""Base classes of callbacks that treat training, validation, and test alike."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_snn.nn.observation import named_spiking_layers
from lightning_snn.nn.registry import layers_in_plain_containers, remedy_for_missing_layers

Stage = Literal["train", "val", "test", "predict"]
STAGES: tuple[Stage, ...] = ("train", "val", "test")


class Stages(pl.Callback):
    """Base of callbacks that act on runs, epochs, and batches, alike in several stages.

    A subclass overrides the methods it needs: `begin_run`, `begin_epoch`, `begin_batch`, `end_batch`, `end_epoch`,
    `end_run`, and `discard`. Those for epochs and batches are called in `stages` only, and never in a sanity check.

    A subclass enters contexts that last for one batch into `recording`, in `begin_batch`. `recording` is closed before
    `end_batch`, in training already before the backward pass, and after an exception.

    Attributes:
        stages: stages whose epochs and batches the callback acts on.
        recording: contexts of the current batch.
    """

    stages: tuple[Stage, ...] = STAGES

    def __init__(self) -> None:
        self.recording = ExitStack()
        self._due: dict[Stage, int] = {}

    def is_due(self, trainer: pl.Trainer, stage: Stage, every_n_epochs: int) -> bool:
        """Return whether to measure in the current epoch of a stage.

        Outside a fit, every epoch is due. In a fit, also in a resumed one, the first epoch that has the stage is due,
        and then each one at least `every_n_epochs` epochs after the last that was due. So stages that do not run in
        every epoch are measured too. If an epoch that is due has several validations, all of them are due.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return True
        epoch = trainer.current_epoch
        if stage not in self._due or epoch - self._due[stage] >= every_n_epochs:
            self._due[stage] = epoch
        return self._due[stage] == epoch

    def begin_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepare for a fit, `Trainer.validate`, `Trainer.test`, or, if in `stages`, `Trainer.predict`."""

    def begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        """Act at the start of an epoch."""

    def begin_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Act at the start of a batch."""

    def end_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Act at the end of a batch, after `recording` is closed."""

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        """Act at the end of an epoch, where scalars can be logged."""

    def end_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        """Act at the end of a fit ("train"), of `Trainer.validate` ("val"), or of `Trainer.test` ("test")."""

    def discard(self) -> None:
        """Discard unfinished measurements, after an exception or at the end of a run."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._due.clear()
        # not in `setup`, which comes before `configure_model`
        self.begin_run(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.begin_run(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin_run(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if "predict" in self.stages:
            self.begin_run(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin_epoch(trainer, pl_module, "train")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin_epoch(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin_epoch(trainer, pl_module, "test")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._begin_batch(trainer, pl_module, "train", batch, batch_idx)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(trainer, pl_module, "val", batch, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(trainer, pl_module, "test", batch, batch_idx, dataloader_idx)

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_batch(trainer, pl_module, "predict", batch, batch_idx, dataloader_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        # later calls are not part of the forward pass: recomputed layers, runs by other callbacks
        self.recording.close()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        self._end_batch(trainer, pl_module, "train", *arguments)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        self._end_batch(trainer, pl_module, "val", *arguments)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        self._end_batch(trainer, pl_module, "test", *arguments)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        self._end_batch(trainer, pl_module, "predict", *arguments)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_epoch(trainer, pl_module, "train")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_epoch(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_epoch(trainer, pl_module, "test")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end_run(trainer, pl_module, "train")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.end_run(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end_run(trainer, pl_module, "test")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.recording.close()
        self.discard()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.recording.close()
        self.discard()

    def _acts_in(self, trainer: pl.Trainer, stage: Stage) -> bool:
        return stage in self.stages and not trainer.sanity_checking

    def _begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if self._acts_in(trainer, stage):
            self.begin_epoch(trainer, pl_module, stage)

    def _begin_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._acts_in(trainer, stage):
            self.recording.close()  # of a batch that another callback skipped
            self.begin_batch(trainer, pl_module, stage, batch, batch_idx, dataloader_idx)

    def _end_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._acts_in(trainer, stage):
            self.recording.close()
            self.end_batch(trainer, pl_module, stage, outputs, batch, batch_idx, dataloader_idx)

    def _end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if self._acts_in(trainer, stage):
            self.end_epoch(trainer, pl_module, stage)


class SpikingStages(Stages):
    """Base of callbacks that observe spiking layers in several stages.

    Raises:
        ValueError: at the start of a run, if the module has no spiking layers.
    """

    def begin_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_spiking_layers(pl_module, self)


def check_spiking_layers(pl_module: nn.Module, callback: pl.Callback) -> None:
    """Raise an error for a module without spiking layers, and warn of those that PyTorch does not know.

    Raises:
        ValueError: if there are none.
    """
    if not named_spiking_layers(pl_module):
        raise ValueError(
            f"Expected a module with spiking layers of lightning_snn, snntorch, SpikingJelly, or a registered type for "
            f"{type(callback).__name__}, but got {type(pl_module).__name__} without any. "
            f"{remedy_for_missing_layers(pl_module)}"
        )
    hidden = layers_in_plain_containers(pl_module)
    if hidden:
        rank_zero_warn(
            f"{type(callback).__name__} leaves out {', '.join(hidden)}. {remedy_for_missing_layers(pl_module)}"
        )
