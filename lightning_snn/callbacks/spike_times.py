"""What a test tells of neurons that spike at most once: when, how often, and how long it takes."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_snn import figures
from lightning_snn.callbacks.modules import network_of
from lightning_snn.callbacks.tracking import log_figure, may_write, output_folder
from lightning_snn.checks import check_integer
from lightning_snn.methods.ttfs import SpikeEncoder, TimeWindow
from lightning_snn.methods.ttfs.windows import latency
from lightning_snn.metrics.ttfs import Emission, OverflowFraction, SpikesPerNeuron, emitting_layers, record_emissions


class SpikeTimes(pl.Callback):
    """Logs with a test what a network of first spikes costs, and draws when its neurons spike, layer by layer.

    Logged over all test samples are `test/spikes_per_neuron`, of the encoder and of each layer
    `test/spikes_per_neuron/LAYER`, `test/overflow_fraction` (neurons that should have spiked before their window began)
    and `test/latency`, in units of the input window. `spike_times.png` has a histogram for the encoder and for each
    layer. All is of the network as the test runs it, constraints of hardware included; of a prediction that runs it
    several times the last run counts.

    It works on any LightningModule with `SpikeEncoder` and `FirstSpike` layers, or `AlphaLinear` and `AlphaConv2d`.

    Args:
        folder: where to write the figure; None takes the trainer's `default_root_dir`. Nothing is written in a
            `fast_dev_run`.
        network: name of the network within the module, dots and all; None takes what holds all layers of first spikes:
            one of the module's own parts, or the module. Layers are named as they are within it.
        bins: of each histogram, at least 1.

    Raises:
        ValueError: if `bins` is outside its range; when a test starts, if the module has no such network or no such
            layers.

    Example:
        >>> Trainer(callbacks=[SpikeTimes("report")]).test(module, data)
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, network: str | None = None, bins: int = 100
    ) -> None:
        check_integer("bins", bins)
        self.folder = None if folder is None else Path(folder)
        self.network, self.bins = network, bins
        self._recording = ExitStack()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._network = _network_of_first_spikes(pl_module, self.network)
        self._layers = {
            name: layer for name, layer in emitting_layers(self._network).items() if isinstance(layer, TimeWindow)
        }
        self._spikes = SpikesPerNeuron.by_layer(self._network).to(pl_module.device)
        self._overflow = OverflowFraction().to(pl_module.device)
        self._counts = {
            name: torch.zeros(self.bins, dtype=torch.long, device=pl_module.device) for name in self._layers
        }
        self._neurons = dict.fromkeys(self._layers, 0)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._emissions = self._recording.enter_context(record_emissions(self._network))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._recording.close()
        self._spikes.update(self._emissions)
        self._overflow.update(self._emissions)
        for name, emission in self._emissions.items():
            self._counts[name] += self._histogram(emission, self._layers[name])
            self._neurons[name] += emission.remaining.numel()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = {
            "test/overflow_fraction": self._overflow.compute(),
            "test/latency": latency(self._network),
        }
        for name, value in self._spikes.compute().items():
            found["test/spikes_per_neuron" + ("" if name == "all" else f"/{name}")] = value
        # metrics are those of all processes already
        pl_module.log_dict({name: value.float() for name, value in found.items()}, sync_dist=trainer.world_size > 1)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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
            folder = output_folder(trainer, self.folder)
            log_figure(trainer, "spike_times", figures.spike_time_histograms(rates, windows), folder)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._recording.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._recording.close()

    def _histogram(self, emission: Emission, layer: TimeWindow) -> Tensor:
        """Spikes in each bin of the window; those before it are in the first."""
        remaining = emission.remaining[emission.remaining > 0]
        place = (1 - remaining / layer.window.to(remaining)) * self.bins
        return torch.bincount(place.long().clamp(0, self.bins - 1), minlength=self.bins)


def _network_of_first_spikes(pl_module: pl.LightningModule, name: str | None) -> nn.Module:
    if name is not None:
        network = network_of(pl_module, name)
        if not _spikes_once(network):
            raise ValueError(
                f"Expected argument `network` to name a network of first spikes for SpikeTimes, but {name!r} is "
                f"{type(network).__name__} without a layer of them"
            )
        return network
    if not _spikes_once(pl_module):
        raise ValueError(
            "Expected a module with `FirstSpike`, `AlphaLinear` or `AlphaConv2d` layers for SpikeTimes, but "
            f"{type(pl_module).__name__} has none"
        )
    parts = [part for part in pl_module.children() if any(isinstance(layer, TimeWindow) for layer in part.modules())]
    alone = len(parts) == 1 and not isinstance(parts[0], TimeWindow)
    return parts[0] if alone else pl_module


def _spikes_once(network: nn.Module) -> bool:
    layers = network.modules()
    return any(isinstance(layer, TimeWindow) and not isinstance(layer, SpikeEncoder) for layer in layers)
