from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from lightning_snn import SpikingModule
from lightning_snn.networks import ResNet, ResNet18
from lightning_snn.optim import SGD
from tests.support.recipes import load_recipe, parse_recipe, run_recipe

TINY = ("--small", "true", "--network.channels", "[4,6]", "--data.batch_size", "16", "--data.time_steps", "2")
QUICK = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
# the published configuration without what needs an optional library
PUBLISHED = ("--data.root", "part.npz", "--data.auto_augment", "false")


pytestmark = pytest.mark.usefixtures("without_figures_of_the_report")


def test_the_defaults_are_the_published_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli = parse_recipe("rate_cifar10", monkeypatch, *PUBLISHED)
    data, model = cli.datamodule, cli.model
    assert (data.time_steps, data.batch_size, data.augmentation, data.cutout) == (4, 128, True, 16)
    assert load_recipe("rate_cifar10").DEFAULTS["data.auto_augment"] is True
    assert type(model.network) is ResNet18
    assert (type(model.method).__name__, model.method.grad_scale) == ("RateBackprop", "natural")
    assert (model.method.task.readout, cli.trainer.max_epochs) == ("mean", 300)
    assert cli.trainer.gradient_clip_val is None
    optimizer = model.optimizer_factory(list(model.parameters()))
    assert isinstance(optimizer, SGD)
    for group, decay in zip(optimizer.param_groups, (5e-4, 0.0), strict=True):
        assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.1, 0.9, False, decay)


def test_the_learning_rate_follows_a_cosine_to_zero(images: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--data.root", str(images), *TINY, *QUICK, "--method", "SurrogateGradient", "--output", "run")
    cli = run_recipe("rate_cifar10", monkeypatch, *options, "--trainer.max_epochs", "2", "--model.optimizer.lr", "0.04")
    (scheduler,) = cli.model.trainer.lr_scheduler_configs
    steps = cli.trainer.global_step
    assert steps == 2 * 9
    assert scheduler.scheduler.get_last_lr() == pytest.approx([0, 0], abs=1e-12)
    assert scheduler.scheduler.base_lrs == [0.04, 0.04]
    assert math.isfinite(cli.report.results["nll"])
    module = SpikingModule.load_from_checkpoint("run/checkpoints/best.ckpt", weights_only=True)
    assert module.optimizer_factory(list(module.parameters())).param_groups[0]["lr"] == 0.04


@pytest.mark.parametrize("method", ["SurrogateGradient", "RateBackprop"])
def test_the_small_network_learns_the_color_of_a_square(
    method: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--data.root", str(images), *TINY, *QUICK, "--method", method, "--trainer.max_epochs", "4")
    cli = run_recipe("rate_cifar10", monkeypatch, *options, "--output", "run")
    assert type(cli.model.network) is ResNet
    assert (cli.report.results["method"], cli.report.results["network"]) == (method, "ResNet")
    assert cli.report.results["accuracy"] > 0.6  # chance is 0.25


def test_any_network_and_method_can_take_the_place_of_the_small_ones(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--small", "true", "--network", "VGG", "--network.channels", "[4,A,4]", "--method", "SurrogateGradient")
    cli = run_recipe(
        "rate_cifar10", monkeypatch, *options, "--data.root", str(images), *QUICK, "--trainer.fast_dev_run", "true"
    )
    assert cli.report.results["network"] == "VGG"


def test_the_published_augmentation_runs(images: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("kornia", reason="the optional extra `augmentation` is not installed")
    monkeypatch.chdir(tmp_path)
    options = (*TINY, "--data.auto_augment", "true", "--data.cutout", "16", "--method", "SurrogateGradient")
    cli = run_recipe(
        "rate_cifar10", monkeypatch, *options, "--data.root", str(images), *QUICK, "--trainer.fast_dev_run", "true"
    )
    assert "accuracy" in cli.report.results


def test_without_kornia_the_published_configuration_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(SystemExit, match="2"):
        run_recipe("rate_cifar10", monkeypatch, "--data.root", "part.npz", "--method", "SurrogateGradient")
    assert "pip install 'lightning-snn[augmentation]'" in capsys.readouterr().err
