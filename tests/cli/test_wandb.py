"""Runs of Weights & Biases: what they get, where they are kept, and under which names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
import yaml
from lightning.pytorch.utilities import rank_zero_only

from lightning_snn.callbacks import FiringRateMonitor
from lightning_snn.cli import RecipeCLI
from lightning_snn.cli.wandb import wandb_logger, why_offline
from tests.cli.tiny import HERE, call, interrupt_at, parse
from tests.support.processes import PATIENCE, with_checkout
from tests.support.recipes import run_recipe
from tests.support.wandb_runs import WandbRun


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
        for layer in ("2", "4", "6", "10"):
            assert kept.values[f"report/firing_rates/{stage}/network.{layer}/_type"] == "histogram"
    histogram = kept.values["report/firing_rates/test/network.10/values"]
    assert sum(histogram) == cli.model.network[11].in_features  # each neuron once

    assert kept.values["report/per_class/_type"] == "table-file"
    table = json.loads((kept.files / kept.values["report/per_class/path"]).read_text())
    listed = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert listed == json.loads(Path("out/metrics.json").read_text())["per_class"]
    assert [row["class"] for row in listed] == list(cli.datamodule.class_names)

    assert kept.values["report/model_summary/_type"] == "html-file"
    summary = (kept.files / kept.values["report/model_summary/path"]).read_text()
    assert Path("out/model_summary.txt").read_text().strip() in summary
    assert "BayesConv2d" in summary

    assert kept.values["report/report/_type"] == "html-file"
    page = Path("out/report.html").read_text()
    assert (kept.files / kept.values["report/report/path"]).read_text() == page
    assert 'alt="firing_rates_test"' in page
    assert kept.values["report/anytime/_type"] == "table-file"
    for name in ("anytime_scores", "anytime_samples"):
        assert kept.values[f"report/{name}/_type"] == "images/separated"

    assert capsys.readouterr().out.count("kept offline") == 1
    assert not Path("out/logs").exists()


def monitors(cli: RecipeCLI) -> list[FiringRateMonitor]:
    return [callback for callback in cli.trainer.callbacks if isinstance(callback, FiringRateMonitor)]


def test_firing_rates_are_monitored_for_wandb_unless_the_user_does(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_damaged_file_of_keys_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("netrc").write_text("nonsense here\n")
    settings = SimpleNamespace(api_key=None, mode="online", base_url="https://api.wandb.ai")
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
    monkeypatch.delenv("WANDB_IDENTITY_TOKEN_FILE", raising=False)
    monkeypatch.setenv("NETRC", "netrc")
    assert "because netrc cannot be read" in str(why_offline())


OFFLINE = """
from pathlib import Path
from lightning_snn.cli.wandb import wandb_logger
logger = wandb_logger(Path("out"), "group", ["tag"])
logger.experiment.log({"value": 1})
logger.experiment.finish()
"""


@pytest.mark.slow  # a process that is traced
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_without_a_key_nothing_goes_to_the_network() -> None:
    environment = with_checkout({"NETRC": "absent", "HOME": str(Path.cwd())})
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_SILENT", "WANDB_ERROR_REPORTING", "WANDB_IDENTITY_TOKEN_FILE"):
        environment.pop(name, None)
    command = ["strace", "-f", "-e", "trace=connect", "-o", "calls", sys.executable, "-c", OFFLINE]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if "ptrace" in found.stderr or "Operation not permitted" in found.stderr:
        pytest.skip("this system does not allow strace")
    assert "no API key was found, so the run is kept offline" in found.stdout, found.stderr
    connections = [line for line in Path("calls").read_text().splitlines() if "AF_INET" in line]
    assert not [line for line in connections if '"127.0.0.1"' not in line and '"::1"' not in line]


def start(folder: Path) -> wandb.Run:
    """Start an offline run in a folder, and return it finished."""
    logger = wandb_logger(folder, "group", ["tag"])
    run = logger.experiment
    run.finish()
    return run


def test_the_environment_of_wandb_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    plain = start(Path("plain"))
    assert (plain.project, plain.group, plain.tags) == ("lightning_snn", "group", ("tag",))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_RUN_GROUP", "together")
    monkeypatch.setenv("WANDB_TAGS", "one, two,tag")
    own = start(Path("own"))
    assert (own.project, own.group, own.tags) == ("mine", "together", ("tag", "one", "two"))


def test_a_resumed_run_goes_on_under_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(SystemExit):
            call(patch, "--wandb", "true", "--output", "out")
    wandb.finish()
    resumed = call(monkeypatch, "--ckpt_path", "out/checkpoints/last.ckpt")
    assert resumed.output == Path("out")
    name = Path("out/wandb_run_id.txt").read_text().strip()
    last = ("--ckpt_path", "out/checkpoints/last.ckpt")
    longer = call(monkeypatch, *last, "--trainer.max_epochs", "3", "--output", "on")
    other = call(monkeypatch, *last, "--data.rate", "0.4", "--output", "else")
    # offline-run-TIME-ID, and a number after it if two runs of an ID start in the same second
    runs = {
        folder: {path.name.split("-")[3] for path in Path(folder, "wandb").glob("offline-run-*")}
        for folder in ("out", "on", "else")
    }
    assert (longer.output, other.output) == (Path("on"), Path("else"))
    assert runs["out"] == runs["on"] == {name}
    assert runs["else"].isdisjoint({name})


@pytest.mark.parametrize(("option", "expected"), [("true", True), ("all", "all"), ("false", False)])
def test_checkpoints_are_logged_on_request(monkeypatch: pytest.MonkeyPatch, option: str, expected: object) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logged: list[str] = []
    monkeypatch.setattr(wandb.Run, "log_artifact", lambda self, artifact, **options: logged.append(artifact.type))
    cli = call(monkeypatch, "--wandb.log_model", option, "--output", "out")
    assert yaml.safe_load(Path("out/config.yaml").read_text())["wandb"]["log_model"] == expected
    (logger,) = cli.trainer.loggers
    assert logger.__class__.__name__ == "WandbLogger"
    assert ("model" in logged) == bool(expected)
