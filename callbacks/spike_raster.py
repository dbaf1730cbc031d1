"""`SpikeRaster` on a LightningModule with neurons of its own type: spikes during training.

Usage: python callbacks/spike_raster.py FOLDER
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import SpikeRaster
from lightning_snn.nn import register_spiking_layer


class Neurons(nn.Module):
    """Leaky integrate-and-fire layer that takes all time steps in one call, `[T, B, N]`."""

    def forward(self, currents: torch.Tensor) -> torch.Tensor:
        membrane, spikes = torch.zeros_like(currents[0]), []
        for current in currents:
            membrane = 0.9 * membrane + current
            soft = torch.sigmoid(5 * (membrane - 1))
            spikes.append((membrane > 1).float() + soft - soft.detach())
            membrane = membrane - spikes[-1].detach()
        return torch.stack(spikes)


# the only line that layers of other libraries need
register_spiking_layer(Neurons, all_steps=True)


class Classifier(pl.LightningModule):
    """Module independent of this library."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), Neurons(), nn.Linear(64, 32), Neurons(), nn.Linear(32, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.transpose(0, 1)).mean(0)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main(folder: str) -> None:
    """Train on a bump of current that moves over sixteen inputs to the right, to the left, or not at all."""
    pl.seed_everything(0)
    y = torch.arange(600) % 3
    middle = 8 + (y - 1)[:, None] * (torch.arange(20) - 10) * 0.7
    x = torch.exp(-((torch.arange(16) - middle[:, :, None]) ** 2) / 4) + 0.1 * torch.randn(600, 20, 16)
    train, val, test = (DataLoader(TensorDataset(x[i:j], y[i:j]), 50) for i, j in ((0, 400), (400, 500), (500, 600)))
    raster = SpikeRaster(every_n_epochs=2, samples=3, folder=folder)
    trainer = pl.Trainer(max_epochs=5, callbacks=[raster], logger=False, enable_checkpointing=False)
    module = Classifier()
    trainer.fit(module, train, val)
    accuracy = trainer.test(module, test, verbose=False)[0]["accuracy"]
    print(f"accuracy {accuracy:.3f}, one sample of each class in")
    for file in sorted(Path(folder).glob("raster_*.png")):
        print(file)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "raster")
