from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_snn.methods import ExpectationPropagation
from tests.support.recipes import load_recipe, parse_recipe, run_recipe

QUICK = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--output", "run")


def test_the_defaults_are_steps_of_a_population_and_fixed_batches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = parse_recipe("ep_regression", monkeypatch, "--trainer.accelerator", "cpu")
    assert type(cli.model.method) is ExpectationPropagation
    assert cli.model.method.activation == "heaviside"
    assert cli.model.method.noise_variance == pytest.approx(cli.datamodule.noise**2)
    assert (cli.datamodule.batch_size, cli.datamodule.fixed_batches) == (100, True)
    sizes = [(layer.in_features, layer.out_features) for layer in cli.config_init.network if hasattr(layer, "weight")]
    assert sizes == [(100, 128), (128, 1)]


def test_it_is_less_certain_in_the_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_snn.callbacks.report.log_figure", lambda *arguments: None)
    tiny = ("--data.train_size", "400", "--network.hidden", "[32]", "--trainer.max_epochs", "4")
    cli = run_recipe("ep_regression", monkeypatch, *tiny, *QUICK)
    recipe = load_recipe("ep_regression")
    places, x = cli.datamodule.grid()
    prediction = recipe.predict(cli.model, x)
    sd = recipe.deviation(prediction)
    assert torch.all(sd**2 < prediction.variance[:, 0])  # which has the noise of observations too
    truth = cli.datamodule.truth(places)
    found = recipe.scores(prediction.mean[:, 0], sd, truth, places, cli.datamodule.intervals)
    among, gap = found["among the data"], found["in the gap"]
    assert among["mean squared error"] < 0.1 < gap["mean squared error"]
    assert gap["standard deviation"] > 1.3 * among["standard deviation"]

    monkeypatch.setattr(recipe, "EPOCHS", 20)
    adam = recipe.by_adam(cli, x)
    assert adam.shape == places.shape
    of_adam = recipe.scores(adam, torch.zeros_like(sd), truth, places, cli.datamodule.intervals)
    assert of_adam["among the data"]["mean squared error"] < 0.1
    assert of_adam["among the data"]["within two of them"] == 0


def test_scores_are_those_counted_by_hand():
    recipe = load_recipe("ep_regression")
    places = torch.tensor([0.5, 1.1, 1.5, 2.0, 3.0])
    mean = torch.tensor([0.1, 9.0, 1.0, 3.0, -0.3])
    sd = torch.tensor([0.1, 9.0, 1.0, 1.0, 0.1])
    found = recipe.scores(mean, sd, torch.zeros(5), places, ((0.0, 1.0), (2.5, 4.0)))
    assert found["among the data"] == pytest.approx(
        {"mean squared error": 0.05, "standard deviation": 0.1, "within two of them": 0.5}
    )
    assert found["in the gap"] == pytest.approx(
        {"mean squared error": 5.0, "standard deviation": 1.0, "within two of them": 0.5}
    )
