"""Spike times, spike counts, and latency of networks whose neurons spike at most once, in a test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_snn import figures
from lightning_snn.callbacks.modules import network_of
from lightning_snn.callbacks.stages import Stage, Stages
from lightning_snn.callbacks.tracking import log_figure, may_write
from lightning_snn.checks import check_integer
from lightning_snn.methods.ttfs import SpikeEncoder, TimeWindow
from lightning_snn.methods.ttfs.windows import latency
from lightning_snn.metrics.ttfs import Emission, OverflowFraction, SpikesPerNeuron, emitting_layers, record_emissions


class SpikeTimes(Stages):
    """Logger of the cost of a time-to-first-spike network in a test, with a figure of when its neurons spike.

    Logged over all test samples: `test/spikes_per_neuron`; `test/spikes_per_neuron/LAYER` for the encoder and each
    layer; `test/overflow_fraction`, the fraction of neurons that should have spiked before their window began; and
    `test/latency`, in units of the input window. `spike_times.png` has one histogram for the encoder and one per layer.
    The network is measured as the test runs it, including constraints of hardware. If a prediction runs the network
    several times, the last run counts.

    It works on any LightningModule with `SpikeEncoder` and `FirstSpike` layers, or `AlphaLinear` and `AlphaConv2d`.

    Args:
        folder: folder of the figure; None uses that of the logger, or without one `default_root_dir`, and keeps
            the files of other runs there. A `fast_dev_run` writes nothing.
        network: name of the network within the module, such as "model.network"; None uses the child of the module that
            contains all these layers, or the module itself. Layers are named as they are within the network.
        bins: number of bins of each histogram, at least 1.

    Raises:
        ValueError: if `bins` is out of range; at the start of a test, if the module has no such network or no such
            layers.

    Example:
        >>> trainer = pl.Trainer(callbacks=[SpikeTimes("report", bins=50)], logger=False)
    """

    stages: tuple[Stage, ...] = ("test",)

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, network: str | None = None, bins: int = 100
    ) -> None:
        super().__init__()
        check_integer("bins", bins)
        self.folder = None if folder is None else Path(folder)
        self.network, self.bins = network, bins

    def begin_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        self._network = _find_network(pl_module, self.network)
        self._layers = {
            name: layer for name, layer in emitting_layers(self._network).items() if isinstance(layer, TimeWindow)
        }
        self._spikes = SpikesPerNeuron.by_layer(self._network).to(pl_module.device)
        self._overflow = OverflowFraction().to(pl_module.device)
        self._counts = {
            name: torch.zeros(self.bins, dtype=torch.long, device=pl_module.device) for name in self._layers
        }
        self._neurons = dict.fromkeys(self._layers, 0)

    def begin_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._emissions = self.recording.enter_context(record_emissions(self._network))

    def end_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._spikes.update(self._emissions)
        self._overflow.update(self._emissions)
        for name, emission in self._emissions.items():
            self._counts[name] += self._histogram(emission, self._layers[name])
            self._neurons[name] += emission.remaining.numel()

    def end_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        found = {
            "test/overflow_fraction": self._overflow.compute(),
            "test/latency": latency(self._network),
        }
        for name, value in self._spikes.compute().items():
            found["test/spikes_per_neuron" + ("" if name == "all" else f"/{name}")] = value
        # the values are already those of all processes
        pl_module.log_dict({name: value.float() for name, value in found.items()}, sync_dist=trainer.world_size > 1)

    def end_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: Stage) -> None:
        if stage != "test":
            return
        rates, windows = {}, {}
        for name, layer in self._layers.items():
            neurons = trainer.strategy.reduce(
                torch.tensor(self._neurons[name], device=pl_module.device), reduce_op="sum"
            )
            counts = trainer.strategy.reduce(self._counts[name], reduce_op="sum")
            if neurons > 0:
                title = name if isinstance(layer, SpikeEncoder) else f"layer {name}"
                rates[title] = counts.double() / neurons
                windows[title] = (layer.t_min.item(), layer.t_max.item())
        if rates and may_write(trainer):
            log_figure(trainer, "spike_times", figures.spike_time_histograms(rates, windows), self.folder)

    def _histogram(self, emission: Emission, layer: TimeWindow) -> Tensor:
        """Count the spikes in each bin of the window; earlier ones are in the first."""
        remaining = emission.remaining[emission.remaining > 0]
        bins = (1 - remaining / layer.window.to(remaining)) * self.bins
        return torch.bincount(bins.long().clamp(0, self.bins - 1), minlength=self.bins)


def _find_network(pl_module: pl.LightningModule, name: str | None) -> nn.Module:
    if name is not None:
        network = network_of(pl_module, name)
        if not _has_first_spike_layers(network):
            raise ValueError(
                "Expected argument `network` to name a network with `FirstSpike`, `AlphaLinear`, or `AlphaConv2d` "
                f"layers for SpikeTimes, but got {name!r}, a {type(network).__name__} without any"
            )
        return network
    if not _has_first_spike_layers(pl_module):
        raise ValueError(
            "Expected a module with `FirstSpike`, `AlphaLinear`, or `AlphaConv2d` layers for SpikeTimes, but got "
            f"{type(pl_module).__name__} without any"
        )
    parts = [part for part in pl_module.children() if any(isinstance(layer, TimeWindow) for layer in part.modules())]
    return parts[0] if len(parts) == 1 and not isinstance(parts[0], TimeWindow) else pl_module


def _has_first_spike_layers(network: nn.Module) -> bool:
    layers = network.modules()
    return any(isinstance(layer, TimeWindow) and not isinstance(layer, SpikeEncoder) for layer in layers)
