"""`HardwareFineTuning` on a plain LightningModule: training in full precision, then with weights of one bit.

Usage: python callbacks/hardware_fine_tuning.py
"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, run
from lightning_snn.callbacks import HardwareConstraints, HardwareFineTuning
from lightning_snn.callbacks.hardware import export_weights

STEPS = 10


class Classifier(pl.LightningModule):
    """Module that uses only the LIF layer of this library."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 32), LIF(), nn.Linear(32, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return run(self.network, x.expand(STEPS, -1, -1)).mean(0)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main() -> None:
    """Train on three noisy clusters, 5 epochs in full precision and 3 more with the weights of the chip."""
    pl.seed_everything(0)
    y = torch.arange(900) % 3
    x = torch.eye(3, 8)[y] * 2 + torch.randn(900, 8)
    train, validation = (DataLoader(TensorDataset(x[part], y[part]), 50) for part in (slice(600), slice(600, None)))
    constraints = HardwareConstraints(weight_bits=1)
    hardware = HardwareFineTuning(constraints, start_epoch=5, learning_rate_factor=0.5)
    module = Classifier()
    trainer = pl.Trainer(max_epochs=8, callbacks=[hardware], logger=False, enable_checkpointing=False)
    trainer.fit(module, train, validation)
    for name, value in hardware.results.items():
        print(f"{name:<32} {value:.3f}")
    for name, (codes, scale, offset) in export_weights(module, constraints).items():
        print(f"{name}: {tuple(codes.shape)} weights of {offset:.3f} + {scale:.3f} * (0 to {codes.max()})")


if __name__ == "__main__":
    main()
