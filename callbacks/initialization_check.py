"""`InitializationCheck` on a LightningModule of one's own: a deep rectifier network, initialised as it should be and as
it should not.

    python callbacks/initialization_check.py
"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import InitializationCheck

WIDTH, DEPTH = 64, 8


class Classifier(pl.LightningModule):
    """A module that knows nothing of this library. Its batches have no time axis."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(DEPTH):
            layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
            nn.init.normal_(layers[-2].weight, std=gain / WIDTH**0.5)
            nn.init.zeros_(layers[-2].bias)
        self.net = nn.Sequential(*layers, nn.Linear(WIDTH, 3))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def one_time_step(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """`[B, 64]` to `[1, B, 64]`."""
    x, y = batch
    return x[None], y


def main() -> None:
    """Three noisy clusters. Weights of He's scale pass; a third of it ends the fit before its first step."""
    y = torch.arange(600) % 3
    x = torch.eye(3, WIDTH)[y] * 2 + torch.randn(600, WIDTH)
    for gain in (2**0.5, 0.5):
        pl.seed_everything(0)
        check = InitializationCheck(on_fail="error", network="net", read_batch=one_time_step)
        trainer = pl.Trainer(max_epochs=1, callbacks=[check], logger=False, enable_checkpointing=False)
        try:
            trainer.fit(Classifier(gain), DataLoader(TensorDataset(x, y), 50, shuffle=True))
        except RuntimeError as error:
            print(error)


if __name__ == "__main__":
    main()
