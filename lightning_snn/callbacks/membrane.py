"""Figures and statistics of the membrane potentials of a network."""

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
from lightning_snn.callbacks.tracking import log_figure, may_write
from lightning_snn.checks import check_integer
from lightning_snn.figures.membrane import MAX_TRACES
from lightning_snn.metrics.functional import accumulation_dtype
from lightning_snn.nn.observation import LayerCall, Traces, named_spiking_layers, observe


class MembraneTrace(SpikingStages):
    """Figure of the membrane potentials of a few neurons per spiking layer, and a log of their mean and deviation.

    It measures the first batch of the first loader: in a fit, of its first validation and of those at least
    `every_n_epochs` epochs after the last measured one; otherwise, of each validation and test. `NAME_val.png` and
    `NAME_test.png` show the first sample, drawn by `figures.membrane_traces`: membrane potentials before the reset, the
    threshold, and the spikes. A later epoch's figure replaces the file; loggers of figures keep all of them.

    Logged are `NAME/STAGE/mean/LAYER` and `NAME/STAGE/sd/LAYER`, over all samples, neurons, and time steps of the batch
    on a scale where rest is 0 and the threshold 1. STAGE is `val` or `test`. A layer with a mean far below 1 and a
    small deviation stays silent; one with a mean above 1 fires all the time.

    Membrane potentials are those of `nn.observation.LayerCall.membrane`. For neurons that fire by noise this is the
    mean potential given the spikes. For SpikingJelly's neurons that reset to a value, the potential at a spike is not
    known, and this value is used instead. Layers without a known potential are named once in a warning. If a prediction
    runs the network several times, the first run is drawn, provided that the layers take all time steps in one call,
    and all runs are logged. If a layer that is called step by step is used in several places of a network, the calls of
    the shape of its first are drawn, one after the other.

    It works on any LightningModule with spiking layers. Nothing is done in training steps or in sanity checks. With
    several processes, each measures its first batch; the logged values are those of all, the figure that of the first.

    Args:
        neurons: number of neurons to draw per layer, 1 to 5: from the most to the least active of those that spiked,
            and, if fewer did, those that came closest to the threshold.
        every_n_epochs: smallest number of epochs between two measured validations of a fit.
        folder: folder of the figures; None uses that of the logger, or without one `default_root_dir`, and keeps
            the files of other runs there. A `fast_dev_run` writes nothing.
        name: first part of all keys and files; several of these callbacks in one trainer need different names.

    Raises:
        ValueError: if an argument is out of range; at the start of a run, if the module has no spiking layers; after
            the first batch, if none of them has a known membrane potential.

    Example:
        >>> trainer = pl.Trainer(callbacks=[MembraneTrace(neurons=3)], logger=False)
    """

    stages: tuple[Stage, ...] = ("val", "test")

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
        self.discard()

    def discard(self) -> None:
        self._measured = False
        self._traces: Traces | None = None
        self._sums: dict[str, Tensor] = {}

    def begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        self.discard()
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
        if self._measured and batch_idx == dataloader_idx == 0:
            self._traces = Traces(samples=1, membranes=True)
            self.recording.enter_context(observe(pl_module, self._add_call, membranes=True))

    def end_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage, *_: Any) -> None:
        if self._traces is None:
            return
        found, self._traces = self._traces.found(), None
        known = {name: trace for name, trace in found.items() if trace.membrane is not None}
        self._report_unknown([name for name in found if name not in known], bool(known))
        if known and may_write(trainer):
            figure = figures.membrane_traces(
                {name: trace.membrane[:, 0] for name, trace in known.items() if trace.membrane is not None},
                {name: trace.spikes[:, 0] for name, trace in known.items()},
                {name: _of_first_sample(trace.threshold) for name, trace in known.items()},
                self.neurons,
            )
            log_figure(trainer, f"{self.name}_{stage}", figure, self.folder)

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if not self._measured:
            return
        zeros = torch.zeros(3, dtype=accumulation_dtype(pl_module.device), device=pl_module.device)
        layers = list(named_spiking_layers(pl_module))  # the same in all processes, even if other layers ran there
        sums = torch.stack([self._sums.get(name, zeros) for name in layers])
        for name, (count, total, squares) in zip(layers, trainer.strategy.reduce(sums, reduce_op="sum"), strict=True):
            if count > 0:
                mean = total / count
                found = {"mean": mean, "sd": (squares / count - mean.square()).clamp(min=0).sqrt()}
                pl_module.log_dict(
                    {f"{self.name}/{stage}/{quantity}/{name}": value.float() for quantity, value in found.items()},
                    sync_dist=trainer.world_size > 1,
                )
        self.discard()

    def _add_call(self, call: LayerCall) -> None:
        if self._traces is not None:
            self._traces.add(call)
        relative = call.relative_membrane()
        if relative is None:
            return
        relative = relative.to(accumulation_dtype(relative.device))
        if call.valid is not None:
            relative = relative[call.valid]
        sums = torch.stack([torch.tensor(relative.numel()).to(relative), relative.sum(), relative.square().sum()])
        self._sums[call.name] = self._sums[call.name] + sums if call.name in self._sums else sums

    def _report_unknown(self, names: list[str], others_known: bool) -> None:
        if names and not others_known:
            raise ValueError(
                f"Expected a spiking layer with a known membrane potential for {type(self).__name__}, but got only "
                f"{', '.join(names)}. Pass the name of its attribute to `register_spiking_layer`; that of a `Neuron` "
                "with a forward of its own is never known."
            )
        new = [name for name in names if name not in self._unknown]
        if new:
            self._unknown.update(new)
            rank_zero_warn(
                f"{type(self).__name__} neither draws nor logs {', '.join(new)}: the membrane potential is not known"
            )


def _of_first_sample(threshold: float | Tensor | None) -> float | Tensor | None:
    return threshold[:, 0] if isinstance(threshold, Tensor) and threshold.dim() == 3 else threshold
