from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from lightning_snn import SpikingModule, networks, run
from lightning_snn.cli import RecipeCLI
from tests.cli.tiny import HERE, OtherEvents, TinyEvents, call, parse
from tests.support.processes import run_python


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
        ("report", "out/report.html"),
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


def test_a_method_that_takes_the_shape_of_inputs_gets_it_from_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--method", "TimeToFirstSpike", "--network", f"{HERE}.ConvolutionalNetwork"]
    cli = parse(monkeypatch, *options)
    assert tuple(cli.model.method.input_shape) == (2, 4, 6)
    cli.model.predict_step((torch.rand(1, 3, 2, 4, 6), None), 0)
    assert cli.model.hparams["method"]["init_args"]["input_shape"] == [2, 4, 6]
    assert tuple(parse(monkeypatch, "--method", "TimeToFirstSpike").model.method.input_shape) == (2, 4, 6)


def test_a_network_of_ones_own_needs_no_arguments_from_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = call(
        monkeypatch,
        *("--network", f"{HERE}.SelfMadeNetwork", "--network.width", "6"),
        *("--method", "SurrogateGradient", "--output", "out"),
    )
    assert cli.report.results["network"] == "SelfMadeNetwork"
    assert cli.model.network[-1].in_features == 6


def test_a_name_means_the_network_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("vgg.yaml").write_text("network:\n  class_path: VGG\n  init_args:\n    channels: [2]\n")
    method = ("--method", "SurrogateGradient")
    for arguments in (["--network", "VGG", "--network.channels", "[2]"], ["--config", "vgg.yaml"]):
        assert type(parse(monkeypatch, *arguments, *method).config_init.network) is networks.VGG
    other = parse(monkeypatch, "--network", f"{HERE}.VGG", *method)
    assert type(other.config_init.network) is not networks.VGG


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
        (["--method.lamm", "1"], "did you mean lam?"),
        (
            ["--method", "SurrogateGradient", "--method.lam", "1"],
            "not accepted. SurrogateGradient takes",
        ),
        (["--model.learning_rat", "1"], "did you mean --model.learning_rate?"),
        (["--trainer.max_epoch", "1"], "did you mean --trainer.max_epochs?"),
        (["--outptu", "out"], "did you mean --output?"),
        (["--network", "MPL"], "Expected option --network to be one of EventConvNet, MLP"),
        (["--network", "MPL"], "(no such name; did you mean MLP?)"),
        (["--network", f"{HERE}.SelfMadeNetwork2"], "has no such Network; did you mean SelfMadeNetwork?"),
        (["--network.hiden", "[3]"], "neuron, gain; did you mean hidden?"),
        (["--network", "VGG", "--network.chanels", "[3]"], "did you mean channels?"),
        (["--network.neuron", "LIF", "--network.neuron.betaa", "1"], "LIF takes beta, threshold"),
        (
            ["--network.input_shape", "3"],
            "Expected no option --network.input_shape, because it is `frame_shape` of",
        ),
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
    message = capsys.readouterr().err
    assert complaint in message
    assert "Union" not in message
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


@pytest.mark.parametrize(
    "data",
    [
        ["NMNIST", "--data.root", "absent"],
        ["MNIST", "--data.root", "absent"],
        ["NMNIST", "--data.root", "absent", "--wandb", "true"],
    ],
)
def test_missing_data_are_named_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--data", *data, "--output", "out")
    assert stop.value.code == 2
    assert "absent" in capsys.readouterr().err
    assert not list(Path().iterdir()), "nothing is left of a run without data"


def test_an_error_after_the_data_are_there_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TinyEvents, x: Tensor, y: Tensor) -> None:
        raise ValueError("no augmentation today")

    monkeypatch.setattr(TinyEvents, "augment", broken)
    with pytest.raises(ValueError, match="no augmentation today"):
        call(monkeypatch, "--output", "out")


def test_an_ordinary_error_is_not_taken_for_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TinyEvents) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr(TinyEvents, "prepare_data", broken)
    with pytest.raises(OSError, match="disk on fire"):
        call(monkeypatch, "--output", "out")


@pytest.mark.parametrize(
    ("arguments", "expected", "absent"),
    [
        (["--network.help"], ["--network.hidden", "sizes of the hidden layers"], ["--network.delays"]),
        (["--network.help", "EventConvNet"], ["--network.delays"], ["sizes of the hidden layers"]),
        (["--network.help", "--network", "EventConvNet"], ["--network.delays"], ["sizes of the hidden layers"]),
        (["--network.help", "--data.batch_size", "3"], ["--network.hidden"], []),
        (["--method.help"], ["--method.lam"], []),
        (["--method.help=TimeToFirstSpike"], ["--method.activity_penalty"], ["--method.lam"]),
        (["--data.help"], ["--data.rate"], []),
        (["--data.help", "MNIST"], ["--data.root"], ["--data.rate"]),
    ],
)
def test_the_help_of_a_class_needs_no_name(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: list[str],
    absent: list[str],
) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(monkeypatch, *arguments)
    out = capsys.readouterr().out
    assert all(text in out for text in expected)
    assert not any(text in out for text in absent)


SHARE_OF_HELP = """
import sys, time
start = time.process_time()  # of the processor, so that waiting for other work does not count
import lightning.pytorch
lightning = time.process_time() - start
sys.argv = ["tiny.py", "--help"]
from lightning_snn.cli import main
try:
    main("recipes/tiny.py", {"data": "Gestures", "network": "EventConvNet", "method": "SpikingBayes"})
except SystemExit:
    print((time.process_time() - start) / lightning)
"""


def test_help_takes_little_more_than_the_import_of_lightning(tmp_path: Path) -> None:
    printed = run_python("-c", SHARE_OF_HELP, cwd=tmp_path).stdout
    assert "--trainer.max_epochs" in printed
    assert float(printed.splitlines()[-1]) < 1.4
