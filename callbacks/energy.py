"""`EnergyMonitor` on a network of SpikingJelly: is it cheaper than a dense network with the same connections?

Its layers take all time steps in one call.

Usage: python callbacks/energy.py FOLDER
"""

import sys

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import EnergyMonitor


class Classifier(pl.LightningModule):
    """Module independent of this library, with 8 time steps of Poisson spikes as the input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            layer.Conv2d(1, 8, 3, stride=2, padding=1),
            neuron.LIFNode(surrogate_function=surrogate.ATan()),
            layer.Conv2d(8, 16, 3, stride=2, padding=1),
            neuron.LIFNode(surrogate_function=surrogate.ATan()),
            layer.Flatten(),
            layer.Linear(16 * 3 * 3, 3),
        )
        functional.set_step_mode(self.net, "m")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        functional.reset_net(self.net)
        spikes = (torch.rand(8, *x.shape) < x).float()
        return self.net(spikes).mean(0)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("test/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main(folder: str) -> None:
    """Train and test on images of a bright bar in one of three rows."""
    pl.seed_everything(0)
    y = torch.arange(360) % 3
    x = 0.1 * torch.rand(360, 1, 12, 12)
    x[torch.arange(360), 0, 1 + 4 * y] = 0.8
    train, test = (DataLoader(TensorDataset(x[part], y[part]), 30) for part in (slice(300), slice(300, None)))
    monitor = EnergyMonitor(constants="horowitz_float32", folder=folder)
    trainer = pl.Trainer(max_epochs=4, callbacks=[monitor], logger=False, enable_checkpointing=False)
    module = Classifier()
    trainer.fit(module, train)
    for name, value in trainer.test(module, test, verbose=False)[0].items():
        print(f"{name:<36} {value:.4g}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "energy")
