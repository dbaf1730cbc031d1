"""`Report` on a plain LightningModule, whose `test_step` returns the prediction and the target.

Usage: python callbacks/report.py [FOLDER]
"""

import sys

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, run
from lightning_snn.callbacks import Report

STEPS = 10


class Classifier(pl.LightningModule):
    """Module that uses only the LIF layer of this library."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 32), LIF(), nn.Linear(32, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.over_time(x).mean(0)

    def over_time(self, x: torch.Tensor) -> torch.Tensor:
        return run(self.network, x.expand(STEPS, -1, -1))

    def predict_anytime(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return class probabilities after each time step `[T, B, C]`, for the figures of anytime prediction."""
        steps = torch.arange(1, STEPS + 1).view(-1, 1, 1)
        return (self.over_time(batch[0]).cumsum(0) / steps).softmax(-1)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        return {"prediction": self(batch[0]).softmax(-1), "target": batch[1]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main(folder: str) -> None:
    """Train on three noisy clusters and write a report."""
    pl.seed_everything(0)
    y = torch.arange(600) % 3
    x = torch.eye(3, 8)[y] * 2 + torch.randn(600, 8)
    train, test = (DataLoader(TensorDataset(x[part], y[part]), 50) for part in (slice(400), slice(400, None)))
    module = Classifier()
    trainer = pl.Trainer(max_epochs=5, callbacks=[Report(folder)], logger=False, enable_checkpointing=False)
    trainer.fit(module, train)
    trainer.test(module, test)
    print(f"The report is in {folder}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/report")
