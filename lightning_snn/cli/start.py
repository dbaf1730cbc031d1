"""Start of a run: its folder and its loggers, once its data are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from lightning_snn.cli.resume import CONFIG, Run
from lightning_snn.files import write_text


class StartOfRun(pl.Callback):
    """Callback that writes the configuration and starts the logger after the data were set up.

    Nothing is left of a run whose data are missing. Later callbacks find the logger in the Trainer.

    Args:
        folder: folder of the run.
        message: printed at the start.
        configuration: options of the run, as YAML.
        hyperparameters: what loggers get.

    Attributes:
        make_logger: returns the logger of a Trainer without one.
        same_training: run whose training goes on in another folder.
    """

    def __init__(self, folder: Path, message: str, configuration: str, hyperparameters: Mapping[str, Any]) -> None:
        self.folder = folder
        self.message = message
        self.configuration = configuration
        self.hyperparameters = dict(hyperparameters)
        self.same_training: Run | None = None
        self.make_logger: Callable[[], Logger] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if stage == "fit" and trainer.is_global_zero:
            print(self.message)
            if self.same_training is not None and self.same_training.folder.resolve() != self.folder.resolve():
                self.same_training.copy_identity(self.folder)
            if not (self.folder / CONFIG).exists():
                write_text(self.folder / CONFIG, self.configuration)
        trainer.strategy.barrier("start of run")  # all processes restore callbacks from the files of the run
        if self.make_logger is not None and not trainer.loggers:
            trainer.logger = self.make_logger()
        if stage == "fit":
            for logger in trainer.loggers:
                logger.log_hyperparams(self.hyperparameters)
