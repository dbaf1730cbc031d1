"""Third-party LightningModules, one for each way in which spiking layers are called, and a small task for them.

Nothing in them is specific to this library: batches are `(x [B, 6], y [B])`, and they handle time themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import snntorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, run

STEPS, FEATURES, HIDDEN, CLASSES, SAMPLES = 5, 6, 12, 3, 40
Y = torch.arange(SAMPLES) % CLASSES
X = torch.eye(CLASSES, FEATURES)[Y] + torch.rand(SAMPLES, FEATURES, generator=torch.Generator().manual_seed(0))


def loader(shuffle: bool = False, batch_size: int = 12) -> DataLoader:
    """Return batches, the last of which is smaller."""
    return DataLoader(TensorDataset(X, Y), batch_size, shuffle=shuffle)


class Steps:
    """Steps of a classifier with dropout that draws random numbers, and a list of all losses."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.dropout = nn.Dropout(0.1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.detach().clone())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self._evaluate(batch, "val_loss")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self._evaluate(batch, "test_loss")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self(batch[0]).softmax(1)

    def test_dataloader(self) -> DataLoader:
        return loader()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)

    def _evaluate(self, batch: Any, name: str) -> dict[str, Tensor]:
        logits = self(batch[0])
        self.log(name, F.cross_entropy(logits, batch[1]))
        return {"prediction": logits.softmax(1), "target": batch[1]}


class ThirdPartyModule(Steps, pl.LightningModule):
    """Base of the modules."""


class Ours(ThirdPartyModule):
    """Layers of this library, with time folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(FEATURES, HIDDEN), LIF(), self.dropout, nn.Linear(HIDDEN, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return run(self.network, x.expand(STEPS, -1, -1)).mean(0)


class Loop(Steps):
    """snntorch as in its tutorials: a loop over time steps that passes on the membrane potentials."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.lif1, self.lif2 = snntorch.Leaky(beta=0.9), snntorch.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        membrane1, membrane2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        membranes = []
        for _ in range(STEPS):
            spikes, membrane1 = self.lif1(self.first(x), membrane1)
            _, membrane2 = self.lif2(self.second(self.dropout(spikes)), membrane2)
            membranes.append(membrane2)
        return torch.stack(membranes).mean(0)


class SnntorchLoop(Loop, ThirdPartyModule):
    """The loop in a module of `lightning.pytorch`."""


class SnntorchHidden(ThirdPartyModule):
    """snntorch's neurons that keep their membrane potentials and are reset at the start of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN),
            snntorch.Leaky(beta=0.9, init_hidden=True),
            self.dropout,
            nn.Linear(HIDDEN, CLASSES),
            snntorch.Leaky(beta=0.9, init_hidden=True, output=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        for index in (1, 4):
            self.net[index].reset_mem()
        return torch.stack([self.net(x)[1] for _ in range(STEPS)]).mean(0)


class SpikingJellySingle(ThirdPartyModule):
    """SpikingJelly step by step, reset at the start of a batch."""

    mode = "s"

    def __init__(self) -> None:
        super().__init__()
        pytest.importorskip("spikingjelly")
        from spikingjelly.activation_based import functional, layer, neuron

        self.reset = functional.reset_net
        self.net = nn.Sequential(
            layer.Linear(FEATURES, HIDDEN),
            neuron.LIFNode(),
            self.dropout,
            layer.Linear(HIDDEN, CLASSES),
        )
        functional.set_step_mode(self.net, self.mode)

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self.net)
        return torch.stack([self.net(2 * x) for _ in range(STEPS)]).mean(0)


class SpikingJellyMulti(SpikingJellySingle):
    """SpikingJelly with all time steps in one call."""

    mode = "m"

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self.net)
        return self.net(2 * x.expand(STEPS, -1, -1)).mean(0)


MODULES: tuple[Callable[[], ThirdPartyModule], ...] = (
    Ours,
    SnntorchLoop,
    SnntorchHidden,
    SpikingJellySingle,
    SpikingJellyMulti,
)
