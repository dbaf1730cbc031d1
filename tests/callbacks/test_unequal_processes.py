"""Reports of two processes with unequal shares, one of which may be empty: those of all samples, each counted once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_snn import LIF, SpikingModule, run
from lightning_snn.callbacks import (
    EnergyMonitor,
    FiringRateMonitor,
    MembraneTrace,
    PredictionWriter,
    Report,
    UncertaintyLogger,
)
from lightning_snn.data import FrameDataModule, FrameDataset
from tests.support import training
from tests.support.processes import on_two_processes

SAMPLES, STEPS, CLASSES = 23, 4, 3
X = (torch.rand(SAMPLES, STEPS, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
Y = torch.arange(SAMPLES) % CLASSES


class Share(IterableDataset):
    """Batches of 4 of some samples."""

    def __init__(self, samples: range) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(self.samples.start, self.samples.stop, 4):
            part = slice(start, min(start + 4, self.samples.stop))
            yield X[part].transpose(0, 1), Y[part]


class Plain(pl.LightningModule):
    """A module that logs nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), LIF(0.5, threshold=0.2), nn.Linear(16, CLASSES))

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return {"prediction": run(self.net, batch[0]).mean(0).softmax(-1), "target": batch[1]}


def spiking() -> SpikingModule:
    return SpikingModule(Plain().net, num_classes=CLASSES)


def callbacks(folder: Path) -> list[pl.Callback]:
    return [
        Report(folder / "report", activity_batches=100, anytime_batches=100),
        UncertaintyLogger(folder=folder),
        EnergyMonitor(batches=100, folder=folder),
        FiringRateMonitor(folder=folder),
        MembraneTrace(folder=folder),
    ]


def outcome(
    module: pl.LightningModule, folder: Path, loader: Any, **options: Any
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return what a test logs, and the results of the report."""
    made = callbacks(folder)
    fitter = training.trainer(*made, **options)
    with mock.patch("lightning_snn.figures.save"):
        fitter.test(module, loader, verbose=False)
    report: Any = made[0]
    names = ("per_class", "spikes_per_neuron_per_step_by_layer", "accuracy", "nll", "ece", "brier", "anytime")
    logged = {name: value.item() for name, value in fitter.callback_metrics.items()}
    return logged, {name: report.results[name] for name in names}


def _on_rank(rank: int, kind: Any, shares: tuple[range, range]) -> list[Any]:
    options = {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo"), "use_distributed_sampler": False}
    with mock.patch.dict(os.environ, {"LOCAL_RANK": str(rank)}):  # the processes are there already
        folder = Path(os.environ["SHARES_FOLDER"])
        return list(outcome(kind(), folder, DataLoader(Share(shares[rank]), None), **options))


@pytest.mark.parametrize("kind", [Plain, spiking])
@pytest.mark.parametrize(
    "shares",
    [(range(13), range(13, SAMPLES)), (range(1), range(1, SAMPLES)), (range(SAMPLES), range(0)), (range(0), range(23))],
    ids=["13 and 10", "1 and 22", "23 and 0", "0 and 23"],
)
def test_the_report_is_that_of_all_samples(
    tmp_path: Path, kind: Any, shares: tuple[range, range], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARES_FOLDER", str(tmp_path))
    (tmp_path / "group").mkdir()
    alone = outcome(kind(), tmp_path / "alone", DataLoader(Share(range(SAMPLES)), None))
    both = on_two_processes(partial(_on_rank, kind=kind, shares=shares), tmp_path / "group")
    for logged, results in both:
        compared = {name: value for name, value in logged.items() if not name.startswith("membrane/")}
        assert compared == pytest.approx({name: alone[0][name] for name in compared}, abs=1e-6)
        # of the first batch of each process
        assert logged.keys() == alone[0].keys()
        for name, value in alone[1].items():
            if name == "per_class":
                for row, expected in zip(results[name], value, strict=True):
                    assert row == pytest.approx(expected, abs=1e-6)
            elif name == "anytime":
                assert results[name].keys() == value.keys()
                assert results[name].get("samples") == value.get("samples")
                for row, expected in zip(results[name].get("steps", ()), value.get("steps", ()), strict=True):
                    assert row == pytest.approx(expected, abs=1e-6)
            else:
                assert results[name] == pytest.approx(value, abs=1e-6), name


class Events(FrameDataModule):
    """23 samples, of which two processes cannot have equally many."""

    num_classes, class_names, frame_shape, time_steps = CLASSES, ("a", "b", "c"), (6,), STEPS

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        part = FrameDataset(X.numpy().astype("uint8"), Y.numpy())
        return part, part, part


class Counting(SpikingModule):
    """Keeps the inputs that it evaluated."""

    def __init__(self) -> None:
        super().__init__(Plain().net, num_classes=CLASSES)
        self.seen: list[Tensor] = []

    def _keep(self, batch: Any) -> None:
        self.seen.append(batch[0].transpose(0, 1).flatten(1))

    def on_validation_batch_start(self, batch: Any, *_: Any) -> None:
        self._keep(batch)

    def on_test_batch_start(self, batch: Any, *_: Any) -> None:
        self._keep(batch)

    def on_predict_batch_start(self, batch: Any, *_: Any) -> None:
        self._keep(batch)


def _seen_by(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    folder = Path(os.environ["SHARES_FOLDER"])
    with mock.patch.dict(os.environ, {"LOCAL_RANK": str(rank)}), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for stage in ("validate", "test", "predict"):
            module = Counting()
            fitter = training.trainer(
                PredictionWriter(folder), devices=2, strategy=DDPStrategy(process_group_backend="gloo")
            )
            results = getattr(fitter, stage)(module, datamodule=Events(batch_size=5))
            found[stage] = torch.cat(module.seen)
            if stage != "predict":
                found[f"{stage} accuracy"] = next(
                    value for name, value in results[0].items() if name.endswith("accuracy")
                )
        found["warned"] = sum("count twice" in str(each.message) for each in caught)
        other = DataLoader(TensorDataset(X, Y), 5, collate_fn=training.time_first)
        fitter = training.trainer(devices=2, strategy=DDPStrategy(process_group_backend="gloo"))
        fitter.test(Counting(), other, verbose=False)
        fitter.test(Counting(), other, verbose=False)
        found["other"] = [str(each.message) for each in caught if "count twice" in str(each.message)]
    return found


def test_two_processes_evaluate_each_sample_of_a_data_module_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARES_FOLDER", str(tmp_path))
    (tmp_path / "group").mkdir()
    first, second = on_two_processes(_seen_by, tmp_path / "group")
    expected = sorted(map(tuple, X.flatten(1).tolist()))
    for stage in ("validate", "test", "predict"):
        assert (len(first[stage]), len(second[stage])) == (12, 11)
        assert sorted(map(tuple, torch.cat([first[stage], second[stage]]).tolist())) == expected
    alone = training.trainer().test(Counting(), datamodule=Events(batch_size=5), verbose=False)[0]["test/accuracy"]
    for found in (first, second):
        assert found["validate accuracy"] == found["test accuracy"] == pytest.approx(alone)
    assert (first["warned"], second["warned"]) == (0, 0)
    files = [torch.load(tmp_path / name, weights_only=True) for name in ("predictions.pt", "predictions_rank1.pt")]
    assert [len(each["mean"]) for each in files] == [12, 11]


def test_samples_that_lightning_repeats_for_other_loaders_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARES_FOLDER", str(tmp_path))
    (tmp_path / "group").mkdir()
    first, second = on_two_processes(_seen_by, tmp_path / "group")
    assert len(first["other"]) == 2, "once per run"
    assert all("1 of 23 samples count twice" in message for message in first["other"])
    assert not second["other"], "one process says so"
