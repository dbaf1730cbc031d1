"""The spikes of single samples, drawn while training goes on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_snn import figures
from lightning_snn.callbacks.stages import STAGES, SpikingStages, Stage
from lightning_snn.callbacks.tracking import log_figure, may_write, output_folder
from lightning_snn.checks import check_choice, check_integer
from lightning_snn.nn.observation import LayerCall, Traces, observe


class SpikeRaster(SpikingStages):
    """Draws the spikes of the first samples of a stage's first batch over time, one panel a layer.

    Each n-th epoch of a fit, its first included, and each `Trainer.validate` and `Trainer.test` draws them anew, as
    `NAME_STAGE.png` and, in loggers that take figures, `report/NAME_STAGE`; of several samples all but the first have
    their index as a last part, `NAME_STAGE_1`. The file is that of the last drawing, so that a long fit leaves few;
    loggers keep them all, by their steps. Where data are not shuffled it is one sample that is followed.

    Of a layer that takes all time steps in a call it is the first run of the batch, and of samples of a prediction that
    run side by side the first. Several processes draw what the first of them sees.

    It works on any LightningModule with spiking layers; nothing is logged as a number, and nothing is done but in those
    first batches.

    Args:
        every_n_epochs: number of epochs from one drawing of a fit to the next.
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
        due = trainer.state.fn != TrainerFn.FITTING or trainer.current_epoch % self.every_n_epochs == 0
        if due and stage in self.stages and batch_idx == dataloader_idx == 0 and may_write(trainer):
            self._traces = Traces(self.samples)
            self.recording.enter_context(recorded_spikes(pl_module, self._traces))

    def end_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if self._traces is not None:
            log_rasters(trainer, f"{self.name}_{stage}", self._traces, output_folder(trainer, self.folder))
            self._traces = None

    def forget(self) -> None:
        self._traces = None


@contextmanager
def recorded_spikes(network: nn.Module, traces: Traces) -> Iterator[None]:
    """A context within which `traces` keeps what spiking layers do; of a layer that is called with several shapes, only
    the calls that have the shape of its first."""
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(call: LayerCall) -> None:
        shape = tuple(call.spikes.shape[1:])
        if shapes.setdefault(call.name, shape) == shape:
            traces.add(call)

    with observe(network, keep):
        yield


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
