"""A run that is resumed after any step is the uninterrupted run, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import lightning_snn.callbacks
from lightning_snn import SpikingModule
from lightning_snn.data.resumable import ResumableLoader, trained_batches
from tests.contract.by_hand import SIZE, SeedBatches, X, Y, batches, build, differing, state
from tests.contract.table import RUNS, MethodRow
from tests.support.training import time_first, trainer

TABLE = RUNS
EPOCHS, STEPS = 2, 6


class Resumable(pl.LightningDataModule):
    """The batches of `by_hand.batches` from a loader whose position is part of checkpoints."""

    def train_dataloader(self) -> DataLoader[Any]:
        made = ResumableLoader(TensorDataset(X.transpose(0, 1), Y), SIZE, collate_fn=time_first)
        made.position = lambda: trained_batches(self.trainer)
        return made


class Shuffled(pl.LightningDataModule):
    """The same batches in a random order, from a plain loader."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(batches(), batch_size=None, shuffle=True)


Data = type[pl.LightningDataModule]


def run(
    row: MethodRow, data: Data, callbacks: list[pl.Callback], seed: int = 0, checkpoint: Path | None = None
) -> SpikingModule:
    schedule = {"scheduler": lambda optimizer: StepLR(optimizer, 2, 0.5), "interval": "step"}
    module = build(row, seed, lr_scheduler=schedule)
    torch.manual_seed(10 + seed)
    saves = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    fitting = trainer(*callbacks, max_epochs=EPOCHS, enable_checkpointing=saves)
    fitting.fit(module, data(), ckpt_path=checkpoint)
    assert fitting.global_step == STEPS
    return module


def assert_resumes_after_every_step(row: MethodRow, folder: Path, data: Data, callbacks: Any) -> None:
    """Resume from the checkpoint of each step in a new module, and compare the final weights."""
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False)
    whole = state(run(row, data, [*callbacks(), saving]))
    paths = {step: folder / f"step={step}.ckpt" for step in range(1, STEPS + 1)}
    assert sorted(folder.iterdir()) == sorted(paths.values())
    assert differing(torch.load(paths[STEPS - 1], weights_only=True)["state_dict"], whole)
    different = {
        step: names
        for step, path in paths.items()
        if (names := differing(state(run(row, data, callbacks(), seed=1, checkpoint=path)), whole))
    }
    assert different == {}


@pytest.mark.slow
def test_a_run_resumed_after_any_step_is_the_uninterrupted_run(row, tmp_path):
    """With noise that depends on the number of the batch, checkpoints of all 6 steps of two epochs lead to the end."""
    assert_resumes_after_every_step(row, tmp_path, Resumable, lambda: [SeedBatches()])


def test_exact_resume_restores_the_noise_after_any_step(row, tmp_path):
    """So they do with a shuffled plain loader and noise from torch's generator, which `ExactResume` restores."""
    kind = getattr(lightning_snn.callbacks, "ExactResume", None)
    assert kind is not None, "there is no callback that restores generators"
    assert_resumes_after_every_step(row, tmp_path, Shuffled, lambda: [kind()])
