"""Scores on test data while training goes on."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import SpikingModule
from lightning_snn.callbacks import PassScores
from lightning_snn.data import NoisyCurve
from lightning_snn.methods import Prediction, SurrogateGradient
from tests.support.training import one_step, trainer

ROW = {"epochs", "seconds", "accuracy", "bit_accuracy", "nll", "ece"}


class Blobs(pl.LightningDataModule):
    """Return data of two classes, with 12 training batches."""

    def __init__(self) -> None:
        super().__init__()
        y = torch.arange(160) % 2
        x = torch.randn(160, 3, generator=torch.Generator().manual_seed(0)) + 2 * y[:, None]
        self.x, self.y = x, y

    def _loader(self, part: slice) -> DataLoader:
        return DataLoader(TensorDataset(self.x[part], self.y[part]), 10, collate_fn=one_step)

    def train_dataloader(self) -> DataLoader:
        return self._loader(slice(120))

    def test_dataloader(self) -> DataLoader:
        return self._loader(slice(120, None))


class Sure(SurrogateGradient):
    """Returns the spike probability of each output too."""

    def predict(self, network: nn.Module, x: Tensor) -> Prediction:
        found = super().predict(network, x)
        found.spike_probabilities = torch.ones_like(found.mean)
        return found


def module(method: Any = None) -> SpikingModule:
    torch.manual_seed(0)
    return SpikingModule(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), method, num_classes=2, learning_rate=0.05)


def test_rows_come_at_equal_parts_of_a_pass_and_the_last_one_is_what_a_test_finds():
    scores, learner, data = PassScores(times=3), module(), Blobs()
    made = trainer(scores, max_epochs=2)
    made.fit(learner, data)
    assert [row["epochs"] for row in scores.rows] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    assert all(set(row) == ROW for row in scores.rows)
    seconds = [row["seconds"] for row in scores.rows]
    assert 0 < seconds[0] < seconds[-1]
    assert seconds == sorted(seconds)
    assert scores.rows[-1]["nll"] < scores.rows[0]["nll"]
    (found,) = made.test(learner, data, verbose=False)
    for name in ("accuracy", "nll", "ece"):
        assert scores.rows[-1][name] == pytest.approx(found[f"test/{name}"], abs=1e-5)
    assert math.isnan(scores.rows[-1]["bit_accuracy"])


def test_outputs_that_spike_by_themselves_are_scored():
    scores = PassScores()
    trainer(scores, max_epochs=1).fit(module(Sure()), Blobs())
    assert [row["bit_accuracy"] for row in scores.rows] == [0.5]


def test_training_goes_on_as_it_would_without_tests():
    weights = []
    for callbacks in ([PassScores(times=4)], []):
        learner = module()
        trainer(*callbacks, max_epochs=2).fit(learner, Blobs())
        weights.append(learner.network[0].weight.detach())
    assert torch.equal(*weights)


def test_seconds_are_those_of_steps_and_not_of_tests(monkeypatch):
    scores = PassScores()
    test = scores._test

    def slow(*arguments: Any, **options: Any) -> dict[str, float]:
        time.sleep(0.5)
        return test(*arguments, **options)

    monkeypatch.setattr(scores, "_test", slow)
    begun = time.perf_counter()
    trainer(scores, max_epochs=2).fit(module(), Blobs())
    assert scores.seconds < time.perf_counter() - begun - 1


def test_rows_outlive_an_interruption(tmp_path):
    scores, learner = PassScores(), module()
    made = trainer(scores, max_epochs=1)
    made.fit(learner, Blobs())
    made.save_checkpoint(tmp_path / "one.ckpt")
    resumed = PassScores()
    trainer(resumed, max_epochs=2).fit(module(), Blobs(), ckpt_path=tmp_path / "one.ckpt")
    assert [row["epochs"] for row in resumed.rows] == [1, 2]
    assert {**resumed.rows[0], "bit_accuracy": 0} == {**scores.rows[0], "bit_accuracy": 0}
    assert resumed.rows[1]["seconds"] > resumed.rows[0]["seconds"]


def test_bad_use_is_refused():
    with pytest.raises(ValueError, match="`times` to be an integer of at least 1, but got 0"):
        PassScores(times=0)


def test_without_test_data_the_fit_does_not_start(monkeypatch):
    steps: list[int] = []
    monkeypatch.setattr(SpikingModule, "training_step", lambda self, batch, batch_idx: steps.append(batch_idx))
    without = pl.LightningDataModule.from_datasets(TensorDataset(Blobs().x, Blobs().y))
    for data, got in ((Blobs().train_dataloader(), "no data module"), (without, "LightningDataModule")):
        with pytest.raises(ValueError, match=f"a data module .* for PassScores, but got {got} and SpikingModule"):
            trainer(PassScores(), max_epochs=1).fit(module(), data)
    assert not steps


def test_test_data_of_the_module_itself_are_scored_alike():
    class WithData(SpikingModule):
        def test_dataloader(self) -> DataLoader:
            return data.test_dataloader()

    data, rows = Blobs(), []
    for kind, given in ((WithData, data.train_dataloader()), (SpikingModule, data)):
        torch.manual_seed(0)
        learner = kind(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), num_classes=2)
        scores = PassScores()
        trainer(scores, max_epochs=1).fit(learner, given)
        rows.append([{**row, "seconds": 0, "bit_accuracy": 0} for row in scores.rows])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 1


def test_a_regression_has_no_such_scores():
    data = NoisyCurve(train_size=20, val_size=5, test_size=5)
    learner = SpikingModule(nn.Linear(100, 1), task="regression")
    with pytest.raises(ValueError, match="the targets for PassScores to be classes, integers"):
        trainer(PassScores(), max_epochs=1).fit(learner, data)


def test_each_of_several_loaders_has_its_scores():
    data = Blobs()
    halves = {"a": data._loader(slice(120, 140)), "b": data._loader(slice(140, None))}
    several, scores, learner = Blobs(), PassScores(), module()
    several.test_dataloader = lambda: halves
    trainer(scores, max_epochs=1).fit(learner, several)
    assert scores.rows[0].keys() == ROW | {f"{name}/1" for name in ROW - {"epochs", "seconds"}}
    for suffix, part in (("", slice(120, 140)), ("/1", slice(140, None))):
        probabilities = learner.method.predict(learner.network.eval(), data.x[part][None]).mean
        chosen = probabilities.detach().double()[torch.arange(20), data.y[part]]
        assert scores.rows[0][f"nll{suffix}"] == pytest.approx(-chosen.log().mean().item(), abs=1e-7)


def test_unsuitable_predictions_and_labels_are_refused_before_training(monkeypatch):
    monkeypatch.setattr(SpikingModule, "training_step", lambda *_: pytest.fail("the fit does not start"))
    data, message = Blobs(), "classes from 0 to 1, .*but got (values|classes) from -1 to 1. Leave"
    data.y[120] = -1
    with pytest.raises(ValueError, match=message):
        trainer(PassScores(), max_epochs=1).fit(module(), data)
    monkeypatch.setattr(SpikingModule, "predict_step", lambda self, batch, batch_idx: None)
    with pytest.raises(ValueError, match="class probabilities .* for PassScores, but got NoneType"):
        trainer(PassScores(), max_epochs=1).fit(module(), Blobs())
