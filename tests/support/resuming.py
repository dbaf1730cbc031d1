"""A run, the same run resumed from its checkpoints, and a data set that draws from every global generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_snn import LIF, SpikingModule
from lightning_snn.callbacks import ExactResume
from lightning_snn.data import FrameDataModule
from lightning_snn.methods import SpikingBayes
from tests.support.training import time_first, trainer

STEPS, FEATURES, CLASSES, SAMPLES, BATCH = 8, 2, 2, 22, 6  # 4 batches per epoch, the last one smaller

# of 12 in three epochs: the first step of an epoch, one in the middle, the last one, and the first of all
STEPS_OF_AN_EPOCH = (5, 6, 8, 1)
FIXED = TensorDataset(
    torch.linspace(0, 2, SAMPLES)[:, None, None].expand(-1, STEPS, FEATURES), torch.arange(SAMPLES) % CLASSES
)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Samples `(x [T, F], y)` with noise of torch, NumPy and Python; those of one class are larger."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        label = index % CLASSES
        noise = torch.rand(STEPS, FEATURES) * (0.5 + np.random.rand()) * (0.5 + random.random())
        return torch.full((STEPS, FEATURES), 0.5 + label) + 0.3 * noise, torch.tensor(label)


def augmented(**options: Any) -> DataLoader[Any]:
    """Return a plain shuffled loader of augmented samples, in batches `(x [T, B, F], y [B])`."""
    return DataLoader(Augmented(), **{"batch_size": BATCH, "shuffle": True, "collate_fn": time_first, **options})


def validation(**options: Any) -> DataLoader[Any]:
    """Return a loader whose samples draw random numbers, too."""
    return augmented(**{"shuffle": False, **options})


class Fixed(FrameDataModule):
    """A data module of samples that draw no random numbers, in worker processes that persist."""

    num_classes = CLASSES

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        return FIXED, FIXED, FIXED


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 6), LIF(0.8), nn.Dropout(0.2), nn.Linear(6, CLASSES))


def noisy(**options: Any) -> SpikingModule:
    """Build a module whose training and predictions draw random numbers."""
    options = {"learning_rate": 0.05, **options}
    return SpikingModule(network(), SpikingBayes(samples=2, train_size=SAMPLES), num_classes=CLASSES, **options)


class Copies(pl.Callback):
    """Saves a checkpoint after each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / f"epoch {trainer.current_epoch}.ckpt")


def seed(number: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def outcome(made: pl.Trainer) -> list[Tensor]:
    """Return the parameters, the state of the optimizer, the learning rate, and a draw of each generator."""
    found = [value.clone() for value in made.lightning_module.state_dict().values() if isinstance(value, Tensor)]
    optimizer = made.optimizers[0]
    for state in optimizer.state.values():
        found += [value.clone() for value in state.values() if isinstance(value, Tensor)]
    found.append(torch.tensor([group["lr"] for group in optimizer.param_groups]))
    return [*found, torch.rand(1), torch.tensor([np.random.rand(), random.random()])]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Return whether all tensors are equal, bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Run:
    """A run and its repetitions from its checkpoints.

    Args:
        folder: an empty folder for checkpoints.
        module: builds the module.
        data: builds the arguments of `Trainer.fit` after the module.
        callbacks: builds callbacks; `ExactResume` by default.
        **options: of the Trainer.
    """

    def __init__(
        self,
        folder: Path,
        module: Callable[[], pl.LightningModule],
        data: Callable[[], Sequence[Any]] = lambda: (augmented(), validation()),
        callbacks: Callable[[], Sequence[pl.Callback]] = lambda: (ExactResume(),),
        **options: Any,
    ) -> None:
        self.folder, self.module, self.data, self.callbacks = folder, module, data, callbacks
        self.options = {"max_epochs": 3, **options}

    def whole(self, *more: pl.Callback) -> list[Tensor]:
        """Run without a stop; write a checkpoint at the end of every step, and those of further callbacks."""
        every = ModelCheckpoint(self.folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        return self._fit(0, None, [*self.callbacks(), *more, every])

    def resumed(self, checkpoint: int | Path, *more: pl.Callback) -> list[Tensor]:
        """Resume from the checkpoint of a step, or from a file, with other seeds."""
        path = self.folder / f"step={checkpoint}.ckpt" if isinstance(checkpoint, int) else checkpoint
        return self._fit(1, path, [*self.callbacks(), *more])

    def _fit(self, number: int, checkpoint: Path | None, callbacks: Sequence[pl.Callback]) -> list[Tensor]:
        seed(0)
        module = self.module()
        seed(number)
        checkpoints = any(isinstance(each, Checkpoint) for each in callbacks)
        made = trainer(*callbacks, enable_checkpointing=checkpoints, **self.options)
        made.fit(module, *self.data(), ckpt_path=checkpoint, weights_only=True)
        return outcome(made)
