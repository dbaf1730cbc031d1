"""`FiringRateMonitor` on a LightningModule written with snntorch: firing rates before and after training.

Usage: python callbacks/firing_rates.py FOLDER
"""

import sys

import lightning.pytorch as pl
import snntorch
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import FiringRateMonitor


class Classifier(pl.LightningModule):
    """Module independent of this library: a loop over time steps that passes on the membrane potentials."""

    def __init__(self, steps: int = 10) -> None:
        super().__init__()
        self.steps = steps
        self.fc1, self.fc2 = nn.Linear(16, 64), nn.Linear(64, 3)
        self.lif1, self.lif2 = snntorch.Leaky(beta=0.9), snntorch.Leaky(beta=0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        membrane1, membrane2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        counts = torch.zeros(len(x), 3)
        for _ in range(self.steps):
            spikes, membrane1 = self.lif1(self.fc1(x), membrane1)
            spikes, membrane2 = self.lif2(self.fc2(spikes), membrane2)
            counts = counts + spikes
        return counts

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 5e-3)


def main(folder: str) -> None:
    """Train on three clusters, with inputs so weak that the output neurons hardly fire at first."""
    pl.seed_everything(0)
    y = torch.arange(900) % 3
    x = torch.eye(3, 16)[y] + 0.2 * torch.randn(900, 16)
    train, val = (DataLoader(TensorDataset(x[part], y[part]), 50) for part in (slice(600), slice(600, None)))
    module = Classifier()
    monitor = FiringRateMonitor(every_n_batches=1, folder=folder)
    trainer = pl.Trainer(max_epochs=5, callbacks=[monitor], logger=False, enable_checkpointing=False)
    before = trainer.validate(module, val, verbose=False)[0]
    trainer.fit(module, train, val)
    after = trainer.validate(module, val, verbose=False)[0]
    for name in before:
        print(f"{name:<34} {before[name]:.3f} {after[name]:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "firing_rates")
