"""Checkpoints of a recipe: the best by validation, and the last, from which an interrupted run resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

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


class LastCheckpoint(Checkpoint):
    """Callback that writes a checkpoint to one file at the start of training and after each epoch.

    The checkpoint holds the state of torch's random number generators, so a resumed run continues exactly as the
    uninterrupted run; an unfinished epoch starts again. (`ModelCheckpoint(save_last=True)` writes only when it also
    writes a best checkpoint.)

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.path = trainer.strategy.broadcast(self.path)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # map_location may have moved the states, but generators require them on the CPU
        torch.set_rng_state(state_dict["cpu"].cpu())
        if len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["cuda"]])

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
