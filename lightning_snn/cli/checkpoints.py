"""Checkpoints of a recipe: the best by validation, and the last, from which an interrupted run resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_snn.callbacks import ExactResume

BEST, LAST = "best", "last.ckpt"


class BestCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` that keeps one file, `best.ckpt`, and finds it again in a folder that was moved or copied.

    A resumed run without that file starts the comparison anew, because scores of other data do not compare.

    Args:
        folder: folder of the file.
        monitor: metric whose smallest value is best; None keeps the last checkpoint.
    """

    def __init__(self, folder: Path, monitor: str | None) -> None:
        super().__init__(str(folder), BEST, monitor, save_on_train_epoch_end=True, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        path = Path(str(self.dirpath), f"{BEST}.ckpt")
        if not path.is_file():
            return
        names = ("best_model_path", "kth_best_model_path")
        here: dict[str, Any] = {name: str(path) for name in names if state_dict.get(name)}
        here["best_k_models"] = {str(path): score for score in state_dict.get("best_k_models", {}).values()}
        super().load_state_dict({**state_dict, **here, "dirpath": self.dirpath})


class LastCheckpoint(ExactResume, Checkpoint):
    """Callback that writes a checkpoint to one file at the start of training, after each epoch, and on SIGTERM.

    A resumed run is the uninterrupted run, bit for bit; see :class:`~lightning_snn.callbacks.ExactResume`. An epoch
    that was interrupted otherwise starts again. (`ModelCheckpoint(save_last=True)` writes only when it also writes a
    best checkpoint.)

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.path = trainer.strategy.broadcast(self.path)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # raised between two batches, so that nothing is half done; a test has the weights of the best checkpoint
        if isinstance(exception, SIGTERMException) and trainer.state.fn == TrainerFn.FITTING:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
