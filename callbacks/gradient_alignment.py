"""`GradientAlignment` on a plain LightningModule: would rate-based backpropagation give the same gradient?

The module trains by backpropagation through time.

Usage: python callbacks/gradient_alignment.py
"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, run
from lightning_snn.callbacks import GradientAlignment

STEPS = 10


class Classifier(pl.LightningModule):
    """Module that uses only the LIF layer of this library. Its batches have no time dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), LIF(0.5), nn.Linear(32, 32), LIF(0.5), nn.Linear(32, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # the same input at every step: [B, 8] to [T, B, 8]
        return run(self.net, x.expand(STEPS, -1, -1)).mean(0)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main() -> None:
    """Train on three noisy clusters and print how the two gradients compare."""
    pl.seed_everything(0)
    y = torch.arange(600) % 3
    x = torch.eye(3, 8)[y] * 2 + torch.randn(600, 8)
    alignment = GradientAlignment(every_n_steps=10)
    trainer = pl.Trainer(max_epochs=5, callbacks=[alignment], logger=False, enable_checkpointing=False)
    trainer.fit(Classifier(), DataLoader(TensorDataset(x, y), 50, shuffle=True))
    for name, value in trainer.callback_metrics.items():
        print(f"{name:<28} {value:.3f}")


if __name__ == "__main__":
    main()
