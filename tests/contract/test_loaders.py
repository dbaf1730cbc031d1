"""Which batches are trained and evaluated on: streams, limits, intervals, reloading and the modes of evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.contract.by_hand import (
    SAMPLES,
    Batch,
    ByHand,
    Validations,
    batches,
    build,
    differing,
    fit,
    loader,
    logged,
    parts,
    predictions,
    running,
    scores,
    state,
)
from tests.contract.table import RUNS

TABLE = RUNS


class Stream(IterableDataset):
    """Batches without a number of them."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def test_a_stream_without_a_length_trains_as_its_batches(row):
    """An IterableDataset gives the weights of a loop by hand over its batches; SpikingBayes is told their number."""
    module, other = build(row), build(row)
    for each in (module, other):
        if getattr(each.method, "train_size", 0) is None:
            each.method.train_size = SAMPLES
    fitting = running(max_epochs=2)
    fitting.fit(module, DataLoader(Stream(batches()), batch_size=None))
    hand = ByHand(other, has_length=False, train_size=None).train(batches(), epochs=2)
    assert differing(state(module), hand.state) == []
    assert fitting.global_step == 6


def test_overfit_batches_trains_on_the_first_batch_alone(row):
    """`overfit_batches=1` gives the weights of three steps by hand on the first batch, and validates on it."""
    module = build(row)
    fitting = fit(module, max_epochs=3, overfit_batches=1)
    first = batches()[:1]
    hand = ByHand(build(row), train_size=8).train(first, epochs=3)
    assert differing(state(module), hand.state) == []
    assert logged(fitting.callback_metrics, "val") == pytest.approx(scores(hand.module, first), rel=1e-5)


def test_limits_leave_the_first_batches(row):
    """`limit_*_batches` train, validate, test and predict on the first batches alone, with the values by hand."""
    module = build(row)
    limits = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 2, "limit_predict_batches": 2}
    fitting = fit(module, max_epochs=2, **limits)
    hand = ByHand(build(row), train_size=16).train(batches()[:2], epochs=2)
    assert differing(state(module), hand.state) == []
    assert logged(fitting.callback_metrics, "val") == pytest.approx(scores(hand.module, batches()[:1]), rel=1e-5)
    (tested,) = fitting.test(module, loader(), verbose=False)
    assert logged(tested, "test") == pytest.approx(scores(hand.module, batches()[:2]), rel=1e-5)
    found = fitting.predict(module, loader())
    expected = predictions(hand.module, batches()[:2])
    assert [torch.equal(one.mean, other.mean) for one, other in zip(found, expected, strict=True)] == [True, True]


def test_validation_within_an_epoch_sees_the_weights_of_that_step(row):
    """`val_check_interval=2` validates after steps 2 and 5 of two epochs of 3, and training does not notice."""
    module, validations = build(row), Validations()
    fit(module, validations, max_epochs=2, val_check_interval=2)
    hand = ByHand(build(row)).train(batches(), epochs=2)
    assert differing(state(module), hand.state) == []
    assert validations.steps == [2, 5]
    for step, found in zip(validations.steps, validations.scores, strict=True):
        other = build(row)
        other.load_state_dict(hand.after_steps[step - 1])
        assert found == pytest.approx(scores(other, batches()), rel=1e-5)


@pytest.mark.slow
def test_validation_every_second_epoch_sees_the_weights_of_that_epoch(row):
    """`check_val_every_n_epoch=2` validates after 6 and 12 steps of four epochs of 3, with the scores by hand."""
    module, validations = build(row), Validations()
    fit(module, validations, max_epochs=4, check_val_every_n_epoch=2)
    hand = ByHand(build(row))
    expected = [scores(hand.train(batches(), epochs=2).module, batches()) for _ in range(2)]
    assert differing(state(module), hand.state) == []
    assert validations.steps == [6, 12]
    assert validations.scores == [pytest.approx(each, rel=1e-5) for each in expected]


class Reloading(pl.LightningDataModule):
    """A loader per epoch, each with the batches in another order."""

    orders = ((0, 1, 2), (1, 0, 2), (1, 2, 0))

    def __init__(self) -> None:
        super().__init__()
        self.loaded = 0

    def train_dataloader(self) -> DataLoader[Any]:
        order = self.orders[self.loaded]
        self.loaded += 1
        return loader([parts()[index] for index in order])


def test_reloading_every_epoch_trains_on_the_batches_of_each_loader(row):
    """`reload_dataloaders_every_n_epochs=1` gives the weights by hand on the batches of each epoch's loader."""
    module, data = build(row), Reloading()
    running(max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(module, data)
    hand = ByHand(build(row))
    for order in Reloading.orders:
        hand.train([batches()[index] for index in order])
    assert data.loaded == 3
    assert differing(state(module), hand.state) == []


@pytest.mark.parametrize("inference_mode", [True, False])
def test_evaluation_with_and_without_inference_mode_is_that_by_hand(row, inference_mode):
    """Validation, test and prediction give the values by hand in either mode, and training goes on after them."""
    module = build(row)
    fitting = fit(module, max_epochs=1, inference_mode=inference_mode)
    hand = ByHand(build(row)).train(batches())
    (validated,) = fitting.validate(module, loader(), verbose=False)
    (tested,) = fitting.test(module, loader(), verbose=False)
    found = fitting.predict(module, loader())
    expected = scores(hand.module, batches())
    assert logged(validated, "val") == logged(tested, "test") == pytest.approx(expected, rel=1e-5)
    for one, other in zip(found, predictions(hand.module, batches()), strict=True):
        assert torch.equal(one.mean, other.mean)
    again = ByHand(module)
    fit(module, max_epochs=1)
    assert differing(state(module), again.before)


def test_detecting_anomalies_changes_nothing(row):
    """`detect_anomaly=True` gives the weights of a loop by hand, bit for bit."""
    module = build(row)
    fit(module, detect_anomaly=True)
    assert differing(state(module), ByHand(build(row)).train(batches()).state) == []


def test_deterministic_algorithms_change_nothing(row):
    """`deterministic=True` gives the weights and predictions by hand, bit for bit."""
    module = build(row)
    try:
        fitting = fit(module, deterministic=True)
        found = fitting.predict(module, loader())
    finally:
        torch.use_deterministic_algorithms(False)
    hand = ByHand(build(row)).train(batches())
    assert differing(state(module), hand.state) == []
    for one, other in zip(found, predictions(hand.module, batches()), strict=True):
        assert torch.equal(one.mean, other.mean)
