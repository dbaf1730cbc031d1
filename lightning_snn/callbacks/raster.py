"""The spikes of single samples, drawn while training goes on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_snn import figures
from lightning_snn.callbacks.stages import STAGES, SpikingStages, Stage
from lightning_snn.callbacks.tracking import log_figure, may_write, output_folder
from lightning_snn.checks import check_choice, check_integer
from lightning_snn.nn.observation import Traces


class SpikeRaster(SpikingStages):
    """Draws the spikes of the first samples of a stage's first batch over time, one panel a layer.

    Drawn are the first epoch of a fit that has the stage, those that have it `every_n_epochs` or more after the last
    drawing, and each `Trainer.validate` and `Trainer.test`, as `NAME_STAGE.png` and, in loggers that take figures, as
    `report/NAME_STAGE`; of several samples all but the first have their index as a last part, `NAME_STAGE_1`. The file
    is that of the last drawing, so that a long fit leaves few; loggers keep them all, by their steps. Where data are
    not shuffled it is one sample that is followed.

    Of a layer that takes all time steps in a call it is the first run of the batch, and of samples of a prediction that
    run side by side the first. Of a layer that is called step by step in several places of a network, calls of the
    shape of its first are drawn, one after the other. Several processes draw what the first of them sees.

    It works on any LightningModule with spiking layers; nothing is logged as a number, and nothing is done but in those
    first batches.

    Args:
        every_n_epochs: least number of epochs from one drawing of a stage in a fit to the next.
        samples: how many samples, each a figure, at least 1.
        stages: of which stages, among "train", "val" and "test"; sanity checks are none.
        folder: where to write figures; None takes the trainer's `default_root_dir`. Nothing is written in a
            `fast_dev_run`.
        name: first part of file names and keys; several of these callbacks in one trainer need different names.

    Raises:
        ValueError: if an argument is outside its range; when the fit, validation or test starts, if the module has no
            spiking layers.

    Example:
        >>> trainer = Trainer(callbacks=[SpikeRaster()])
        >>> trainer.fit(module, data)
    """

    def __init__(
        self,
        every_n_epochs: int = 5,
        samples: int = 1,
        stages: Collection[Stage] = ("val", "test"),
        folder: str | os.PathLike[str] | None = None,
        name: str = "raster",
    ) -> None:
        super().__init__()
        check_integer("every_n_epochs", every_n_epochs)
        check_integer("samples", samples)
        if isinstance(stages, str) or not stages:
            raise ValueError(f"Expected argument `stages` to be a list of at least one stage, but got {stages!r}")
        for stage in stages:
            check_choice("stages", stage, STAGES)
        self.every_n_epochs, self.samples, self.stages = every_n_epochs, samples, tuple(stages)
        self.folder = None if folder is None else Path(folder)
        self.name = name
        self._traces: Traces | None = None

    def begin_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        first = stage in self.stages and batch_idx == dataloader_idx == 0
        if first and self.is_due(trainer, stage, self.every_n_epochs) and may_write(trainer):
            self._traces = Traces(self.samples)
            self.recording.enter_context(self._traces.recording(pl_module))

    def end_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if self._traces is not None:
            log_rasters(trainer, f"{self.name}_{stage}", self._traces, output_folder(trainer, self.folder))
            self._traces = None

    def forget(self) -> None:
        self._traces = None


def log_rasters(trainer: pl.Trainer, name: str, traces: Traces, folder: Path) -> None:
    """Draw each sample of `traces`, save the figures and hand them to the loggers.

    The first is called `name`, all others have their index as a last part. Layers that ran for another number of time
    steps than most are left out and named in a warning; if no layer ran, there is nothing to draw.
    """
    found = {layer: trace.spikes for layer, trace in traces.found().items()}
    if not found or not may_write(trainer):
        return
    length, _ = Counter(map(len, found.values())).most_common(1)[0]
    drawn = {layer: spikes for layer, spikes in found.items() if len(spikes) == length}
    if len(drawn) < len(found):
        left_out = ", ".join(f"{layer} of {len(found[layer])}" for layer in found.keys() - drawn.keys())
        rank_zero_warn(f"The raster {name} has layers of {length} time steps and leaves out {left_out}")
    for index in range(min(spikes.shape[1] for spikes in drawn.values())):
        sample: dict[str, Tensor] = {layer: spikes[:, index] for layer, spikes in drawn.items()}
        log_figure(trainer, f"{name}_{index}" if index else name, figures.spike_raster(sample), folder)
