from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_snn.nn import MembraneResidual
from tests.support.recipes import run_recipe


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class is the color of a square on noise, in the layout of the .npz part of CIFAR-10."""
    rng = np.random.default_rng(0)
    colors = np.array([(r, g, b) for r in (0, 160) for g in (0, 80, 160) for b in (0, 160)], np.uint8)[:10]
    arrays = {}
    for split, count in (("train", 400), ("test", 100)):
        labels = np.arange(count) % 10
        pictures = rng.integers(0, 80, (count, 32, 32, 3), dtype=np.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            picture[4:28, 4:28] += colors[label]
        arrays[f"{split}_x"], arrays[f"{split}_y"] = pictures, labels.astype(np.int64)
    path = tmp_path_factory.mktemp("cifar10") / "part.npz"
    np.savez(path, **arrays)
    return path


SMALL = ("--network.channels", "[8,8]", "--network.blocks", "1", "--data.batch_size", "20", "--data.time_steps", "2")


@pytest.mark.parametrize("method", ["SpikingBayes", "SurrogateGradient", "NoisySpikes"])
def test_every_method_trains_the_network_without_normalization(method, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--data.root", str(images), *SMALL, "--method", method, "--trainer.accelerator", "cpu")
    cli = run_recipe("sbnn_cifar10", monkeypatch, *options, "--trainer.fast_dev_run", "true")
    network = cli.model.network
    assert any(isinstance(layer, MembraneResidual) for layer in network.modules())
    assert not any(isinstance(layer, torch.nn.modules.batchnorm._NormBase) for layer in network.modules())
    assert (cli.report.results["method"], cli.report.results["data"]) == (method, "CIFAR10")


def test_batch_norm_is_refused_with_a_posterior_by_name(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ("--data.root", str(images), *SMALL, "--network.batch_norm", "true")
    with pytest.raises(SystemExit, match="2"):
        run_recipe("sbnn_cifar10", monkeypatch, *options)
    assert "BatchNorm2d" in capsys.readouterr().err


def test_it_learns_the_color_of_a_square(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--data.root", str(images), *SMALL, "--method.samples", "2", "--trainer.max_epochs", "6")
    quick = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--output", "run")
    results = run_recipe("sbnn_cifar10", monkeypatch, *options, *quick, "--model.learning_rate", "0.01").report.results
    assert results["accuracy"] > 0.6  # chance is 0.1
    assert (tmp_path / "run" / "metrics.json").is_file()
