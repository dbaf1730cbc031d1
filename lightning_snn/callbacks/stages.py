"""One way to watch spiking layers in training, validation and test alike."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lightning_snn.nn.observation import named_spiking_layers

Stage = Literal["train", "val", "test"]
STAGES: tuple[Stage, ...] = ("train", "val", "test")


class SpikingStages(pl.Callback):
    """Base of callbacks that watch spiking layers in some batches of some stages; sanity checks are none.

    A subclass enters what it needs during a batch into `recording`, in `begin_batch`. It is closed before `end_batch`,
    in training already before the backward pass, and also after an exception, when `forget` is called, too.

    Raises:
        ValueError: when the fit, validation or test starts, if the module has no spiking layers.
    """

    def __init__(self) -> None:
        self.recording = ExitStack()
        self._due: dict[Stage, int] = {}

    def is_due(self, trainer: pl.Trainer, stage: Stage, every_n_epochs: int) -> bool:
        """Whether this epoch of a stage, which runs now, is one of those that are measured.

        Outside a fit all are. In a fit, also in a resumed one, it is the first for which this is asked, and then each
        that comes `every_n_epochs` epochs or more after the last that was, so that stages that do not run in every
        epoch of training have their turn, too. Of an epoch with several validations that is measured, all are.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return True
        epoch = trainer.current_epoch
        if stage not in self._due or epoch - self._due[stage] >= every_n_epochs:
            self._due[stage] = epoch
        return self._due[stage] == epoch

    def begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        """An epoch of a stage starts."""

    def begin_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """A batch of a stage starts."""

    def end_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        """A batch of a stage is over, and `recording` is closed."""

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        """An epoch of a stage is over; scalars can be logged."""

    def forget(self) -> None:
        """Let go of what is half measured."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._due.clear()
        # not in `setup`, which comes before `configure_model`
        check_spiking_layers(pl_module, self)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_spiking_layers(pl_module, self)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_spiking_layers(pl_module, self)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin_epoch(trainer, pl_module, "train")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.begin_epoch(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin_epoch(trainer, pl_module, "test")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.begin_batch(trainer, pl_module, "train", batch, batch_idx, 0)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self.begin_batch(trainer, pl_module, "val", batch, batch_idx, dataloader_idx)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.begin_batch(trainer, pl_module, "test", batch, batch_idx, dataloader_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        # what comes after is not the network's work: layers that are recomputed, runs by other callbacks
        self.recording.close()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._end_batch(trainer, pl_module, "train")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._end_batch(trainer, pl_module, "val")

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._end_batch(trainer, pl_module, "test")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end_epoch(trainer, pl_module, "train")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.end_epoch(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end_epoch(trainer, pl_module, "test")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._forget()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._forget()

    def _end_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        self.recording.close()
        self.end_batch(trainer, pl_module, stage)

    def _forget(self) -> None:
        self.recording.close()
        self.forget()


def check_spiking_layers(pl_module: nn.Module, callback: pl.Callback) -> None:
    """Refuse a module without spiking layers.

    Raises:
        ValueError: if there are none.
    """
    if not named_spiking_layers(pl_module):
        raise ValueError(
            f"Expected a module with spiking layers of lightning_snn, snntorch or SpikingJelly, or of a type given to "
            f"`register_spiking_layer`, for {type(callback).__name__}, but got {type(pl_module).__name__} without any"
        )
