"""`ExactResume` on a plain LightningModule with dropout, a shuffled loader and checkpoints within an epoch.

The run is resumed from the checkpoint of a step, with and without the callback, and its weights are compared with those
of the run that did not stop.

Usage: python callbacks/exact_resume.py
"""

import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import ExactResume


class Classifier(pl.LightningModule):
    """Module independent of this library; dropout draws random numbers in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def fit(callbacks: list[pl.Callback], folder: Path, checkpoint: Path | None = None) -> torch.Tensor:
    """Return the weights after three epochs of 12 steps, the first part of which may be that of a checkpoint."""
    pl.seed_everything(0, verbose=False)
    y = torch.arange(600) % 3
    x = torch.eye(3, 8)[y] * 2 + torch.randn(600, 8)
    module = Classifier()
    every = ModelCheckpoint(folder, "{step}", every_n_train_steps=20, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=3, callbacks=[*callbacks, every], accelerator="cpu", **quiet)
    trainer.fit(module, DataLoader(TensorDataset(x, y), 50, shuffle=True), ckpt_path=checkpoint)
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def main() -> None:
    """Train, resume from step 20 of 36, and print the largest difference of a weight."""
    for name, callbacks in (("without", []), ("with", [ExactResume()])):
        with tempfile.TemporaryDirectory() as folder:
            whole = fit(callbacks, Path(folder))
            resumed = fit(callbacks, Path(folder), Path(folder, "step=20.ckpt"))
        print(f"{name:<8} largest difference {float((whole - resumed).abs().max()):g}")


if __name__ == "__main__":
    main()
