"""Faults in the data are refused by name before a weight changes, or are visible in the loss."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_snn import SpikingModule
from tests.contract.by_hand import (
    Batch,
    ByHand,
    X,
    Y,
    batches,
    build,
    differing,
    loader,
    logged,
    running,
    scores,
    state,
)
from tests.contract.table import RUNS

TABLE = RUNS


def given(*several: Batch) -> DataLoader:
    return DataLoader(list(several), batch_size=None)


def corrupted(value: float) -> Tensor:
    x = X.clone()
    x[2, 3, 0] = value
    return x


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=["nan", "inf", "minus_inf"])
def test_weights_are_finite_or_the_loss_of_the_epoch_is_not(row, value):
    """With NaN or an infinity in the first batch, `EarlyStopping` ends the epoch, or all weights stay finite."""
    module = build(row)
    stopping = EarlyStopping("train/loss", patience=9, check_on_train_epoch_end=True)
    fitting = running(stopping, max_epochs=3)
    fitting.fit(module, loader(x=corrupted(value)))
    finite = all(each.isfinite().all() for each in state(module).values())
    assert finite or fitting.current_epoch == 1
    assert finite or not fitting.callback_metrics["train/loss"].isfinite()


def test_detecting_anomalies_finds_a_nan(row):
    """`detect_anomaly=True` ends training at the first NaN in a gradient with an error."""
    module = build(row)
    with pytest.raises(RuntimeError, match="nan"):
        running(detect_anomaly=True).fit(module, loader(x=corrupted(float("nan"))))


def assert_refused(module: SpikingModule, bad: Batch, pattern: str) -> None:
    """Training, validation and prediction refuse a batch, and a refused fit has left the weights as they were."""
    before = state(module)
    with pytest.raises(ValueError, match=pattern):
        running().fit(module, given(bad, *batches()))
    with pytest.raises(ValueError, match=pattern):
        running().validate(module, given(bad), verbose=False)
    assert differing(state(module), before) == []


@pytest.mark.parametrize("label", [2, -1])
def test_labels_out_of_range_are_refused_before_a_step(row, label):
    """A label outside of the classes raises an error that names the range, in training and validation."""
    y = Y.clone()
    y[5] = label
    assert_refused(build(row), (X, y), "to hold classes from 0 to 1, for num_classes=2, but got classes from")


def test_a_sequence_without_time_steps_is_refused(row):
    """T = 0 raises an error that asks for one time step."""
    assert_refused(build(row), (X[:0], Y), "with T of at least 1")


def test_a_batch_without_samples_is_refused(row):
    """B = 0 raises an error that names the batch, instead of a loss of NaN and its gradients."""
    assert_refused(build(row), (X[:, :0], Y[:0]), "batch|sample")


def test_a_class_without_samples_trains_and_scores_as_by_hand(row):
    """Where one of two classes has no sample, weights and logged scores are those by hand, and finite."""
    module, y = build(row), torch.zeros_like(Y)
    fitting = running(max_epochs=2)
    fitting.fit(module, loader(y=y), loader(y=y))
    hand = ByHand(build(row)).train(batches(y=y), epochs=2)
    assert differing(state(module), hand.state) == []
    assert all(value.isfinite().all() for value in state(module).values())
    assert logged(fitting.callback_metrics, "val") == pytest.approx(scores(hand.module, batches(y=y)), rel=1e-5)


def test_a_nan_in_validation_is_refused_and_leaves_the_weights(row):
    """A prediction of NaN ends validation with an error of the metric, and the weights are those of training alone."""
    module = build(row)
    with pytest.raises(ValueError, match="`probabilities` to hold values within .*, but got values from nan to nan"):
        running(max_epochs=1).fit(module, loader(), loader(x=corrupted(float("nan"))))
    assert differing(state(module), ByHand(build(row)).train(batches()).state) == []
