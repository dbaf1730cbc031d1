"""`UncertaintyLogger` on a network that does not spike: calibration, unfamiliar inputs, and prediction sets.

Usage: python callbacks/uncertainty.py FOLDER
"""

import sys

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import ConformalSets, UncertaintyLogger


class Classifier(pl.LightningModule):
    """Module independent of this library that does not spike; its `forward` returns logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("test/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main(folder: str) -> None:
    """Train on three overlapping clusters until the network is overconfident; noise around the origin is unfamiliar."""
    pl.seed_everything(0)
    y = torch.arange(900) % 3
    x = torch.eye(3, 16)[y] * 3 + torch.randn(900, 16)
    parts = (slice(150), slice(150, 500), slice(500, None))
    train, val, test = (DataLoader(TensorDataset(x[part], y[part]), 50) for part in parts)
    noise = DataLoader(0.3 * torch.randn(200, 16), 50)
    scores = ("classwise_ece", "smooth_ece", "augrc", "ood_fpr95", "ood_aupr")
    logger = UncertaintyLogger(ood_dataloader=noise, folder=folder, scores=scores, conformal=ConformalSets(alpha=0.1))
    trainer = pl.Trainer(max_epochs=20, callbacks=[logger], logger=False, enable_checkpointing=False)
    module = Classifier()
    trainer.fit(module, train, val)
    print(f"temperature {logger.fitted_temperature:.3f}")
    for name, value in sorted(trainer.test(module, test, verbose=False)[0].items()):
        print(f"{name:<35} {value:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "uncertainty")
