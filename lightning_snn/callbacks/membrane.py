"""What the membranes of a network do, between its inputs and its spikes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_snn import figures
from lightning_snn.callbacks.stages import SpikingStages, Stage
from lightning_snn.callbacks.tracking import log_figure, may_write, output_folder
from lightning_snn.checks import check_integer
from lightning_snn.figures.membrane import MAX_TRACES
from lightning_snn.metrics.functional import accumulation_dtype
from lightning_snn.nn.observation import LayerCall, Traces, named_spiking_layers, observe


class MembraneTrace(SpikingStages):
    """Draws the membranes of a few neurons of each spiking layer against their threshold, and logs where they are.

    Measured is the first batch of the first loader: in a fit, of its first validation and of those that come
    `every_n_epochs` or more after the last measured one; otherwise, of each validation and test. `NAME_val.png` and
    `NAME_test.png` show its first sample, drawn by `figures.membrane_traces`: membranes before the reset, the
    threshold, the spikes. A later epoch's figure replaces the file; loggers of figures keep them all. Logged are
    `NAME/STAGE/mean/LAYER` and `NAME/STAGE/sd/LAYER`, over all samples, neurons and steps of the batch and in units of
    the threshold: a mean far below 1 with a small deviation is a layer that stays silent, one above 1 a layer that
    fires at all times. STAGE is `val` or `test`.

    Membranes are those of `nn.observation.LayerCall.membrane`: of neurons that fire by noise the mean membrane given
    the spikes; of SpikingJelly's that reset to a value a spike's membrane is not known, and this value stands there.
    Layers without a known membrane are named once in a warning. Of a prediction that runs the network several times
    the first run is drawn, if its layers take all time steps in a call; all are logged. Of a layer that is called step
    by step in several places of a network, calls of the shape of its first are drawn, one after the other.

    It works on any LightningModule with spiking layers. Nothing is done in training steps or in sanity checks. Of
    several processes each measures its first batch; what is logged is of all of them, the figure of the first.

    Args:
        neurons: how many to draw of each layer, 1 to 5: from the most to the least active of those that spiked, and,
            where fewer did, those that came nearest to their threshold.
        every_n_epochs: least number of epochs from one measured validation of a fit to the next.
        folder: where to write figures; None takes the trainer's `default_root_dir`. Nothing is written in a
            `fast_dev_run`.
        name: first part of all keys and of the files; several of these callbacks in one trainer need different names.

    Raises:
        ValueError: if an argument is outside its range; when a run starts, if the module has no spiking layers; after
            the first batch, if none of them has a known membrane.

    Example:
        >>> trainer = Trainer(callbacks=[MembraneTrace()])
        >>> trainer.fit(module, data)
    """

    def __init__(
        self,
        neurons: int = 5,
        every_n_epochs: int = 5,
        folder: str | os.PathLike[str] | None = None,
        name: str = "membrane",
    ) -> None:
        super().__init__()
        check_integer("neurons", neurons)
        if neurons > MAX_TRACES:
            raise ValueError(f"Expected argument `neurons` to be at most {MAX_TRACES}, but got {neurons}")
        check_integer("every_n_epochs", every_n_epochs)
        self.neurons, self.every_n_epochs = neurons, every_n_epochs
        self.folder = None if folder is None else Path(folder)
        self.name = name
        self._unknown: set[str] = set()
        self.forget()

    def forget(self) -> None:
        self._measured = False
        self._traces: Traces | None = None
        self._sums: dict[str, Tensor] = {}

    def begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if stage == "train":
            return
        self.forget()
        self._measured = self.is_due(trainer, stage, self.every_n_epochs)

    def begin_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if stage != "train" and self._measured and batch_idx == dataloader_idx == 0:
            self._traces = Traces(samples=1, membranes=True)
            self.recording.enter_context(observe(pl_module, self._hear, membranes=True))

    def end_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if self._traces is None:
            return
        found, self._traces = self._traces.found(), None
        known = {name: trace for name, trace in found.items() if trace.membrane is not None}
        self._tell_unknown([name for name in found if name not in known], bool(known))
        if known and may_write(trainer):
            figure = figures.membrane_traces(
                {name: trace.membrane[:, 0] for name, trace in known.items() if trace.membrane is not None},
                {name: trace.spikes[:, 0] for name, trace in known.items()},
                {name: trace.threshold for name, trace in known.items()},
                self.neurons,
            )
            log_figure(trainer, f"{self.name}_{stage}", figure, output_folder(trainer, self.folder))

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if stage == "train" or not self._measured:
            return
        nothing = torch.zeros(3, dtype=accumulation_dtype(pl_module.device), device=pl_module.device)
        layers = list(named_spiking_layers(pl_module))  # the same on all processes, whatever ran there
        sums = torch.stack([self._sums.get(name, nothing) for name in layers])
        for name, (count, total, squares) in zip(layers, trainer.strategy.reduce(sums, reduce_op="sum"), strict=True):
            if count > 0:
                mean = total / count
                found = {"mean": mean, "sd": (squares / count - mean.square()).clamp(min=0).sqrt()}
                pl_module.log_dict(
                    {f"{self.name}/{stage}/{quantity}/{name}": value.float() for quantity, value in found.items()},
                    sync_dist=trainer.world_size > 1,
                )
        self.forget()

    def _hear(self, call: LayerCall) -> None:
        if self._traces is not None:
            self._traces.add(call)
        membrane, threshold = call.membrane(), call.threshold
        if membrane is None or threshold is None:
            return
        relative = membrane.to(accumulation_dtype(membrane.device)) / threshold
        sums = torch.stack([torch.tensor(relative.numel()).to(relative), relative.sum(), relative.square().sum()])
        self._sums[call.name] = self._sums[call.name] + sums if call.name in self._sums else sums

    def _tell_unknown(self, names: list[str], others: bool) -> None:
        if names and not others:
            raise ValueError(
                f"Expected a spiking layer whose membrane is known for {type(self).__name__}, but it is known of none "
                f"of {', '.join(names)}; `register_spiking_layer` tells where a type keeps it"
            )
        new = [name for name in names if name not in self._unknown]
        if new:
            self._unknown.update(new)
            rank_zero_warn(
                f"{type(self).__name__} knows no membrane of {', '.join(new)}, which are neither drawn nor logged"
            )
