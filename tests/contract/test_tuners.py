"""The searches of Lightning's tuner leave no trace but what they found."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from tests.contract.by_hand import SAMPLES, ByHand, batches, build, differing, loader, parts, running, state
from tests.contract.table import RUNS

TABLE = RUNS


class Sized(pl.LightningDataModule):
    """Batches of a size that can be changed."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(batches_of(self.batch_size))

    val_dataloader = train_dataloader


def single() -> DataLoader[Any]:
    """Return a loader of one sample per batch, so that an epoch has as many steps as the search for a rate."""
    return loader(batches_of(1))


def batches_of(size: int) -> list[list[int]]:
    full, rest = divmod(SAMPLES, size)
    return parts([size] * full + [rest] * (rest > 0))


def test_the_batch_size_finder_leaves_nothing_but_the_size(row, tmp_path):
    """Two trials from 4 find 8, and the fit after them has the weights by hand of batches of 8."""
    module, data = build(row), Sized(2)
    finder = BatchSizeFinder(steps_per_trial=1, init_val=4, max_trials=2)
    fitting = running(finder, max_epochs=2, default_root_dir=tmp_path, enable_checkpointing=True)
    fitting.fit(module, data)
    assert data.batch_size == finder.optimal_batch_size == 8
    assert fitting.global_step == 6
    assert differing(state(module), ByHand(build(row)).train(batches(batches_of(8)), epochs=2).state) == []


@pytest.mark.slow
def test_the_learning_rate_finder_leaves_nothing_but_the_rate(row, tmp_path):
    """The fit after the search has the weights by hand of the rate with the steepest descent of the losses seen."""
    module = build(row)
    search = {"min_lr": 1e-3, "max_lr": 0.5, "num_training_steps": 20, "early_stop_threshold": None}
    finder = LearningRateFinder(**search)
    fitting = running(finder, max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=True)
    fitting.fit(module, single())
    results = finder.optimal_lr.results
    rates, losses = (torch.tensor(results[name][10:-1]) for name in ("lr", "loss"))
    rate = float(rates[torch.gradient(losses, spacing=[rates])[0].argmin()])
    assert len(losses) == 9
    assert len(set(losses.tolist())) > 1
    assert fitting.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)
    assert fitting.global_step == SAMPLES
    found = finder.optimal_lr.suggestion()
    hand = ByHand(build(row), rate=lambda epoch, step: found / hand.rates[0])
    assert differing(state(module), hand.train(batches(batches_of(1))).state) == []


def test_a_rate_found_before_the_fit_is_that_of_the_fit(row, tmp_path):
    """`Tuner.lr_find` sets the rate of the next fit, or is refused by a method that has an optimizer of its own."""
    module = build(row)
    fitting, refusal = running(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=True), None
    options = {"min_lr": 1e-3, "max_lr": 0.5, "num_training": 20, "early_stop_threshold": None}
    try:
        found = Tuner(fitting).lr_find(module, single(), **options)
    except (ValueError, MisconfigurationException) as error:
        refusal = str(error)
    if refusal is not None:
        assert type(module.method).__name__ in refusal
        return
    rate = found.suggestion()
    assert module.learning_rate == rate
    fitting.fit(module, single())
    assert fitting.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)
