"""How often the neurons of a network fire, and which of them never do."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_snn import figures
from lightning_snn.callbacks.raster import log_rasters
from lightning_snn.callbacks.stages import SpikingStages, Stage
from lightning_snn.callbacks.tracking import log_figure, log_histogram, may_write, output_folder
from lightning_snn.checks import check_integer
from lightning_snn.metrics.spikes import SATURATED, spikes_of_neurons
from lightning_snn.nn.observation import LayerCall, Traces, observe

_EDGES = torch.linspace(0, 1, 51, dtype=torch.float64)


class FiringRateMonitor(SpikingStages):
    """Logs how much the neurons of each spiking layer fire in training, validation and test, and draws it.

    Logged after each epoch, as `NAME/STAGE/QUANTITY/LAYER` with `train`, `val` or `test` as the stage, over the batches
    that were watched, in all processes, and with `all` as the layer over all neurons together, are

    - `rate`: spikes per neuron and time step;
    - `sparsity`: the share of neurons and steps without a spike, 1 - `rate`;
    - `dead`: the share of neurons that never spiked;
    - `saturated`: the share of neurons that spiked in more than 95 % of their steps.

    Loggers that take histograms get that of the neurons' rates, from 0 to 1, in each layer after each epoch, as
    `report/NAME/STAGE/LAYER`. The end of a fit, of `Trainer.validate` and of `Trainer.test` brings the figures
    `NAME_STAGE.png`, the histograms of all layers after the last epoch with the neurons that never spiked set apart,
    and `NAME_STAGE_raster.png`, the spikes of the first sample of its first batch. Of several validation or test
    loaders each but the first has its index as a last part of its keys.

    A neuron is one place in what a layer gives for a sample. A layer that is called with several shapes, because
    images differ in size or because it stands in several places, has the neurons of each shape.

    It works on any LightningModule with spiking layers. The hooks are there in watched batches only, and counts are
    integers that stay on the device until an epoch is over.

    Args:
        every_n_batches: number of batches from one that is watched in an epoch of training or validation to the next,
            the first included. In tests every batch is.
        folder: where to write figures; None takes the trainer's `default_root_dir`. Nothing is written in a
            `fast_dev_run`.
        name: first part of all keys; several of these callbacks in one trainer need different names.

    Raises:
        ValueError: if `every_n_batches` is less than 1; when the fit, validation or test starts, if the module has no
            spiking layers.

    Example:
        >>> trainer = Trainer(callbacks=[FiringRateMonitor()])
        >>> trainer.fit(module, data)
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
        self.forget()

    def forget(self) -> None:
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
            steps, samples, *shape = call.spikes.shape
            neurons = _Neurons(dataloader_idx, call.name, tuple(shape))
            spikes, opportunities = counts.get(neurons, (0, 0))
            counts[neurons] = _Count(spikes + spikes_of_neurons(call.spikes).flatten(), opportunities + steps * samples)

        self.recording.enter_context(observe(pl_module, count))
        if batch_idx == dataloader_idx == 0 and may_write(trainer):
            self._traces[stage] = Traces()
            self.recording.enter_context(self._traces[stage].recording(pl_module))

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        loaders: dict[int, dict[str, list[_Count]]] = defaultdict(lambda: defaultdict(list))
        for neurons, count in _of_all_processes(self._counts.pop(stage, {}), trainer, pl_module).items():
            loaders[neurons.loader][neurons.layer].append(count)
        for loader, layers in loaders.items():
            suffix = f"/{loader}" if loader else ""
            everything = [count for counts in layers.values() for count in counts]
            for layer, counts in [*layers.items(), ("all", everything)]:
                found = {
                    f"{self.name}/{stage}/{quantity}/{layer}{suffix}": value
                    for quantity, value in _quantities(counts).items()
                }
                # every process has the same
                pl_module.log_dict(found, sync_dist=trainer.world_size > 1)
            self._rates[stage, loader] = {layer: _rates(counts) for layer, counts in layers.items()}
            for layer, rates in self._rates[stage, loader].items():
                bins = torch.histogram(rates, _EDGES).hist
                log_histogram(trainer, f"{self.name}/{stage}/{layer}{suffix}", bins, _EDGES)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._draw(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        if may_write(trainer):
            folder = output_folder(trainer, self.folder)
            for (stage, loader), rates in self._rates.items():
                suffix = f"_{loader}" if loader else ""
                drawn = figures.firing_rate_histograms(rates)
                log_figure(trainer, f"{self.name}_{stage}{suffix}", drawn, folder)
            for stage, traces in self._traces.items():
                log_rasters(trainer, f"{self.name}_{stage}_raster", traces, folder)
        self.forget()


class _Neurons(NamedTuple):
    """Which neurons: those that a layer has for samples of one shape."""

    loader: int
    layer: str
    shape: tuple[int, ...]


class _Count(NamedTuple):
    """Spikes of each neuron, integers `[N]`, and in how many steps, of all samples, it could have spiked."""

    spikes: Tensor
    opportunities: int


def _of_all_processes(
    counts: dict[_Neurons, _Count], trainer: pl.Trainer, pl_module: pl.LightningModule
) -> dict[_Neurons, _Count]:
    """Counts on the host, summed over processes, of which some may have had no batch."""
    known = list(counts)
    if trainer.world_size > 1:
        gathered: list[list[_Neurons]] = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(gathered, known)
        known = list(dict.fromkeys(neurons for each in gathered for neurons in each))
    summed = {}
    for neurons in known:
        silent = torch.zeros(torch.Size(neurons.shape).numel(), dtype=torch.long, device=pl_module.device)
        spikes, opportunities = counts.get(neurons, _Count(silent, 0))
        both = torch.cat([spikes, spikes.new_tensor([opportunities])])
        both = trainer.strategy.reduce(both, reduce_op="sum").cpu()
        summed[neurons] = _Count(both[:-1], int(both[-1]))
    return summed


def _rates(counts: Iterable[_Count]) -> Tensor:
    """Spikes per step of each neuron, in float64."""
    return torch.cat([count.spikes.double() / count.opportunities for count in counts])


def _quantities(counts: list[_Count]) -> dict[str, float]:
    spikes = sum(int(count.spikes.sum()) for count in counts)
    rate = spikes / sum(len(count.spikes) * count.opportunities for count in counts)
    rates = _rates(counts)
    return {
        "rate": rate,
        "sparsity": 1 - rate,
        "dead": (rates == 0).double().mean().item(),
        "saturated": (rates > SATURATED).double().mean().item(),
    }
