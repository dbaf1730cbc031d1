"""Start of a run: its folder and its loggers, once its data are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from lightning_snn.cli import slurm
from lightning_snn.cli.folders import CONFIG, FolderTaken, claim, lock
from lightning_snn.cli.resume import Run
from lightning_snn.files import write_text


class StartOfRun(pl.Callback):
    """Callback that claims the folder, writes the configuration, and starts the logger after the data were set up.

    Nothing is left of a run whose data are missing. Later callbacks find the logger in the Trainer. All processes use
    the folder of the first one.

    Args:
        folder: folder of the run.
        message: printed at the start.
        goes_on: whether the folder is that of an earlier run, which goes on in it.

    Attributes:
        configuration: options of the run, as YAML.
        hyperparameters: what loggers get.
        make_logger: returns the logger of a Trainer without one, for the folder.
        same_training: run whose training goes on in another folder.
    """

    def __init__(self, folder: Path, message: str, goes_on: bool = False) -> None:
        self.folder = folder
        self.message = message
        self.goes_on = goes_on
        self.configuration = ""
        self.hyperparameters: Mapping[str, Any] = {}
        self._writers: list[Any] = []
        self.same_training: Run | None = None
        self.make_logger: Callable[[Path], Logger] | None = None
        self._lock: IO[str] | None = None

    def write_into_folder(self, writers: Iterable[Any]) -> None:
        """Let callbacks write into the folder of the run; those of later processes into that of the first one."""
        self._writers = [*writers]
        for writer in self._writers:
            writer.folder = self.folder

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._follow_first_process(trainer)
        if stage == "fit":
            problem = self._begin() if trainer.is_global_zero else None
            # all processes fail together, and restore callbacks only from the files of a run that was claimed
            problem = trainer.strategy.broadcast(problem)
            if problem is not None:
                raise FolderTaken(problem)
        if self.make_logger is not None and not trainer.loggers:
            trainer.logger = self.make_logger(self.folder)
        if stage == "fit":
            for logger in trainer.loggers:
                logger.log_hyperparams(dict(self.hyperparameters))

    def release(self) -> None:
        """Let other processes go on with the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _follow_first_process(self, trainer: pl.Trainer) -> None:
        folder = trainer.strategy.broadcast(self.folder)
        if folder == self.folder:
            return
        self.folder = folder
        trainer._default_root_dir = str(folder)  # type: ignore[attr-defined]
        self.write_into_folder(self._writers)

    def _begin(self) -> str | None:
        """Take the folder, and return the problem if another process has it."""
        try:
            if not self.goes_on:
                claim(self.folder)
                if self.same_training is not None:
                    self.same_training.copy_identity(self.folder)
            if not (self.folder / CONFIG).exists():
                write_text(self.folder / CONFIG, self.configuration)
            self._lock = self._lock or lock(self.folder)
        except FolderTaken as error:
            return str(error)
        self.goes_on = True  # for a further fit of the same Trainer
        print(self.message)
        slurm.keep_job(self.folder)
        return None
