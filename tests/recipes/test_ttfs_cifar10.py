from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from lightning_snn.methods import TimeToFirstSpike
from lightning_snn.methods.ttfs.windows import rescale
from tests.support.recipes import load_recipe, run_recipe

TINY = ("--network.channels", '[4, "M", 6]', "--data.batch_size", "16", "--model.learning_rate", "0.03")
QUICK = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--output", "run")


pytestmark = pytest.mark.usefixtures("without_figures_of_the_report", "without_figures_of_spike_times")


def test_the_ann_is_mapped_exactly_and_fine_tuned(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("ttfs_cifar10")
    monkeypatch.setattr(recipe, "EPOCHS", 1)
    cli = run_recipe(
        "ttfs_cifar10", monkeypatch, "--data.root", str(images), *TINY, *QUICK, "--trainer.max_epochs", "4"
    )
    network = cli.model.network
    assert {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d} <= {type(layer) for layer in network}
    assert cli.report.results["accuracy"] > 0.6  # chance is 0.25

    method = TimeToFirstSpike(input_shape=(3, 32, 32), time_domain=True)
    mapped = recipe.compare(network, method, cli.datamodule)
    assert mapped["test images"] == 40
    assert mapped["mismatches"] == 0
    # not bitwise, as spike times are in between
    assert 0 < mapped["largest logit difference"] < 1e-12
    assert 0 < mapped["spikes per neuron"] < 1

    tuned = recipe.fine_tune(cli)
    assert tuned["hardware/accuracy_unconstrained"] > 0.6
    assert tuned["latency"] < mapped["latency (input windows)"]
    assert {"accuracy", "spikes_per_neuron", "hardware/accuracy_before", "hardware/accuracy_after"} <= set(tuned)


def test_a_map_that_is_not_exact_shows(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("ttfs_cifar10")
    options = ("--data.root", str(images), *TINY, *QUICK, "--trainer.fast_dev_run", "true")
    cli = run_recipe("ttfs_cifar10", monkeypatch, *options)
    # windows are too short for the largest activations
    monkeypatch.setattr(recipe, "calibrate", lambda network, batches: rescale(network, 0.01))
    method = TimeToFirstSpike(input_shape=(3, 32, 32), time_domain=True, overflow="clip")
    assert recipe.compare(cli.model.network, method, cli.datamodule)["largest logit difference"] > 1e-3
