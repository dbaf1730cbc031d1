"""Record of a run that is compared: what it cost, and how good it was by then."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_snn.callbacks.clock import finished_at
from lightning_snn.callbacks.predictions import read_prediction, read_step_outputs
from lightning_snn.callbacks.stages import Stage, Stages
from lightning_snn.callbacks.tracking import may_write
from lightning_snn.files import write_json
from lightning_snn.metrics.functional import reliability_bins

RECORD = "record.json"


class RunRecord(Stages):
    """Record of validation scores by steps, passes and seconds of training, and of the reliability of the test.

    `record.json` in the folder of the run has `rows`, one for each validation: `step`, completed optimizer steps;
    `passes` through the training data; `seconds` of training steps, without loading, validation and logging; and the
    metrics that the module logs as `val/...`, without this prefix. After a test it also has `reliability`: mean
    confidence, accuracy and number of samples of 15 bins of confidence. Seconds are those of the processors that this
    process used, and on a GPU those of a clock after the work was done.

    Checkpoints contain the rows. One process and one loader of validation and of test data are recorded.

    Args:
        folder: folder of the record; None takes that of the run of a recipe.

    Attributes:
        rows: scores of the validations so far.
        seconds: seconds of training steps so far.
    """

    stages: tuple[Stage, ...] = ("train", "val", "test")

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        self.folder = None if folder is None else Path(folder)
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self.reliability: dict[str, list[float]] = {}
        self._started = 0.0
        self._restored: dict[str, Any] = {}
        self._tested: list[tuple[Tensor, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # used at the start of a fit only: a test of an earlier checkpoint must not lose rows
        self._restored = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self._restored:
            self.rows, self.seconds = [dict(row) for row in self._restored["rows"]], self._restored["seconds"]
            self._restored = {}

    def begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        self._tested = []

    def begin_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage, *_: Any) -> None:
        if stage == "train":
            self._started = seconds_of_work(pl_module.device)

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
        if stage == "train":
            self.seconds += seconds_of_work(pl_module.device) - self._started
        if stage == "test" and (found := read_step_outputs(outputs)) is not None:
            prediction = read_prediction(found.prediction)
            if prediction is not None:
                self._tested.append((prediction.mean.detach().cpu(), found.target.cpu()))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        scores = {
            name.removeprefix("val/"): value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/") and name.count("/") == 1
        }
        passes = (trainer.fit_loop.total_batch_idx + 1) / trainer.num_training_batches
        self.rows.append({"step": trainer.global_step, "passes": passes, "seconds": self.seconds, **scores})

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if stage == "test" and self._tested:
            probabilities, targets = (torch.cat(parts) for parts in zip(*self._tested, strict=True))
            bins = reliability_bins(probabilities, targets)
            names = ("confidence", "accuracy", "count")
            self.reliability = {name: each.tolist() for name, each in zip(names, bins, strict=True)}

    def end_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if self.folder is not None and may_write(trainer):
            write_json(self.folder / RECORD, {"rows": self.rows, "reliability": self.reliability})


def seconds_of_work(device: torch.device) -> float:
    """Return a clock whose differences are the seconds of work in between.

    Args:
        device: on a CPU the clock is the time of all processors that this process used, so other processes that share
            them add little; on another device it is that of the wall, once its work is done.
    """
    return time.process_time() if device.type == "cpu" else finished_at(device)
