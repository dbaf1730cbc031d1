"""Firing rates of the neurons of a network, and the fractions that never fire or nearly always do."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_snn import figures
from lightning_snn.callbacks.raster import log_rasters
from lightning_snn.callbacks.stages import SpikingStages, Stage
from lightning_snn.callbacks.tracking import log_figure, log_histogram, may_write
from lightning_snn.checks import check_integer
from lightning_snn.metrics.spikes import spikes_of_neurons
from lightning_snn.nn.liveness import SATURATED
from lightning_snn.nn.observation import LayerCall, Traces, observe
from lightning_snn.processes import gather

_EDGES = torch.linspace(0, 1, 51, dtype=torch.float64)


class FiringRateMonitor(SpikingStages):
    """Logger of the firing rates of each spiking layer in training, validation, and test, with figures.

    After each epoch it logs as `NAME/STAGE/QUANTITY/LAYER`, over the measured batches of all processes, with the stages
    `train`, `val`, and `test`, and with the layer `all` for all neurons together:

    - `rate`: spikes per neuron and time step;
    - `sparsity`: fraction of neurons and time steps without a spike, 1 - `rate`;
    - `dead`: fraction of neurons that never spiked;
    - `saturated`: fraction of neurons that spiked in more than 95 % of their time steps.

    Loggers that take histograms get those of the neurons' rates, from 0 to 1, per layer and epoch, as
    `report/NAME/STAGE/LAYER`. At the end of a fit, of `Trainer.validate`, and of `Trainer.test` it draws
    `NAME_STAGE.png`, the histograms of all layers after the last epoch with the neurons that never spiked shown
    separately, and `NAME_STAGE_raster.png`, the spikes of the first sample in its first batch. With several validation
    or test loaders, the keys of all but the first end with the loader's index.

    A neuron is one position in a layer's output per sample. A layer that is called with several shapes, because images
    differ in size or because the layer is used in several places, has the neurons of each shape.

    It works on any LightningModule with spiking layers. Hooks exist during measured batches only, and counts are
    integers that stay on the device until the end of an epoch.

    Args:
        every_n_batches: measure the first batch and then every n-th of each epoch of training and validation. In tests
            every batch is measured.
        folder: folder of the figures; None uses that of the logger, or without one `default_root_dir`, and keeps
            the files of other runs there. A `fast_dev_run` writes nothing.
        name: first part of all keys; several of these callbacks in one trainer need different names.

    Raises:
        ValueError: if `every_n_batches` is less than 1; at the start of a fit, validation, or test, if the module has
            no spiking layers.

    Example:
        >>> trainer = pl.Trainer(callbacks=[FiringRateMonitor(every_n_batches=4)], logger=False)
    """

    def __init__(
        self,
        every_n_batches: int = 8,
        folder: str | os.PathLike[str] | None = None,
        name: str = "firing_rates",
    ) -> None:
        super().__init__()
        check_integer("every_n_batches", every_n_batches)
        self.every_n_batches = every_n_batches
        self.folder = None if folder is None else Path(folder)
        self.name = name
        self.discard()

    def discard(self) -> None:
        self._counts: dict[Stage, dict[_Neurons, _Count]] = {}
        self._rates: dict[tuple[Stage, int], dict[str, Tensor]] = {}
        self._traces: dict[Stage, Traces] = {}

    def begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        self._counts.pop(stage, None)

    def begin_batch(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: Stage,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if stage != "test" and batch_idx % self.every_n_batches:
            return
        counts = self._counts.setdefault(stage, {})

        def count(call: LayerCall) -> None:
            if not call.spikes.numel():
                return
            neurons = _Neurons(dataloader_idx, call.name, tuple(call.spikes.shape[2:]))
            spikes, sample_steps = counts.get(neurons, (0, 0))
            found = spikes_of_neurons(call.valid_spikes).flatten()
            counts[neurons] = _Count(spikes + found, sample_steps + call.sample_steps)

        self.recording.enter_context(observe(pl_module, count))
        if batch_idx == dataloader_idx == 0 and may_write(trainer):
            self._traces[stage] = Traces()
            self.recording.enter_context(self._traces[stage].recording(pl_module))

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        loaders: dict[int, dict[str, list[_Count]]] = defaultdict(lambda: defaultdict(list))
        for neurons, count in _sum_processes(self._counts.pop(stage, {}), trainer, pl_module).items():
            loaders[neurons.loader][neurons.layer].append(count)
        for loader, layers in loaders.items():
            suffix = f"/{loader}" if loader else ""
            all_counts = [count for counts in layers.values() for count in counts]
            for layer, counts in [*layers.items(), ("all", all_counts)]:
                found = {
                    f"{self.name}/{stage}/{quantity}/{layer}{suffix}": value
                    for quantity, value in _quantities(counts).items()
                }
                # the values are already those of all processes
                pl_module.log_dict(found, sync_dist=trainer.world_size > 1)
            self._rates[stage, loader] = {layer: _rates(counts) for layer, counts in layers.items()}
            for layer, rates in self._rates[stage, loader].items():
                bins = torch.histogram(rates, _EDGES).hist
                log_histogram(trainer, f"{self.name}/{stage}/{layer}{suffix}", bins, _EDGES)

    def end_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if may_write(trainer):
            for (measured, loader), rates in self._rates.items():
                suffix = f"_{loader}" if loader else ""
                figure = figures.firing_rate_histograms(rates)
                log_figure(trainer, f"{self.name}_{measured}{suffix}", figure, self.folder)
            for measured, traces in self._traces.items():
                log_rasters(trainer, f"{self.name}_{measured}_raster", traces, self.folder)
        self.discard()


class _Neurons(NamedTuple):
    """Key of the neurons that a layer has for samples of one shape."""

    loader: int
    layer: str
    shape: tuple[int, ...]


class _Count(NamedTuple):
    """Spikes per neuron, integers `[N]`, and the number of time steps of all samples."""

    spikes: Tensor
    sample_steps: int


def _sum_processes(
    counts: dict[_Neurons, _Count], trainer: pl.Trainer, pl_module: pl.LightningModule
) -> dict[_Neurons, _Count]:
    """Return counts on the host, summed over processes, some of which may have had no batch."""
    keys = list(counts)
    if trainer.world_size > 1:
        keys = list(dict.fromkeys(neurons for each in gather(keys) for neurons in each))
    summed = {}
    for neurons in keys:
        zeros = torch.zeros(torch.Size(neurons.shape).numel(), dtype=torch.long, device=pl_module.device)
        spikes, sample_steps = counts.get(neurons, _Count(zeros, 0))
        both = torch.cat([spikes, spikes.new_tensor([sample_steps])])
        both = trainer.strategy.reduce(both, reduce_op="sum").cpu()
        summed[neurons] = _Count(both[:-1], int(both[-1]))
    return summed


def _rates(counts: Iterable[_Count]) -> Tensor:
    """Return spikes per time step of each neuron, in float64."""
    return torch.cat([count.spikes.double() / count.sample_steps for count in counts])


def _quantities(counts: list[_Count]) -> dict[str, float]:
    spikes = sum(int(count.spikes.sum()) for count in counts)
    rate = spikes / sum(len(count.spikes) * count.sample_steps for count in counts)
    rates = _rates(counts)
    return {
        "rate": rate,
        "sparsity": 1 - rate,
        "dead": (rates == 0).double().mean().item(),
        "saturated": (rates > SATURATED).double().mean().item(),
    }
