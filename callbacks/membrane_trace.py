"""`MembraneTrace` on a LightningModule written with snntorch: membrane potentials before and after training.

Usage: python callbacks/membrane_trace.py FOLDER
"""

import sys

import lightning.pytorch as pl
import snntorch
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import MembraneTrace

STEPS = 30


class Classifier(pl.LightningModule):
    """Module independent of this library: a loop over time steps that passes on the membrane potentials."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 3)
        self.lif1, self.lif2 = snntorch.Leaky(beta=0.9), snntorch.Leaky(beta=0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        membrane1, membrane2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        counts = 0
        for events in x:
            spikes, membrane1 = self.lif1(self.first(events), membrane1)
            spikes, membrane2 = self.lif2(self.second(spikes), membrane2)
            counts = counts + spikes
        return counts

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self(events(x)), y)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val/accuracy", (self(events(x)).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def events(x: torch.Tensor) -> torch.Tensor:
    """Draw events `[T, B, 8]` with rates `[B, 8]`."""
    return torch.bernoulli(x.expand(STEPS, -1, -1))


def main(folder: str) -> None:
    """Train on three groups of inputs, each active in different channels."""
    pl.seed_everything(0)
    y = torch.arange(450) % 3
    x = 0.1 + 0.3 * torch.eye(3, 8)[y] + 0.1 * torch.rand(450, 8)
    train, val = (DataLoader(TensorDataset(x[part], y[part]), 50) for part in (slice(300), slice(300, None)))
    trace = MembraneTrace(folder=folder)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=5, callbacks=[trace], **quiet)
    module = Classifier()
    for when in ("before", "after"):
        if when == "after":
            trainer.fit(module, train, val)
        for name, value in trainer.validate(module, val, verbose=False)[0].items():
            print(f"{when:<7} {name:<24} {value:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "membranes")
