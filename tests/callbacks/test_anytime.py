"""Anytime predictions of the report: those of prefixes, without a trace in the test that they belong to."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassCalibrationError

from lightning_snn import LIF, SpikingModule
from lightning_snn.callbacks import Report
from lightning_snn.callbacks.anytime import AnytimePredictions, AnytimeRecorder
from lightning_snn.methods import SpikingBayes
from tests.support.training import time_first, trainer

SAMPLES, STEPS, CLASSES = 20, 5, 3
X = (torch.rand(SAMPLES, STEPS, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
Y = torch.arange(SAMPLES) % CLASSES
SCORES = ("accuracy", "nll", "ece", "brier")


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Report, "_test_figures", lambda self, trainer: {})


def loader(x: Tensor = X, y: Tensor = Y) -> DataLoader:
    return DataLoader(TensorDataset(x, y), 8, collate_fn=time_first)


def module(method: Any = None, **options: Any) -> SpikingModule:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), LIF(0.5, threshold=0.2), nn.Linear(16, CLASSES))
    return SpikingModule(network, method, **({"num_classes": CLASSES} | options))


def report_of(folder: Path, tested: pl.LightningModule, data: Any = None, *others: pl.Callback, **options: Any) -> Any:
    report = Report(folder, **options)
    trainer(report, *others).test(tested, data or loader(), verbose=False)
    return report


def test_scores_after_each_step_are_those_of_predictions_of_prefixes(tmp_path: Path) -> None:
    tested = module()
    results = report_of(tmp_path, tested, anytime_batches=9).results
    steps = results["anytime"]["steps"]
    assert results["anytime"]["samples"] == SAMPLES
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5]
    for row in steps:
        p = tested.method.predict(tested.network, X[:, : row["step"]].transpose(0, 1)).mean.double()
        rows = list(zip(p.tolist(), Y.tolist(), strict=True))
        hits = [given.index(max(given)) == label for given, label in rows]
        assert row["accuracy"] == pytest.approx(sum(hits) / SAMPLES, abs=1e-12)
        assert row["nll"] == pytest.approx(-sum(math.log(given[label]) for given, label in rows) / SAMPLES, rel=1e-6)
        entropy = -sum(each * math.log(each) for given, _ in rows for each in given) / SAMPLES
        assert row["entropy"] == pytest.approx(entropy, rel=1e-6)
        error = MulticlassCalibrationError(CLASSES, n_bins=15, norm="l1")(p, Y)
        assert row["ece"] == pytest.approx(error.item(), rel=1e-4)
    for name in ("accuracy", "nll", "ece"):
        assert steps[-1][name] == pytest.approx(results[name], rel=1e-5)
    assert len({row["nll"] for row in steps}) == STEPS

    kept = json.loads((tmp_path / "metrics.json").read_text())["anytime"]
    assert kept == results["anytime"]
    with (tmp_path / "anytime.csv").open(newline="") as file:
        assert [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)] == kept["steps"]


def test_the_first_batches_of_the_first_loader_are_predicted(tmp_path: Path) -> None:
    class Several(SpikingModule):
        def predict_anytime(self, batch: Any) -> Any:
            seen.append(batch[0])
            return super().predict_anytime(batch)

    seen: list[Tensor] = []
    tested = Several(module().network, num_classes=CLASSES)
    report = report_of(tmp_path, tested, [loader(), loader(1 - X)], anytime_batches=2)
    assert report.results["anytime"]["samples"] == 16
    assert torch.equal(torch.cat(seen, 1), X[:16].transpose(0, 1))


def test_random_numbers_of_the_test_are_those_without_anytime_predictions(tmp_path: Path) -> None:
    def outcome(batches: int) -> tuple[list[float], Tensor]:
        tested = module(SpikingBayes(samples=3))
        torch.manual_seed(1)
        results = report_of(tmp_path / str(batches), tested, anytime_batches=batches).results
        return [results[name] for name in SCORES], torch.get_rng_state()

    (scores, state), (without, state_without) = outcome(9), outcome(0)
    assert scores == without
    assert torch.equal(state, state_without)
    drawn = json.loads((tmp_path / "9" / "metrics.json").read_text())
    assert drawn["anytime"]["steps"][-1]["nll"] != drawn["nll"]  # of other draws


def test_callbacks_after_the_report_observe_the_test_alone(tmp_path: Path) -> None:
    class Calls(pl.Callback):
        count = 0

        def on_test_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.handle = pl_module.network[1].register_forward_hook(self.add)

        def on_test_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.handle.remove()

        def add(self, *_: Any) -> None:
            self.count += 1

    calls = Calls()
    report = report_of(tmp_path, module(), None, calls)
    assert report.results["anytime"]["samples"] == SAMPLES
    assert calls.count == 3


def test_the_entropy_of_a_mixture_is_split(tmp_path: Path) -> None:
    predictions = report_of(tmp_path, module(SpikingBayes(samples=4))).anytime
    assert predictions.expected_entropy.shape == (STEPS, SAMPLES)
    total = torch.special.entr(predictions.probabilities).sum(-1)
    information = total - predictions.expected_entropy
    assert information.min() > -1e-6
    assert information.mean() > 1e-3
    assert report_of(tmp_path, module()).anytime.expected_entropy is None


class Failing(SpikingModule):
    def predict_anytime(self, batch: Any) -> Any:
        raise RuntimeError("a readout of five steps")


class Logits(SpikingModule):
    def predict_anytime(self, batch: Any) -> Any:
        return 3 * self(batch[0]) - 1


class Averaged(SpikingModule):
    def predict_anytime(self, batch: Any) -> Any:
        return self(batch[0]).mean(0).softmax(-1)


class Plain(pl.LightningModule):
    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return {"prediction": torch.full((len(batch[1]), CLASSES), 1 / CLASSES), "target": batch[1]}


def of(kind: type[SpikingModule]) -> Callable[[], SpikingModule]:
    return lambda: kind(module().network, num_classes=CLASSES)


@pytest.mark.parametrize(
    ("make", "data", "batches", "reason", "warns"),
    [
        (Plain, loader, 4, "Plain defines no `predict_anytime`", False),
        (lambda: module(task="regression", num_classes=None), lambda: loader(y=torch.rand(SAMPLES, CLASSES)), 4,
         "the data have no classes", False),
        (module, lambda: loader(X[:, :1]), 4, "the inputs have one time step", False),
        (module, loader, 0, "`anytime_batches` is 0", False),
        (of(Failing), loader, 4, "they failed: a readout of five steps", True),
        (of(Logits), loader, 4, "they failed: Expected `predict_anytime` of Logits to return class prob", True),
        (of(Averaged), loader, 4, r"they failed: Expected `predict_anytime` of Averaged to return class prob", True),
    ],
    ids=["none", "regression", "one step", "off", "failing", "logits", "no steps"],
)  # fmt: skip
def test_a_report_without_anytime_predictions_says_why(
    make: Any, data: Any, batches: int, reason: str, warns: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    report_of(tmp_path, make(), data(), anytime_batches=batches)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["anytime"].keys() == {"missing"}
    assert found["anytime"]["missing"].startswith(reason)
    assert "no anytime predictions" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "anytime.csv").exists()
    assert any(reason in str(warning.message) for warning in recwarn) == warns


def test_a_negative_number_of_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="argument `anytime_batches` to be an integer of at least 0, but got -1"):
        Report("folder", anytime_batches=-1)


def test_shorter_sequences_keep_their_last_prediction() -> None:
    class Given(pl.LightningModule):
        def predict_anytime(self, batch: Tensor) -> Tensor:
            return batch

    recorder = AnytimeRecorder(4)
    short, long = (torch.rand(steps, 2, CLASSES).softmax(-1) for steps in (2, 4))
    for batch in (short, long):
        recorder.add(batch, torch.tensor([0, 1]))
    found = recorder.predict(trainer(), Given())
    assert isinstance(found, AnytimePredictions)
    expected = torch.cat([torch.cat([short, short[-1:], short[-1:]]), long], 1)
    torch.testing.assert_close(found.probabilities, expected.double(), rtol=0, atol=0)
    assert found.targets.tolist() == [0, 1, 0, 1]


def test_the_examples_are_the_first_samples_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = torch.tensor([2, 2, 0, 2, 1, 0, 4, 3, 5])
    probabilities = torch.rand(3, 9, 6, generator=torch.Generator().manual_seed(0)).double().softmax(-1)
    drawn: list[Any] = []
    monkeypatch.setattr("lightning_snn.figures.anytime_scores", lambda scores: None)
    monkeypatch.setattr("lightning_snn.figures.anytime_samples", lambda *arguments: drawn.append(arguments))
    AnytimePredictions(probabilities, targets, probabilities[..., 0]).draw(list("abcdef"))
    chosen = [0, 2, 4, 6]
    ((given, classes, names, entropy),) = drawn
    assert classes == [2, 0, 1, 4]
    assert names == list("abcdef")
    assert torch.equal(given, probabilities[:, chosen].transpose(0, 1))
    assert torch.equal(entropy, probabilities[:, chosen, 0].T)
