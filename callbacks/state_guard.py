"""`StateGuard` on a LightningModule written with snntorch that never resets its neurons.

The guard reports the leak. Predictions depend on the order of the data, unless the guard resets the neurons.

Usage: python callbacks/state_guard.py
"""

import lightning.pytorch as pl
import snntorch
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import StateGuard


class Classifier(pl.LightningModule):
    """Module independent of this library.

    Its neurons keep their membrane potentials (`init_hidden`), also for the next batch. Only the graph is detached, so
    that backward does not fail.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 32),
            snntorch.Leaky(beta=0.95, init_hidden=True),
            nn.Linear(32, 3),
            snntorch.Leaky(beta=0.95, init_hidden=True, output=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for neurons in (self.net[1], self.net[3]):
            neurons.mem = neurons.mem.detach()
        return torch.stack([self.net(x)[1] for _ in range(5)]).mean(0)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def predict_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self(batch[0]).argmax(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def trainer(guard: StateGuard) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(max_epochs=4, callbacks=[guard], **quiet)


def main() -> None:
    """Train on three noisy clusters, then predict twice, with the batches in different order."""
    pl.seed_everything(0)
    y = torch.arange(900) % 3
    x = torch.eye(3, 8)[y] * 2 + torch.randn(900, 8)
    train = TensorDataset(x[:600], y[:600])
    forth, back = (TensorDataset(part, part) for part in (x[600:], x[600:].flip(0)))

    try:
        trainer(StateGuard("raise")).fit(Classifier(), DataLoader(train, 50))
    except RuntimeError as error:
        print(error)
    for on_leak in ("warn", "reset"):
        pl.seed_everything(0)
        module, guard = Classifier(), StateGuard(on_leak)
        trainer(guard).fit(module, DataLoader(train, 50, shuffle=True))
        found = [torch.cat(trainer(guard).predict(module, DataLoader(data, 50))) for data in (forth, back)]
        accuracy = (found[0] == y[600:]).float().mean()
        changed = (found[0] != found[1].flip(0)).float().mean()
        print(f"{on_leak:<6} accuracy {accuracy:.3f}, predictions that depend on the order of the data {changed:.3f}")


if __name__ == "__main__":
    main()
