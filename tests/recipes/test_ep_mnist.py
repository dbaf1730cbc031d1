from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_snn.callbacks import PassScores
from lightning_snn.methods import ExpectationPropagation, SurrogateGradient
from tests.support.recipes import load_recipe, parse_recipe, run_recipe, write_digits

pytestmark = pytest.mark.usefixtures("without_figures_of_the_report")

QUICK = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--output", "run")
TINY = ("--data.batch_size", "120", "--network.hidden", "[16]", "--trainer.max_epochs", "2")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("mnist") / "rows.npz", noise=140, brightness=100)


@pytest.mark.parametrize("hidden", [[128], []])
def test_the_defaults_are_one_spike_a_pixel_and_fixed_batches(hidden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("--data.root", "mnist.npz", "--trainer.accelerator", "cpu", "--network.hidden", str(hidden))
    cli = parse_recipe("ep_mnist", monkeypatch, *arguments)
    assert type(cli.model.method) is ExpectationPropagation
    assert (cli.datamodule.time_steps, cli.datamodule.batch_size, cli.datamodule.fixed_batches) == (1, 500, True)
    x = cli.datamodule.encoder(torch.tensor([[127, 128]]) / 255)
    assert x.tolist() == [[[0, 1]]]
    plain = [layer.out_features for layer in cli.config_init.network if isinstance(layer, torch.nn.Linear)]
    assert plain == [*hidden, 10]
    assert cli.trainer.max_epochs == 3


def test_it_learns_next_to_adam_and_reports_both(digits: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli = run_recipe("ep_mnist", monkeypatch, "--data.root", str(digits), *TINY, *QUICK)
    (scores,) = (each for each in cli.trainer.callbacks if isinstance(each, PassScores))
    assert [row["epochs"] for row in scores.rows][-1] == 2
    assert len({row["epochs"] for row in scores.rows}) == len(scores.rows) >= 6
    assert scores.rows[-1]["accuracy"] > 0.6  # chance is 0.1
    assert scores.rows[-1]["bit_accuracy"] > 0.9

    recipe = load_recipe("ep_mnist")
    for name, value in {"EPOCHS": 2, "BATCH": 10, "LEARNING_RATE": 0.03}.items():
        monkeypatch.setattr(recipe, name, value)
    rows = recipe.by_adam(cli, recipe.IndependentSpikes())
    assert [row["epochs"] for row in rows] == [1, 2]
    assert rows[-1]["accuracy"] > 0.2
    assert rows[-1]["bit_accuracy"] > 0.85
    assert np.isnan(recipe.by_adam(cli, SurrogateGradient())[-1]["bit_accuracy"])
    assert (cli.datamodule.batch_size, cli.datamodule.fixed_batches) == (120, True)

    lines = recipe.table({"EP": scores.rows, "Adam": rows}).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["EP", "1"], ["EP", "2"], ["Adam", "1"], ["Adam", "2"]]


def test_independent_spikes_descend_the_likelihood_of_every_output():
    recipe = load_recipe("ep_mnist")
    log_odds = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    y = torch.arange(6) % 4
    step = recipe.IndependentSpikes().training_step(torch.nn.Identity(), log_odds[None], y)
    p = log_odds.sigmoid()
    each = torch.where(torch.nn.functional.one_hot(y, 4).bool(), p, 1 - p)
    torch.testing.assert_close(step.objective, -each.log().sum(1).mean())
    found = recipe.IndependentSpikes().predict(torch.nn.Identity(), log_odds[None])
    torch.testing.assert_close(found.spike_probabilities, p)
    torch.testing.assert_close(found.mean, log_odds.softmax(1))
