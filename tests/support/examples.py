"""Names that the examples of docstrings may use without defining them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_snn
from tests.support.training import time_first, trainer

STEPS, SAMPLES, FEATURES, HIDDEN, CLASSES = 10, 2, 4, 8, 3


class SmallData(pl.LightningDataModule):
    """Six samples of noise in batches of two, in every stage."""

    def train_dataloader(self) -> DataLoader:
        samples = TensorDataset(torch.rand(6, STEPS, FEATURES), torch.arange(6) % CLASSES)
        return DataLoader(samples, SAMPLES, collate_fn=time_first)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def quiet_trainer(callbacks: Any = (), **options: Any) -> pl.Trainer:
    """Return a Trainer that writes nothing and trains two epochs unless the example says otherwise."""
    return trainer(*([callbacks] if isinstance(callbacks, pl.Callback) else callbacks), **({"max_epochs": 2} | options))


def names_of_examples() -> dict[str, Any]:
    """Return the names in addition to those of an example's own module.

    `torch`, `nn`, `Trainer`, `lightning_snn` and its public names, and what most examples are about: `network` and its
    inputs `x [T, B, 4]` and targets `y [B]`, `module`, a SpikingModule of the network, and `data` to train it on.
    """
    network = nn.Sequential(nn.Linear(FEATURES, HIDDEN), lightning_snn.LIF(), nn.Linear(HIDDEN, CLASSES))
    return {
        **{name: getattr(lightning_snn, name) for name in lightning_snn.__all__},
        "lightning_snn": lightning_snn,
        "torch": torch,
        "nn": nn,
        "Trainer": quiet_trainer,
        "network": network,
        "module": lightning_snn.SpikingModule(network, num_classes=CLASSES),
        "x": torch.rand(STEPS, SAMPLES, FEATURES),
        "y": torch.arange(SAMPLES) % CLASSES,
        "data": SmallData(),
    }
