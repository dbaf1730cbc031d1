"""`InitializationCheck` on a LightningModule written with snntorch, whose weights are far too small.

The check finds that its layers are silent, and that the network learns its first batch all the same, but slowly. With
`on_fail="rescale"` it rescales the weights, and the network learns well.

Usage: python callbacks/initialization_check.py
"""

from itertools import pairwise

import lightning.pytorch as pl
import snntorch
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import InitializationCheck

STEPS, FEATURES, WIDTH, CLASSES = 10, 20, 64, 4


class Classifier(pl.LightningModule):
    """Module independent of this library: a loop over time steps that passes on the membrane potentials."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (FEATURES, WIDTH, WIDTH, WIDTH, CLASSES)
        self.weights = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.neurons = nn.ModuleList(snntorch.Leaky(beta=0.9) for _ in self.weights)
        with torch.no_grad():
            for layer in self.weights:
                layer.weight.mul_(0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        membranes = [layer.init_leaky() for layer in self.neurons]
        outputs = []
        for _ in range(STEPS):
            spikes = x
            for index, (weights, neurons) in enumerate(zip(self.weights, self.neurons, strict=True)):
                spikes, membranes[index] = neurons(weights(spikes), membranes[index])
            outputs.append(membranes[-1])
        return torch.stack(outputs).mean(0)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


def main() -> None:
    """Train on four noisy clusters, with and without rescaling."""
    pl.seed_everything(0)
    y = torch.arange(1200) % CLASSES
    x = 2 * torch.eye(CLASSES, FEATURES)[y] + torch.randn(1200, FEATURES)
    train, test = (DataLoader(TensorDataset(x[part], y[part]), 50) for part in (slice(800), slice(800, None)))
    for on_fail in ("warn", "rescale"):
        pl.seed_everything(0)
        module = Classifier()
        check = InitializationCheck(on_fail=on_fail)
        trainer = pl.Trainer(max_epochs=3, callbacks=[check], logger=False, enable_checkpointing=False)
        trainer.fit(module, train)
        accuracy = trainer.test(module, test, verbose=False)[0]["accuracy"]
        print(f"accuracy with on_fail={on_fail!r}: {accuracy:.2f}")


if __name__ == "__main__":
    main()
