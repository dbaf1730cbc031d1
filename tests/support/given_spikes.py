"""A module whose spikes are the data that it is given."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.nn import register_spiking_layer

STEPS = 20


class Echo(nn.Module):
    """Spiking layer whose spikes are its input, one time step per call."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


register_spiking_layer(Echo)


class Given(pl.LightningModule):
    """Two spiking layers whose spikes are the data `[B, T, N]`; the second has only the first two neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Echo(), Echo()
        self.weight = nn.Parameter(torch.zeros(()))
        self.hooked: list[bool] = []

    def forward(self, batch: list[Tensor]) -> Tensor:
        self.hooked.append(bool(self.first._forward_hooks))
        for spikes in batch[0].unbind(1):
            self.first(spikes)
            self.second(spikes[:, :2])
        return self.weight**2

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self(batch)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def spikes(seed: int = 0, samples: int = 10) -> Tensor:
    """Return spikes `[samples, T, 5]`: neuron 0 never spikes, neuron 1 always, neuron 2 once, in the last sample."""
    found = (torch.rand(samples, STEPS, 5, generator=torch.Generator().manual_seed(seed)) < 0.3).float()
    found[:, :, 0], found[:, :, 1], found[:, :, 2] = 0, 1, 0
    found[-1, 3, 2] = 1
    return found


def data(values: Tensor, batch_size: int = 2) -> DataLoader:
    return DataLoader(TensorDataset(values), batch_size)
