"""`SpikeTimes` on a plain LightningModule, whose neurons spike at most once: histograms of their spike times.

Usage: python callbacks/spike_times.py FOLDER
"""

import sys

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import SpikeTimes
from lightning_snn.methods.ttfs import FirstSpike, SpikeEncoder, calibrate


class Classifier(pl.LightningModule):
    """Module that uses only layers of this library. Its batches have no time dimension."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(8, 64), FirstSpike(), nn.Linear(64, 64), FirstSpike(), nn.Linear(64, 3))
        self.network = nn.Sequential(SpikeEncoder(), *layers)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("test/accuracy", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main(folder: str) -> None:
    """Train on three noisy clusters, then set windows to the largest activations."""
    pl.seed_everything(0)
    y = torch.arange(900) % 3
    x = (torch.eye(3, 8)[y] * 0.5 + 0.15 * torch.randn(900, 8) + 0.25).clamp(0, 1)
    train, test = (DataLoader(TensorDataset(x[part], y[part]), 50) for part in (slice(600), slice(600, None)))
    module = Classifier()
    trainer = pl.Trainer(max_epochs=3, callbacks=[SpikeTimes(folder)], logger=False, enable_checkpointing=False)
    trainer.fit(module, train)
    calibrate(module.network, x[:600], zeta=0.0)
    for name, value in trainer.test(module, test, verbose=False)[0].items():
        print(f"{name:<32} {value:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "spike_times")
