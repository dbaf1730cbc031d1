from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import wandb
import yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_snn import SpikingModule, run
from lightning_snn.callbacks import FiringRateMonitor
from lightning_snn.cli import RecipeCLI, main
from lightning_snn.cli.wandb import wandb_logger, why_offline
from lightning_snn.data import FrameDataModule, FrameDataset
from lightning_snn.nn import LIF
from tests.support.recipes import run_recipe
from tests.support.wandb_runs import WandbRun

HERE = "tests.test_cli"
DEFAULTS = {
    "data": f"{HERE}.TinyEvents",
    "network": "MLP",
    "method": "SpikingBayes",
    "model.learning_rate": 0.01,
    "model.lr_scheduler": "cosine",
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False,
}
PRESETS: dict[str, dict[str, Any]] = {
    "TinyEvents": {"data.rate": 0.25},
    "MLP": {"network.hidden": [16]},
    "SpikingBayes": {"method.lam": 0.25, "method.kl_weight": 0.01},
}


class TinyEvents(FrameDataModule):
    """Events in the left, the right or both halves of a tiny sensor."""

    num_classes = 3
    class_names = ("left", "right", "both")
    frame_shape = (2, 4, 6)
    time_steps = 4
    pairs = ((0, 1),)

    def __init__(self, rate: float = 0.5, batch_size: int = 8) -> None:
        super().__init__(batch_size=batch_size)
        self.rate = rate

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        rng = np.random.default_rng(0)
        sets = []
        for samples in (24, 12, 12):
            labels = np.arange(samples) % 3
            frames = (rng.random((samples, self.time_steps, *self.frame_shape)) < self.rate).astype(np.uint8)
            frames[labels == 0, ..., 3:] = 0
            frames[labels == 1, ..., :3] = 0
            sets.append(FrameDataset(frames, labels))
        return tuple(sets)


class OtherEvents(TinyEvents):
    frame_shape = (1, 5, 5)
    num_classes = 4
    pairs = ()

    def load_sets(self) -> tuple[Dataset, Dataset, Dataset]:
        frames = np.zeros((8, self.time_steps, *self.frame_shape), np.uint8)
        part = FrameDataset(frames, np.arange(8) % 4)
        return part, part, part


class SelfMadeNetwork(nn.Sequential):
    def __init__(self, width: int = 5) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(width), LIF(), nn.Linear(width, 3))


class SilentNetwork(nn.Sequential):
    """A network without spikes."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(48, 3))


class InterruptAfterEpoch(pl.Callback):
    """Ctrl-C in the middle of the epoch that follows."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch > self.epoch and batch_idx == 1:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a tiny run."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("lightning_snn.figures.training_curves", lambda history: None)
        monkeypatch.setattr("lightning_snn.callbacks.report.Report._test_figures", lambda self, trainer: {})
        monkeypatch.setattr("lightning_snn.callbacks.report.log_figure", lambda *arguments: None)


@pytest.fixture
def drawn() -> None:
    """Asks for figures."""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    handler, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, handler)  # the Trainer ignores it once it was interrupted


VARIANTS: dict[str, dict[str, Any]] = {
    "small": {"trainer.max_epochs": 1, "network.hidden": [3], "method.lam": 0.75},
    "other": {"data": f"{HERE}.OtherEvents", "data.rate": 0.125, "trainer.max_epochs": 7},
}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> RecipeCLI:
    monkeypatch.setattr(sys, "argv", ["tiny.py", *arguments])
    return main("recipes/tiny.py", DEFAULTS, PRESETS)


def parse(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> RecipeCLI:
    monkeypatch.setattr(sys, "argv", ["tiny.py", *arguments])
    return RecipeCLI("recipes/tiny.py", DEFAULTS, PRESETS, VARIANTS)


def first_batch(cli: RecipeCLI) -> Tensor:
    frames = next(iter(cli.datamodule.test_dataloader()))
    return cli.datamodule.on_after_batch_transfer(frames, 0)[0]


def test_a_run_leaves_metrics_figures_checkpoints_and_its_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drawn: None
) -> None:
    cli = call(monkeypatch, "--output", "out", "--seed_everything", "3")
    written = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    figures = {"training_curves", "confusion_matrix", "reliability", "raster", "events"}
    assert written >= {f"{name}.png" for name in figures} | {
        "metrics.json",
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "logs/version_0/metrics.csv",
    }
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["recipe"] == "tiny"
    assert (metrics["data"], metrics["network"], metrics["method"]) == ("TinyEvents", "MLP", "SpikingBayes")
    assert metrics["seed"] == 3
    assert metrics["versions"]["torch"] == torch.__version__
    assert metrics["hyperparameters"]["method"]["init_args"]["lam"] == 0.25
    assert metrics["hyperparameters"]["trainer"]["max_epochs"] == 2
    assert metrics["seconds"]["total"] >= metrics["seconds"]["training"] > 0
    assert 0 <= metrics["pair_accuracy"] <= 1
    table = capsys.readouterr().out
    for label, value in (
        ("accuracy", f"{metrics['accuracy']:.4f}"),
        ("within-pair direction accuracy", f"{metrics['pair_accuracy']:.4f}"),
        ("negative log-likelihood (nats)", f"{metrics['nll']:.4f}"),
        ("expected calibration error", f"{metrics['ece']:.4f}"),
        ("spikes per neuron per step", f"{metrics['spikes_per_neuron_per_step']:.4f}"),
        ("synaptic operations per sample", f"{metrics['synaptic_operations_per_sample']:.3g}"),
        ("report", "out"),
    ):
        assert any(line.startswith(f"  {label} ") and line.endswith(f" {value}") for line in table.splitlines())
    assert cli.trainer.current_epoch == 2


def test_the_best_checkpoint_is_the_one_of_least_validation_nll_and_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = call(
        monkeypatch,
        "--output",
        "out",
        "--trainer.max_epochs",
        "5",
        "--model.learning_rate",
        "1",
        "--model.lr_scheduler",
        "null",
    )
    nll = [value for _, value in cli.report.history["val/nll"]]
    best = torch.load("out/checkpoints/best.ckpt", weights_only=True)
    assert nll.index(min(nll)) < 4, "if the last epoch were best, the test would prove nothing"
    assert best["epoch"] == nll.index(min(nll))
    for name, value in cli.model.state_dict().items():
        torch.testing.assert_close(value, best["state_dict"][name], rtol=0, atol=0)
    assert torch.load("out/checkpoints/last.ckpt", weights_only=True)["epoch"] == 4


def test_a_checkpoint_rebuilds_network_and_method(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = call(monkeypatch, "--output", "out", "--network.hidden", "[7]", "--model.readout", "last")
    module = SpikingModule.load_from_checkpoint("out/checkpoints/best.ckpt", weights_only=True)
    assert repr(module) == repr(cli.model)
    assert module.hparams.readout == "last"
    x = first_batch(cli)
    torch.testing.assert_close(run(module.network, x), run(cli.model.network, x), rtol=0, atol=0)


@pytest.mark.parametrize("network", ["MLP", "EventConvNet"])
@pytest.mark.parametrize(("name", "classes"), [("TinyEvents", 3), ("OtherEvents", 4)])
def test_the_network_fits_any_data(monkeypatch: pytest.MonkeyPatch, network: str, name: str, classes: int) -> None:
    cli = parse(monkeypatch, "--network", network, "--data", f"{HERE}.{name}")
    assert cli.classes["network"].__name__ == network
    assert run(cli.model.network, torch.zeros(4, 2, *cli.datamodule.frame_shape)).shape == (4, 2, classes)
    assert cli.model.hparams.num_classes == classes
    assert ("pair_accuracy" in cli.model.val_metrics) == (name == "TinyEvents")


def test_a_network_of_ones_own_needs_no_arguments_from_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = call(
        monkeypatch,
        *("--network", f"{HERE}.SelfMadeNetwork", "--network.width", "6"),
        *("--method", "SurrogateGradient", "--output", "out"),
    )
    assert cli.report.results["network"] == "SelfMadeNetwork"
    assert cli.model.network[-1].in_features == 6


def test_another_class_inherits_no_option_of_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(monkeypatch).datamodule.rate == 0.25
    assert parse(monkeypatch, "--data.batch_size", "3").datamodule.rate == 0.25
    assert parse(monkeypatch, "--data", f"{HERE}.OtherEvents").datamodule.rate == 0.5
    assert parse(monkeypatch, "--data.rate=0.75", f"--data={HERE}.OtherEvents").datamodule.rate == 0.75


def hidden_and_epochs(cli: RecipeCLI) -> tuple[int, int]:
    return cli.hyperparameters["network"]["init_args"]["hidden"], cli.trainer.max_epochs


def test_a_variant_replaces_defaults_and_presets_and_gives_way_to_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("small.yaml").write_text("small: true\n")
    for off in ([], ["--small", "false"], ["--small=true", "--small=false"]):
        assert hidden_and_epochs(parse(monkeypatch, *off)) == ([16], 2)
    for on in (["--small", "true"], ["--small=true"], ["--config", "small.yaml"]):
        cli = parse(monkeypatch, *on)
        assert hidden_and_epochs(cli) == ([3], 1)
        assert cli.hyperparameters["method"]["init_args"]["lam"] == 0.75
    cli = parse(monkeypatch, "--small", "true", "--trainer.max_epochs", "5", "--network.hidden", "[4]")
    assert hidden_and_epochs(cli) == ([4], 5)


def test_a_variant_can_choose_classes_and_the_user_others(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = parse(monkeypatch, "--other", "true")
    assert (type(cli.datamodule), cli.datamodule.rate, cli.trainer.max_epochs) == (OtherEvents, 0.125, 7)
    # options of a class that was not chosen do not follow
    cli = parse(monkeypatch, "--other", "true", "--data", f"{HERE}.TinyEvents")
    assert (type(cli.datamodule), cli.datamodule.rate, cli.trainer.max_epochs) == (TinyEvents, 0.25, 7)
    cli = parse(monkeypatch, "--small", "true", "--network", "EventConvNet", "--method", "SurrogateGradient")
    assert cli.trainer.max_epochs == 1


def test_the_last_of_two_variants_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = parse(monkeypatch, "--other", "true", "--small", "true")
    assert (type(cli.datamodule), *hidden_and_epochs(cli)) == (OtherEvents, [3], 7)


def test_a_variant_is_on_or_off_and_listed_in_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(monkeypatch, "--small", "perhaps")
    assert "small" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        parse(monkeypatch, "--help")
    assert "trainer.max_epochs 1, network.hidden [3], method.lam 0.75" in " ".join(capsys.readouterr().out.split())


def test_the_method_can_be_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = call(monkeypatch, "--method", "SurrogateGradient", "--output", "out")
    assert cli.report.results["method"] == "SurrogateGradient"
    assert "lam" not in json.dumps(cli.hyperparameters)


def test_yaml_comes_after_defaults_and_gives_way_to_later_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("short.yaml").write_text("method: SurrogateGradient\ntrainer: {max_epochs: 1}\n")
    Path("rate.yaml").write_text(f"data:\n  class_path: {HERE}.OtherEvents\n  init_args:\n    rate: 0.125\n")
    cli = parse(monkeypatch, "--config", "short.yaml", "--config", "rate.yaml")
    assert (cli.classes["method"].__name__, cli.trainer.max_epochs) == ("SurrogateGradient", 1)
    assert (type(cli.datamodule), cli.datamodule.rate) == (OtherEvents, 0.125)
    cli = parse(monkeypatch, "--config", "short.yaml", "--trainer.max_epochs", "5")
    assert (cli.classes["method"].__name__, cli.trainer.max_epochs) == ("SurrogateGradient", 5)


def test_the_saved_configuration_repeats_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    first = call(monkeypatch, "--output", "out", "--model.learning_rate", "0.02", "--seed_everything", "5")
    again = call(monkeypatch, "--config", "out/config.yaml", "--output", "again")
    assert yaml.safe_load(Path("out/config.yaml").read_text())["model"]["learning_rate"] == 0.02
    assert again.report.history == first.report.history


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--method.lamm", "1"], "Option 'lamm' is not accepted"),
        (["--method", "SurrogateGradient", "--method.lam", "1"], "Option 'lam' is not accepted"),
        (["--model.learning_rat", "1"], "unrecognized arguments: --model.learning_rat"),
        (["--trainer.max_epoch", "1"], "unrecognized arguments: --trainer.max_epoch"),
        (["--network", "MPL"], "Expected option --network to be one of EventConvNet, MLP"),
        (["--data", "torch.nn.Linear"], "torch.nn has no such FrameDataModule"),
        (["--method.lam", "2"], "Expected argument `lam` to be a number from 0 to 1, but got 2"),
        (["--data", "NMNIST"], "required: root"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--ckpt_path", "absent.ckpt"], "absent.ckpt"),
        (["--wandb", "true", "--trainer.logger", "false"], "--wandb"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_help_names_the_options_of_the_chosen_classes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--help", "--method", "SurrogateGradient")
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for text in ("--network.hidden", "--data.batch_size", "--trainer.max_epochs", "--wandb", "SpikingBayes"):
        assert text in out
    assert "--method.lam" not in out
    assert "known subclasses" not in out


def test_a_run_goes_to_a_new_folder_under_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = call(monkeypatch, "--trainer.max_epochs", "1")
    assert cli.output.parts[:2] == ("runs", "tiny")
    assert (cli.output / "metrics.json").is_file()


def test_a_fast_dev_run_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = call(monkeypatch, "--trainer.fast_dev_run", "true")
    assert "accuracy" in cli.report.results
    assert not list(Path().iterdir())


def test_a_run_without_validation_tests_its_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = call(monkeypatch, "--trainer.limit_val_batches", "0", "--output", "out")
    assert torch.load("out/checkpoints/best.ckpt", weights_only=True)["epoch"] == 1
    assert "accuracy" in cli.report.results


@pytest.mark.parametrize("interval", ["--trainer.check_val_every_n_epoch=2", "--trainer.val_check_interval=0.34"])
def test_validation_at_another_interval_still_gives_a_best_checkpoint(
    monkeypatch: pytest.MonkeyPatch, interval: str
) -> None:
    cli = call(monkeypatch, interval, "--trainer.max_epochs", "4", "--output", "out")
    assert Path("out/checkpoints/best.ckpt").is_file()
    assert cli.trainer.current_epoch == 4


@pytest.mark.parametrize("data", [["NMNIST", "--data.root", "absent"], ["MNIST", "--data.root", "absent"]])
def test_missing_data_are_named_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--data", *data, "--output", "out")
    assert stop.value.code == 2
    assert "absent" in capsys.readouterr().err


def test_an_error_after_the_data_are_there_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TinyEvents, x: Tensor, y: Tensor) -> None:
        raise ValueError("no augmentation today")

    monkeypatch.setattr(TinyEvents, "augment", broken)
    with pytest.raises(ValueError, match="no augmentation today"):
        call(monkeypatch, "--output", "out")


def test_ctrl_c_keeps_a_checkpoint_that_resumes_as_if_nothing_had_happened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = call(monkeypatch, "--trainer.max_epochs", "4", "--output", "whole")
    arguments = ["--trainer.max_epochs", "4", "--output", "part one"]
    interrupt = ["--trainer.callbacks+", f"{HERE}.InterruptAfterEpoch", "--trainer.callbacks.epoch", "1"]
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments, *interrupt)
    assert stop.value.code == 130
    message = capsys.readouterr().err
    assert not Path("part one/metrics.json").exists()

    command = shlex.split(message.strip().splitlines()[-1])
    assert command[:2] == ["python", "tiny.py"]
    assert command[-2:] == ["--ckpt_path", "part one/checkpoints/last.ckpt"]
    resumed = call(monkeypatch, *(part for part in command[2:] if part not in interrupt))
    assert resumed.report.history == whole.report.history
    weights = [torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "part one")]
    assert weights[0]["global_step"] == weights[1]["global_step"] == 12
    for name, value in weights[0]["state_dict"].items():
        torch.testing.assert_close(value, weights[1]["state_dict"][name], rtol=0, atol=0)
    assert {name: resumed.report.results[name] for name in ("accuracy", "nll")} == {
        name: whole.report.results[name] for name in ("accuracy", "nll")
    }


def test_ctrl_c_in_the_first_epoch_keeps_the_beginning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt = ["--trainer.callbacks+", f"{HERE}.InterruptAfterEpoch", "--trainer.callbacks.epoch", "-1"]
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *interrupt)
    assert stop.value.code == 130
    command = shlex.split(capsys.readouterr().err.strip().splitlines()[-1])
    resumed = call(monkeypatch, "--ckpt_path", command[-1])
    # the folder of the interrupted run goes on
    assert resumed.output.resolve() == Path(command[-1]).resolve().parents[1]
    assert [step for step, _ in resumed.report.history["val/nll"]] == [3, 6]
    assert "ckpt_path" not in yaml.safe_load((resumed.output / "config.yaml").read_text())


def test_ctrl_c_before_training_says_to_start_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: TinyEvents) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TinyEvents, "prepare_data", interrupted)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--output", "out")
    assert stop.value.code == 130
    assert "start again with the same command" in capsys.readouterr().err


def test_an_ordinary_error_is_not_taken_for_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TinyEvents) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr(TinyEvents, "prepare_data", broken)
    with pytest.raises(OSError, match="disk on fire"):
        call(monkeypatch, "--output", "out")


def test_wandb_gets_the_results_of_a_run_of_the_main_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drawn: None
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(Path("cache").resolve()))
    cli = run_recipe(
        "sbnn_dvs",
        monkeypatch,
        *("--wandb", "true", "--output", "out", "--seed_everything", "4"),
        *("--data.train_subjects", "2", "--data.val_subjects", "1", "--data.test_subjects", "1"),
        *("--data.repetitions", "1", "--data.time_steps", "4"),
        *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    )
    kept = WandbRun(Path("out"))
    assert (kept.begun.project, kept.begun.run_group) == ("lightning_snn", "SpikingBayes EventConvNet Gestures")
    assert set(kept.begun.tags) == {"SpikingBayes", "EventConvNet", "Gestures", "sbnn_dvs"}
    assert kept.config["seed_everything"] == 4
    assert kept.config["method"]["init_args"]["mean_epochs"] == 10
    assert kept.config["data"]["init_args"]["test_subjects"] == 1

    for name in ("accuracy", "nll", "ece", "spikes_per_neuron_per_step"):
        assert kept.values[f"test/{name}"] == pytest.approx(cli.report.results[name])
    assert {"train/loss_epoch", "val/accuracy", "trainer/global_step", "epoch"} <= set(kept.values)

    for name in ("training_curves", "confusion_matrix", "reliability", "raster", "events"):
        assert kept.values[f"report/{name}/_type"] == "images/separated"
        (picture,) = kept.values[f"report/{name}/filenames"]
        assert (kept.files / picture).read_bytes() == Path("out", f"{name}.png").read_bytes()

    for stage in ("train", "val", "test"):
        assert 0 < kept.values[f"firing_rates/{stage}/rate/all"] < 1
        (picture,) = kept.values[f"report/firing_rates_{stage}/filenames"]
        assert (kept.files / picture).read_bytes() == Path("out", f"firing_rates_{stage}.png").read_bytes()
        for layer in ("1", "3", "5", "9"):
            assert kept.values[f"report/firing_rates/{stage}/network.{layer}/_type"] == "histogram"
    histogram = kept.values["report/firing_rates/test/network.9/values"]
    assert sum(histogram) == cli.model.network[10].in_features  # each neuron once

    assert kept.values["report/per_class/_type"] == "table-file"
    table = json.loads((kept.files / kept.values["report/per_class/path"]).read_text())
    listed = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert listed == json.loads(Path("out/metrics.json").read_text())["per_class"]
    assert [row["class"] for row in listed] == list(cli.datamodule.class_names)

    assert kept.values["report/model_summary/_type"] == "html-file"
    summary = (kept.files / kept.values["report/model_summary/path"]).read_text()
    assert Path("out/model_summary.txt").read_text().strip() in summary
    assert "BayesConv2d" in summary

    assert capsys.readouterr().out.count("kept offline") == 1
    assert not Path("out/logs").exists()


def monitors(cli: RecipeCLI) -> list[FiringRateMonitor]:
    return [callback for callback in cli.trainer.callbacks if isinstance(callback, FiringRateMonitor)]


def test_firing_rates_are_monitored_for_wandb_unless_the_user_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_snn.cli.recipe.wandb_logger", lambda *arguments: CSVLogger("out", "logs"))
    asked = ["--wandb", "true", "--output", "out"]
    (monitor,) = monitors(parse(monkeypatch, *asked))
    assert monitor.folder == Path("out")
    own = "lightning_snn.callbacks.FiringRateMonitor"
    (monitor,) = monitors(
        parse(monkeypatch, *asked, "--trainer.callbacks+", own, "--trainer.callbacks.every_n_batches", "3")
    )
    assert monitor.every_n_batches == 3
    assert not monitors(parse(monkeypatch))
    silent = ["--network", f"{HERE}.SilentNetwork", "--method", "SurrogateGradient"]
    assert not monitors(parse(monkeypatch, *asked, *silent))


def test_only_one_process_says_that_a_run_is_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    wandb_logger(Path("out"), "group", ["tag"])
    assert "offline" not in "".join(capsys.readouterr())
    assert not Path("out/wandb").exists()


def test_nothing_goes_to_wandb_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **options: pytest.fail("a run of W&B began"))
    monkeypatch.setattr(wandb, "setup", lambda **options: pytest.fail("W&B was set up"))
    call(monkeypatch, "--output", "out")
    call(monkeypatch, "--wandb", "true", "--trainer.fast_dev_run", "true")
    assert not Path("out/wandb").exists()


@pytest.mark.parametrize(
    ("settings", "environment", "offline"),
    [
        ({}, {}, True),
        ({"api_key": "k" * 40}, {}, False),
        ({"api_key": "k" * 40, "mode": "offline"}, {}, True),
        ({}, {"WANDB_IDENTITY_TOKEN_FILE": "token"}, False),
        ({}, {"NETRC": "netrc"}, False),
        ({"base_url": "https://elsewhere.example"}, {"NETRC": "other"}, True),
    ],
)
def test_wandb_is_offline_without_a_key_or_on_request(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], environment: dict[str, str], offline: bool
) -> None:
    Path("netrc").write_text("machine api.wandb.ai login user password secret\n")
    Path("other").write_text("machine another.example login user password secret\n")
    values = {"api_key": None, "mode": "online", "base_url": "https://api.wandb.ai", **settings}
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=SimpleNamespace(**values)))
    monkeypatch.delenv("WANDB_IDENTITY_TOKEN_FILE", raising=False)
    monkeypatch.setenv("NETRC", "absent")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (why_offline() is not None) == offline
