"""`PredictionWriter` on a plain LightningModule: predictions as a file of plain tensors.

Usage: python callbacks/prediction_writer.py [FOLDER]
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import PredictionWriter


class Classifier(pl.LightningModule):
    """Module independent of this library; `predict_step` returns class probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

    def predict_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).softmax(1)


def main(folder: Path) -> None:
    """Predict the classes of random inputs, and read the file."""
    pl.seed_everything(0)
    data = DataLoader(TensorDataset(torch.randn(90, 16), torch.arange(90) % 3), 40)
    trainer = pl.Trainer(callbacks=[PredictionWriter(folder)], logger=False, enable_checkpointing=False)
    trainer.predict(Classifier(), data, return_predictions=False)
    for name, tensor in torch.load(folder / "predictions.pt", weights_only=True).items():
        print(name, tuple(tensor.shape))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "predictions"))
