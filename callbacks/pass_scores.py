"""`PassScores` on a plain LightningModule: test scores by epochs and seconds, as data for a curve.

Usage: python callbacks/pass_scores.py
"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import PassScores


class Clusters(pl.LightningDataModule):
    """Three noisy clusters."""

    def setup(self, stage: str) -> None:
        y = torch.arange(900) % 3
        x = torch.eye(3, 16)[y] * 2 + torch.randn(900, 16)
        self.train, self.test = TensorDataset(x[:600], y[:600]), TensorDataset(x[600:], y[600:])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, 50, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 100)


class Classifier(pl.LightningModule):
    """Module independent of this library; `predict_step` returns class probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def predict_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).softmax(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main() -> None:
    """Test twice in each of three epochs."""
    pl.seed_everything(0)
    scores = PassScores(times=2)
    trainer = pl.Trainer(max_epochs=3, callbacks=[scores], logger=False, enable_checkpointing=False)
    trainer.fit(Classifier(), Clusters())
    for row in scores.rows:
        print(f"after {row['epochs']:.1f} epochs  accuracy {row['accuracy']:.3f}  nll {row['nll']:.3f}")


if __name__ == "__main__":
    main()
