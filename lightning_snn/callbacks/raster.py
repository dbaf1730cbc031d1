"""Rasters of the spikes of single samples, drawn during training and tests."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_snn import figures
from lightning_snn.callbacks.stages import STAGES, SpikingStages, Stage
from lightning_snn.callbacks.tracking import log_figure, may_write
from lightning_snn.checks import check_choice, check_integer
from lightning_snn.nn.observation import Traces


class SpikeRaster(SpikingStages):
    """Raster of the spikes of the first samples in a stage's first batch, one panel per layer.

    It draws in the first epoch of a fit that has the stage, in those at least `every_n_epochs` epochs after the last
    drawing, and in each `Trainer.validate` and `Trainer.test`. Figures are saved as `NAME_STAGE.png` and sent to
    loggers that take figures as `report/NAME_STAGE`. For several samples, the names of all but the first end with their
    index: `NAME_STAGE_1`. A new drawing replaces the file, so a long fit leaves few files; loggers keep all of them, by
    step. If data are not shuffled, it is the same sample each time.

    A layer that takes all time steps in one call is drawn in the first run of the batch; if the samples of a prediction
    run next to each other, the first one is drawn. If a layer that is called step by step is used in several places of
    a network, the calls of the shape of its first are drawn, one after the other. With several processes, the samples
    of the first are drawn.

    It works on any LightningModule with spiking layers. It logs no numbers, and only those first batches cost time.

    Args:
        every_n_epochs: smallest number of epochs between two drawings of a stage in a fit.
        samples: number of samples, one figure each, at least 1.
        stages: stages to draw, of "train", "val", and "test". Sanity checks are not drawn.
        folder: folder of the figures; None uses that of the logger, or without one `default_root_dir`, and keeps
            the files of other runs there. A `fast_dev_run` writes nothing.
        name: first part of file names and keys; several of these callbacks in one trainer need different names.

    Raises:
        ValueError: if an argument is out of range; at the start of a fit, validation, or test, if the module has no
            spiking layers.

    Example:
        >>> raster = SpikeRaster(every_n_epochs=10, samples=2, stages=["val"])
        >>> trainer = pl.Trainer(callbacks=[raster], logger=False)
    """

    def __init__(
        self,
        every_n_epochs: int = 5,
        samples: int = 1,
        stages: Collection[Literal["train", "val", "test"]] = ("val", "test"),
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
        is_first = batch_idx == dataloader_idx == 0
        if is_first and self.is_due(trainer, stage, self.every_n_epochs) and may_write(trainer):
            self._traces = Traces(self.samples)
            self.recording.enter_context(self._traces.recording(pl_module))

    def end_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage, *_: Any) -> None:
        if self._traces is not None:
            log_rasters(trainer, f"{self.name}_{stage}", self._traces, self.folder)
            self._traces = None

    def discard(self) -> None:
        self._traces = None


def log_rasters(trainer: pl.Trainer, name: str, traces: Traces, folder: Path | None) -> None:
    """Draw each sample of `traces`, save the figures, and send them to the loggers.

    The first figure is called `name`; the names of the others end with their index. Layers that ran for another number
    of time steps than most are left out and named in a warning. If no layer ran, nothing is drawn.
    """
    found = {layer: trace.spikes for layer, trace in traces.found().items()}
    if not found or not may_write(trainer):
        return
    length, _ = Counter(map(len, found.values())).most_common(1)[0]
    drawn = {layer: spikes for layer, spikes in found.items() if len(spikes) == length}
    if len(drawn) < len(found):
        left_out = ", ".join(f"{layer} with {len(found[layer])}" for layer in found.keys() - drawn.keys())
        rank_zero_warn(f"The raster {name} shows layers with {length} time steps and leaves out {left_out}")
    for index in range(min(spikes.shape[1] for spikes in drawn.values())):
        sample: dict[str, Tensor] = {layer: spikes[:, index] for layer, spikes in drawn.items()}
        log_figure(trainer, f"{name}_{index}" if index else name, figures.spike_raster(sample), folder)
