"""When runs stop, what they keep, and averages of weights: compared with rules applied by hand."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging, timer
from torch import Tensor
from torch.optim.swa_utils import get_ema_avg_fn

from tests.contract.by_hand import (
    ByHand,
    Validations,
    assert_close,
    batches,
    build,
    differing,
    fit,
    predictions,
    scores,
    state,
)
from tests.contract.table import RUNS

TABLE = RUNS
EPOCHS = 4


def validated(hand: ByHand, epochs: int) -> list[float]:
    """Train by hand, and return the negative log-likelihood after each epoch."""
    return [scores(hand.train(batches()).module, batches())["nll"] for _ in range(epochs)]


def test_early_stopping_stops_after_the_epochs_of_its_rule(row):
    """Training stops as soon as the validation loss by hand was not below its minimum for `patience` epochs."""
    for mode, sign in (("min", 1), ("max", -1)):
        module = build(row)
        stopping = EarlyStopping("val/nll", patience=1, mode=mode)
        fitting = fit(module, stopping, max_epochs=EPOCHS)
        hand = ByHand(build(row))
        losses = [sign * loss for loss in validated(hand, EPOCHS)]
        stops = [epoch for epoch in range(1, EPOCHS) if losses[epoch] >= min(losses[:epoch])]
        expected = stops[0] + 1 if stops else EPOCHS
        assert fitting.current_epoch == expected
        assert differing(state(module), hand.after_steps[3 * expected - 1]) == []
        assert float(stopping.best_score) == pytest.approx(sign * min(losses[:expected]), rel=1e-5)


def test_the_best_checkpoints_are_those_with_the_lowest_loss(row, tmp_path):
    """`save_top_k=2` keeps the files of the two epochs whose validation loss by hand is lowest, with their weights."""
    keeping = ModelCheckpoint(str(tmp_path), "{epoch}", monitor="val/nll", save_top_k=2)
    fit(build(row), keeping, max_epochs=EPOCHS, enable_checkpointing=True)
    hand = ByHand(build(row))
    losses = validated(hand, EPOCHS)
    best = sorted(range(EPOCHS), key=losses.__getitem__)[:2]
    assert {path.name for path in tmp_path.iterdir()} == {f"epoch={epoch}.ckpt" for epoch in best}
    assert keeping.best_model_path.endswith(f"epoch={best[0]}.ckpt")
    for epoch in best:
        kept = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        assert differing(kept, hand.after_steps[3 * epoch + 2]) == []


class Clock(pl.Callback):
    """A clock that advances by some seconds with each training batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.seconds = 100.0, seconds
        monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: self.now))

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += self.seconds


def test_max_time_stops_at_the_batch_at_which_the_time_is_over(row, monkeypatch):
    """With a batch per second, `max_time` of 4 seconds takes 4 steps, whose weights are those by hand."""
    module = build(row)
    fitting = fit(module, Clock(monkeypatch, 1.0), max_epochs=-1, max_time={"seconds": 4})
    hand = ByHand(build(row)).train(batches(), epochs=2)
    assert fitting.global_step == 4
    assert differing(state(module), hand.after_steps[3]) == []


@pytest.mark.slow
def test_a_clock_that_stands_still_leaves_the_run_as_it_is(row, monkeypatch):
    """With a clock that stands still a run with `max_time` ends at `max_epochs`, with the weights by hand."""
    module = build(row)
    fitting = fit(module, Clock(monkeypatch, 0.0), max_epochs=2, max_time={"seconds": 1})
    assert fitting.global_step == 6
    assert differing(state(module), ByHand(build(row)).train(batches(), epochs=2).state) == []


class Snapshots(pl.Callback):
    """Weights at the start of each epoch and after each batch, and the rate of each batch."""

    def __init__(self) -> None:
        self.epochs: list[list[Tensor]] = []
        self.batches: list[list[Tensor]] = []
        self.rates: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.epochs.append([each.detach().clone() for each in module.parameters()])

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        values = itertools.chain(module.parameters(), module.buffers())
        self.batches.append([each.detach().clone() for each in values])


def test_stochastic_weight_averaging_gives_the_mean_of_the_snapshots(row):
    """Final weights are the mean of those at the starts of the averaged epochs, and predict as they do."""
    module, snapshots = build(row), Snapshots()
    rate = row.learning_rate / 4
    averaging = StochasticWeightAveraging(rate, swa_epoch_start=2, annealing_epochs=1, annealing_strategy="linear")
    fit(module, snapshots, averaging, max_epochs=EPOCHS)
    assert len(snapshots.epochs) == EPOCHS
    assert snapshots.rates[-1] == pytest.approx(rate)
    means = [torch.stack(values).double().mean(0) for values in zip(*snapshots.epochs[1:], strict=True)]
    for found, mean, last in zip(module.parameters(), means, snapshots.epochs[-1], strict=True):
        torch.testing.assert_close(found.detach().double(), mean, rtol=1e-5, atol=1e-6)
        assert not found.requires_grad or not torch.equal(found, last)
    fresh = build(row, seed=1)
    fresh.load_state_dict(module.state_dict())
    for parameter, mean in zip(fresh.parameters(), means, strict=True):
        parameter.data.copy_(mean)
    for one, other in zip(predictions(module, batches()), predictions(fresh, batches()), strict=True):
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-4, atol=1e-5)


def test_an_exponential_moving_average_follows_its_recurrence(row):
    """Final weights are e of `e <- d e + (1 - d) w` after each step, and so are those that are validated."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    module, snapshots, validations = build(row), Snapshots(), Validations()
    averaging = callbacks.WeightAveraging(avg_fn=get_ema_avg_fn(0.75))
    fit(module, snapshots, averaging, validations, max_epochs=2)
    first, *others = [[value.double() for value in values] for values in snapshots.batches]
    average = first
    for values in others:
        average = [0.75 * mean + 0.25 * value for mean, value in zip(average, values, strict=True)]
    found = list(itertools.chain(module.parameters(), module.buffers()))
    for value, mean, last in zip(found, average, others[-1], strict=True):
        torch.testing.assert_close(value.detach().double(), mean, rtol=1e-5, atol=1e-6)
        assert not value.requires_grad or not torch.equal(value.double(), last)
    # the network that ends the run is the one that the last validation saw
    assert validations.scores[-1] == pytest.approx(scores(module, batches()), rel=1e-4)
    trained = ByHand(build(row)).train(batches(), epochs=2).module
    unaveraged = list(itertools.chain(trained.parameters(), trained.buffers()))
    assert_close(dict(enumerate(snapshots.batches[-1])), dict(enumerate(unaveraged)), 1e-12)
