from __future__ import annotations

import ast
import csv
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassCalibrationError

import lightning_snn.callbacks.report as report_module
from lightning_snn import LIF, SpikingModule, figures, run
from lightning_snn.callbacks import Report
from lightning_snn.callbacks.tracking import log_figure
from lightning_snn.methods import Prediction
from lightning_snn.metrics.activity import record_activity
from tests.support import training
from tests.support.pages import Page
from tests.support.training import time_first

STEPS, CLASSES = 4, 3
FIGURES = {"training_curves.png", "confusion_matrix.png", "reliability.png", "raster.png", "events.png"}
X = (torch.rand(24, STEPS, 2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()
Y = torch.arange(24) % CLASSES


def loader(batch_size: int = 8) -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size, collate_fn=time_first)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 16), LIF(0.5, threshold=0.2), nn.Linear(16, CLASSES))


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("lightning_snn.figures.training_curves", lambda history: None)
        monkeypatch.setattr(Report, "_test_figures", lambda self, trainer: {})
        monkeypatch.setattr(report_module, "log_figure", lambda *arguments: None)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def drawn() -> None:
    """Enable figures, which take most of the time."""


class Plain(pl.LightningModule):
    """Module that uses only layers of the library."""

    def __init__(self, returns: str = "probabilities") -> None:
        super().__init__()
        self.net, self.returns = network(), returns

    def outputs(self, x: Tensor) -> Tensor:
        return run(self.net, x).mean(0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.outputs(batch[0]), batch[1])
        self.log("fit_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.outputs(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        probabilities = self.outputs(batch[0]).softmax(-1)
        return {
            "probabilities": {"prediction": probabilities, "target": batch[1]},
            "object": {"prediction": Prediction(probabilities), "target": batch[1]},
            "loss": probabilities.sum(),
            "other keys": {"output": probabilities, "label": batch[1]},
            "nothing": None,
        }[self.returns]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


trainer = partial(training.trainer, max_epochs=2, num_sanity_val_steps=1)


def report_of(tmp_path: Path, module: pl.LightningModule | None = None, **options: Any) -> Report:
    report = Report(tmp_path / "report", **options)
    trainer(report).test(module or Plain(), loader(), verbose=False)
    return report


@pytest.mark.parametrize("returns", ["probabilities", "object"])
def test_a_plain_module_gets_all_figures_and_numbers(tmp_path: Path, returns: str, drawn: None) -> None:
    module, report = Plain(returns), Report(tmp_path / "new" / "folder", {"recipe": "mine"})
    fitter = trainer(report)
    fitter.fit(module, loader(), loader())
    fitter.test(module, loader(), verbose=False)
    assert {path.name for path in report.folder.iterdir()} == {
        *FIGURES,
        "metrics.json",
        "report.html",
        "model_summary.txt",
        "per_class.csv",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.folder.glob("*.png"))

    found = json.loads((report.folder / "metrics.json").read_text())
    assert found["recipe"] == "mine"
    assert 0 < found["seconds"]["training"] < found["seconds"]["total"]
    with torch.no_grad():
        probabilities = module.outputs(X.transpose(0, 1)).softmax(-1)
    chosen = probabilities.gather(1, Y[:, None]).squeeze(1)
    assert found["accuracy"] == pytest.approx((probabilities.argmax(1) == Y).float().mean().item())
    assert found["nll"] == pytest.approx(-chosen.log().mean().item(), rel=1e-5)
    error = MulticlassCalibrationError(CLASSES, n_bins=15, norm="l1")(probabilities, Y)
    assert found["ece"] == pytest.approx(error.item(), rel=1e-4)


def test_numbers_that_the_module_logs_come_first(tmp_path: Path) -> None:
    class Logging(Plain):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("test/accuracy", 0.125, batch_size=8)
            self.log("test/own", 7.0, batch_size=8)
            return super().test_step(batch, batch_idx)

    results = report_of(tmp_path, Logging()).results
    assert (results["accuracy"], results["own"]) == (0.125, 7.0)
    assert results["nll"] != 0.125


def test_the_library_s_module_and_the_report_agree(tmp_path: Path) -> None:
    module = SpikingModule(network(), num_classes=CLASSES, pairs=[(0, 1)])
    results = report_of(tmp_path, module).results
    plain = report_of(tmp_path, Plain()).results
    assert {"accuracy", "nll", "brier", "ece", "pair_accuracy"} <= set(results)
    for name in ("accuracy", "nll", "brier", "ece", "spikes_per_neuron_per_step", "synaptic_operations_per_sample"):
        assert results[name] == pytest.approx(plain[name], rel=1e-5)


def rows_by_hand(probabilities: Tensor, targets: Tensor, classes: int) -> list[dict[str, float | None]]:
    """Return the rows, computed sample by sample."""
    pairs = list(zip(probabilities.tolist(), targets.tolist(), strict=True))
    rows = []
    for label in range(classes):
        own = [given for given, target in pairs if target == label]
        taken = [target for given, target in pairs if given.index(max(given)) == label]
        found = taken.count(label)
        rows.append(
            {
                "samples": len(own),
                "accuracy": found / len(own) if own else None,
                "precision": found / len(taken) if taken else None,
                "f1": 2 * found / (len(own) + len(taken)) if own or taken else None,
                "confidence": sum(map(max, own)) / len(own) if own else None,
                "nll": sum(-math.log(given[label]) for given in own) / len(own) if own else None,
            }
        )
    return rows


def test_each_class_has_its_own_numbers(tmp_path: Path) -> None:
    class Given(Plain):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            part = slice(8 * batch_idx, 8 * batch_idx + 8)
            return {"prediction": probabilities[part], "target": targets[part]}

    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(24, 6, generator=generator).double().pow(3) + 0.01
    probabilities[:, 4:] /= 1e6  # never predicted
    probabilities /= probabilities.sum(1, keepdim=True)
    targets = torch.randint(0, 5, (24,), generator=generator)
    targets[targets == 3] = 4
    report = report_of(tmp_path, Given())
    expected = rows_by_hand(probabilities, targets, 6)
    # a class that is predicted and never true, one the other way round, one that is neither
    assert [expected[3]["accuracy"], expected[4]["precision"], expected[5]["f1"]] == [None] * 3
    assert expected[4]["accuracy"] == expected[3]["precision"] == expected[3]["f1"] == 0
    found = json.loads((report.folder / "metrics.json").read_text())["per_class"]
    for label, (row, wanted) in enumerate(zip(found, expected, strict=True)):
        assert list(row) == ["class", *wanted]
        assert row["class"] == str(label)
        for name, value in wanted.items():
            assert row[name] == (None if value is None else pytest.approx(value, rel=1e-9)), (label, name)
    with (report.folder / "per_class.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table == [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in found]
    assert report.results["accuracy"] == pytest.approx(sum(row["accuracy"] * row["samples"] for row in found[:3]) / 24)


def test_probabilities_of_half_precision_are_reported_by_class_too(tmp_path: Path) -> None:
    class Half(Plain):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            probabilities = self.outputs(batch[0]).softmax(-1)
            return {"prediction": probabilities.bfloat16(), "target": batch[1]}

    exact, half = (report_of(tmp_path, module).results["per_class"] for module in (Plain(), Half()))
    for wanted, found in zip(exact, half, strict=True):
        assert found["nll"] == pytest.approx(wanted["nll"], rel=0.01)
        assert found["nll"] != wanted["nll"]


def test_the_summary_names_every_module_but_metrics(tmp_path: Path) -> None:
    module, report = SpikingModule(network(), num_classes=CLASSES), Report(tmp_path)
    module.network[1].bias.requires_grad_(False)
    trainer(report).fit(module, loader())
    lines = (tmp_path / "model_summary.txt").read_text().splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["module", "type", "parameters"],
        ["method", "SurrogateGradient", "0"],
        ["method.task", "Classification", "0"],
        ["network", "Sequential", "579"],
    ]
    assert ["network.1", "Linear", "528"] in [line.split() for line in lines]
    assert lines[-1] == "579 parameters, of which 563 are trained by gradients"
    assert "metrics" not in "".join(lines)


def test_the_summary_does_not_run_the_network(tmp_path: Path) -> None:
    class WithExample(Plain):
        example_input_array = torch.zeros(1)

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("it ran")

    trainer(Report(tmp_path)).fit(WithExample(), loader())
    assert "net.1" in (tmp_path / "model_summary.txt").read_text()


def test_lazy_parameters_are_counted_once_they_have_shapes(tmp_path: Path) -> None:
    module = Plain()
    module.net[1] = nn.LazyLinear(16)
    trainer(Report(tmp_path)).fit(module, loader(), loader())
    assert "LazyLinear" not in (tmp_path / "model_summary.txt").read_text()
    assert (tmp_path / "model_summary.txt").read_text().splitlines()[-1].startswith("579 parameters")


def test_activity_is_that_of_the_first_batches(tmp_path: Path) -> None:
    net = network()
    for batches in (1, 2, 9):
        with record_activity(net) as activity, torch.no_grad():
            run(net, X[: 8 * batches].transpose(0, 1))
        results = report_of(tmp_path, activity_batches=batches).results
        assert results["spikes_per_neuron_per_step"] == pytest.approx(activity.spikes_per_neuron_per_step())
        assert results["synaptic_operations_per_sample"] == pytest.approx(activity.synaptic_operations_per_sample())
        assert results["spikes_per_neuron_per_step_by_layer"].keys() == {"net.2"}
    assert "spikes_per_neuron_per_step" not in report_of(tmp_path, activity_batches=0).results


def test_a_prediction_costs_every_run_that_it_takes(tmp_path: Path) -> None:
    class Twice(Plain):
        def outputs(self, x: Tensor) -> Tensor:
            return (super().outputs(x) + super().outputs(x)) / 2

    once, twice = report_of(tmp_path, Plain()), report_of(tmp_path, Twice())
    cost = "synaptic_operations_per_sample"
    assert twice.results[cost] == 2 * once.results[cost]
    assert twice.results["spikes_per_neuron_per_step"] == once.results["spikes_per_neuron_per_step"]
    assert twice.activity.first_sample()["net.2"].shape == (STEPS, 16)


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_hooks_are_there_during_a_recorded_batch_only(tmp_path: Path) -> None:
    class Watching(Plain):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(hooks(self))
            if batch_idx == 2 and self.returns == "object":
                raise RuntimeError("broken")
            return super().test_step(batch, batch_idx)

    seen: list[int] = []
    module = Watching()
    report_of(tmp_path, module, activity_batches=2)
    assert seen[0] == seen[1] > 0
    assert seen[2] == 0
    module = Watching("object")
    with pytest.raises(RuntimeError, match="broken"):
        report_of(tmp_path, module, activity_batches=9)
    assert seen[-1] > 0
    assert hooks(module) == 0


@pytest.mark.parametrize(
    ("returns", "got"),
    [("loss", "Tensor"), ("other keys", r"a dict with the keys \['output', 'label'\]"), ("nothing", "NoneType")],
)
def test_missing_outputs_of_a_test_step_raise_an_error(tmp_path: Path, returns: str, got: str) -> None:
    class Counting(Plain):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            batches.append(batch_idx)
            return super().test_step(batch, batch_idx)

    batches: list[int] = []
    with pytest.raises(ValueError, match=f'`test_step` of Counting to return .*"prediction".*"target".* but got {got}'):
        report_of(tmp_path, Counting(returns))
    assert batches == [0]


def test_classes_in_small_integers_do_not_overflow(
    tmp_path: Path, drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Many(Plain):
        kind = torch.int64

        def test_step(self, batch: Any, batch_idx: int) -> Any:
            y = 13 * batch[1].to(self.kind)
            return {"prediction": nn.functional.one_hot(y.long(), 40).float(), "target": y}

    matrices: list[Tensor] = []
    monkeypatch.setattr("lightning_snn.figures.confusion_matrix", lambda matrix, names: matrices.append(matrix))
    for name in ("reliability_diagram", "spike_raster", "event_strip"):
        monkeypatch.setattr(f"lightning_snn.figures.{name}", lambda *arguments: None)
    monkeypatch.setattr(report_module, "log_figure", lambda *arguments: None)
    for Many.kind in (torch.uint8, torch.int8, torch.int64):
        assert report_of(tmp_path, Many()).results["accuracy"] == 1
    expected = torch.bincount(13 * Y, minlength=40).diag()
    assert all(torch.equal(matrix, expected) for matrix in matrices)
    assert len(matrices) == 3


def test_outputs_that_are_no_probabilities_are_refused_at_the_first_batch(tmp_path: Path) -> None:
    class Logits(Plain):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            batches.append(batch_idx)
            return {"prediction": 3 * self.outputs(batch[0]) - 2, "target": batch[1]}

    batches: list[int] = []
    with pytest.raises(ValueError, match=r"argument `probabilities` to hold values within \[0, 1\]"):
        report_of(tmp_path, Logits())
    assert batches == [0]


def test_negative_numbers_of_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="argument `activity_batches` to be an integer of at least 0, but got -1"):
        Report("folder", activity_batches=-1)


def test_history_has_a_value_for_each_epoch_in_which_it_was_new(tmp_path: Path) -> None:
    report = Report(tmp_path)
    trainer(report, max_epochs=4, check_val_every_n_epoch=2).fit(Plain(), loader(), loader())
    assert [step for step, _ in report.history["fit_loss"]] == [3, 6, 9, 12]
    assert [step for step, _ in report.history["val_loss"]] == [6, 12]
    assert set(report.history) == {"fit_loss", "val_loss"}


def test_names_of_more_than_three_parts_have_no_curve(tmp_path: Path) -> None:
    class ByLayer(pl.Callback):
        def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.log_dict({"own/val/rate": 0.5, "own/val/rate/net.2": 0.5})

    class Slashes(Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log_dict({"a/b/c": 1.0, "a/b/c/d": 1.0}, batch_size=1)

    report = Report(tmp_path)
    trainer(report, ByLayer()).fit(Slashes(), loader(), loader())
    assert set(report.history) == {"fit_loss", "val_loss", "own/val/rate", "a/b/c"}


def test_a_resumed_run_continues_the_curves(tmp_path: Path) -> None:
    whole = Report(tmp_path / "whole")
    trainer(whole, max_epochs=3).fit(Plain(), loader(), loader())
    first, second = Report(tmp_path / "part"), Report(tmp_path / "moved" / "part")
    fitter = trainer(first, max_epochs=2)
    fitter.fit(Plain(), loader(), loader())
    fitter.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 2
    trainer(second, max_epochs=3).fit(Plain(), loader(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert second.history == whole.history
    assert first.history != whole.history


def test_two_reports_go_into_one_trainer(tmp_path: Path, drawn: None) -> None:
    reports = [Report(tmp_path / "a"), Report(tmp_path / "b")]
    trainer(*reports).test(Plain(), loader(), verbose=False)
    assert reports[0].results["nll"] == reports[1].results["nll"]
    assert (tmp_path / "a" / "raster.png").read_bytes() == (tmp_path / "b" / "raster.png").read_bytes()


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"fast_dev_run": True, "logger": True}])
def test_a_fast_dev_run_writes_nothing(tmp_path: Path, drawn: None, options: dict[str, Any]) -> None:
    report = Report(tmp_path / "report")
    fitter = trainer(report, **options, default_root_dir=tmp_path)
    fitter.fit(Plain(), loader(), loader())
    fitter.test(Plain(), loader(), verbose=False)
    assert "accuracy" in report.results
    assert not list(tmp_path.iterdir())


def test_limited_batches_and_a_second_test_are_reported_by_themselves(tmp_path: Path) -> None:
    report = Report(tmp_path)
    tester = trainer(report, limit_test_batches=1)
    tester.test(Plain(), loader(6), verbose=False)
    once = dict(report.results)
    tester.test(Plain(), loader(6), verbose=False)
    assert report._tested[0].target.shape == (6,)
    assert {name: report.results[name] for name in ("nll", "accuracy")} == {
        name: once[name] for name in ("nll", "accuracy")
    }


def test_each_of_several_test_loaders_has_its_own_scores_and_diagrams(tmp_path: Path, drawn: None) -> None:
    class Several(Plain):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return super().test_step(batch, batch_idx)

    def part(chosen: slice) -> DataLoader:
        return DataLoader(TensorDataset(X[chosen], Y[chosen]), 8, collate_fn=time_first)

    parts, found = (slice(10), slice(10, None)), []
    for index, loaders in enumerate(([part(each) for each in parts], part(parts[0]), part(parts[1]))):
        report = Report(tmp_path / str(index))
        trainer(report).test(Several(), loaders, verbose=False)
        found.append(report.results)
    several, *alone = found
    for suffix, single in zip(("", "/1"), alone, strict=True):
        for name in ("accuracy", "nll", "brier", "ece"):
            assert several[f"{name}{suffix}"] == pytest.approx(single[name], abs=1e-6)
    assert alone[0]["nll"] != pytest.approx(alone[1]["nll"], abs=1e-4)
    assert [several["per_class"], several["per_class_1"]] == [each["per_class"] for each in alone]
    names = {path.name for path in (tmp_path / "0").iterdir()}
    assert {f"{name}{suffix}" for name in ("confusion_matrix", "reliability") for suffix in (".png", "_1.png")} < names
    assert {"per_class.csv", "per_class_1.csv"} < names


def test_labels_of_no_class_are_refused_in_their_batch(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(X, torch.where(torch.arange(24) == 9, -1, Y)), 8, collate_fn=time_first)
    with pytest.raises(ValueError, match="classes from 0 to 2, but got values from -1 to 2. Leave out samples without"):
        trainer(Report(tmp_path)).test(Plain(), data, verbose=False)
    assert not list(tmp_path.iterdir())


def test_activity_is_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    trainer(Report(tmp_path / "report"), logger=logger).test(Plain(), loader(), verbose=False)
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"test/spikes_per_neuron_per_step", "test/synaptic_operations_per_sample", "test/nll"} <= set(header)


def test_a_regression_has_numbers_but_no_confusion(tmp_path: Path, drawn: None) -> None:
    class Regressing(Plain):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("test/mse", 0.5, batch_size=8)
            return {"prediction": self.outputs(batch[0]), "target": torch.zeros(8, CLASSES)}

    report = report_of(tmp_path, Regressing())
    assert report.results["mse"] == 0.5
    assert "accuracy" not in report.results
    assert {path.name for path in report.folder.iterdir()} == {
        "metrics.json",
        "raster.png",
        "events.png",
        "report.html",
    }


def test_the_page_shows_figures_of_other_callbacks_of_the_run(tmp_path: Path, drawn: None) -> None:
    class Drawing(pl.Callback):
        def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            log_figure(trainer, "own", figures.training_curves({"a": [(0, 1.0)]}), tmp_path / "elsewhere")

    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "of_another_run.png").write_bytes(b"no figure")
    module = Plain()
    module.save_hyperparameters({"width": 16, "kind": LIF, "nested": {"sizes": (3, 5)}})
    report = Report(tmp_path / "report", {"commit": "4894484"})
    trainer(Drawing(), report).test(module, loader(), verbose=False)
    shown = Page((tmp_path / "report" / "report.html").read_text())
    expected = ["confusion_matrix", "reliability", "raster", "events", "own"]
    assert [image["alt"] for image in shown.attributes["img"]] == expected
    cells = shown.texts["td"]
    assert cells[cells.index("nested.sizes") + 1] == "[3, 5]"
    assert "LIF" in cells[cells.index("kind") + 1]
    assert json.loads((report.folder / "metrics.json").read_text())["hyperparameters"]["width"] == 16
    assert "There are no anytime predictions: Plain defines no `predict_anytime`." in shown.texts["p"]


def test_the_commands_of_a_script_are_its_own_and_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["my script.py", "--x", "1"])
    kept = ModelCheckpoint(tmp_path / "kept", save_last=True)
    report = Report(tmp_path / "report")
    fitter = trainer(report, kept, max_epochs=1, enable_checkpointing=True)
    fitter.fit(Plain(), loader())
    fitter.test(Plain(), loader(), verbose=False)
    assert list(report.results["commands"].values()) == [
        "python 'my script.py' --x 1",
        f"trainer.fit(module, data, ckpt_path={str(tmp_path / 'kept' / 'last.ckpt')!r})",
    ]
    monkeypatch.setattr("sys.argv", [""])
    assert report_of(tmp_path / "other").results["commands"] == {}


def test_callbacks_do_not_know_the_library_s_module() -> None:
    tree = ast.parse(Path(report_module.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "lightning_snn.metrics.activity" in imported
    assert not {"lightning_snn.module", "lightning_snn.methods"} & imported
