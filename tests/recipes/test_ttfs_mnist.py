from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_snn.callbacks import HardwareFineTuning, SpikeTimes
from lightning_snn.methods import TimeToFirstSpike
from lightning_snn.methods.ttfs import FirstSpike
from tests.support.recipes import load_recipe, parse_recipe, run_recipe, write_digits

pytestmark = pytest.mark.usefixtures("without_figures_of_the_report")

TINY = ("--network.hidden", "[16]", "--data.batch_size", "20", "--model.learning_rate", "0.01")
QUICK = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--output", "run")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("mnist") / "rows.npz", noise=100, brightness=150)


def shortened(recipe: str, start_epoch: int) -> str:
    """The recipe's own callbacks, constraints from an earlier epoch on."""
    hardware, *others = load_recipe(recipe).PRESETS["TimeToFirstSpike"]["trainer.callbacks"]
    hardware["init_args"]["start_epoch"] = start_epoch
    return str([hardware, *others])


def test_the_defaults_fine_tune_a_sparse_network_for_four_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    cli = parse_recipe("ttfs_mnist", monkeypatch, "--data.root", "mnist.npz", "--trainer.accelerator", "cpu")
    assert type(cli.model.method) is TimeToFirstSpike
    assert cli.model.method.activity_penalty == 1e-3
    assert [layer.out_features for layer in cli.model.modules() if isinstance(layer, torch.nn.Linear)] == [340, 10]
    (hardware,) = (each for each in cli.trainer.callbacks if isinstance(each, HardwareFineTuning))
    found = hardware.constraints
    assert (found.time_bits, found.weight_bits, found.latency_factor, found.jitter) == (4, 4, 4, 0.05)
    assert hardware.start_epoch < cli.trainer.max_epochs


def test_it_learns_is_constrained_and_draws_its_spike_times(digits: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    callbacks = ("--trainer.callbacks", shortened("ttfs_mnist", 3), "--trainer.max_epochs", "5")
    cli = run_recipe("ttfs_mnist", monkeypatch, "--data.root", str(digits), *TINY, *QUICK, *callbacks)
    results = cli.report.results
    assert results["accuracy"] > 0.6  # chance is 0.1
    assert 0 < results["spikes_per_neuron"] < 1
    assert 0 < results["spikes_per_neuron/encoder"] <= 1
    (layer,) = (module for module in cli.model.modules() if isinstance(module, FirstSpike))
    assert results["latency"] == pytest.approx(1 + layer.window.item())
    for moment in ("unconstrained", "before", "after"):
        assert 0 <= results[f"hardware/accuracy_{moment}"] <= 1
    # the epochs before the constraints are not candidates for the best
    checkpoint = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["epoch"] >= 3
    assert (tmp_path / "run" / "spike_times.png").is_file()
    table = capsys.readouterr().out
    assert "validation accuracy after fine-tuning" in table
    assert "latency (input windows)" in table


def test_another_method_needs_no_spike_times(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    options = ("--method", "SurrogateGradient", "--trainer.fast_dev_run", "true")
    cli = run_recipe("ttfs_mnist", monkeypatch, "--data.root", str(digits), *TINY, *QUICK, *options)
    assert not any(isinstance(each, (HardwareFineTuning, SpikeTimes)) for each in cli.trainer.callbacks)


def test_the_figure_of_the_spectra_has_a_panel_for_each_slope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = load_recipe("ttfs_mnist")
    monkeypatch.setattr(recipe, "DEPTH", 3)
    monkeypatch.setattr(recipe, "WIDTH", 8)
    drawn = {}
    monkeypatch.setattr("lightning_snn.figures.jacobian_spectra", lambda panels: drawn.update(panels))
    monkeypatch.setattr("lightning_snn.figures.save", lambda figure, path: drawn.update(path=path))
    recipe.draw_jacobian_spectra(torch.rand(1, 6), tmp_path)
    assert drawn.pop("path") == tmp_path / "jacobian_spectra.png"
    assert [values.numel() for values in drawn.values()] == [16, 16, 16, 16]
    assert all(torch.isfinite(values).all() for values in drawn.values())
