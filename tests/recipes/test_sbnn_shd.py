from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.support.recipes import RECIPES, run_recipe

RECIPE = RECIPES / "sbnn_shd.py"


def write_shd(root: Path) -> None:
    """Files in the published layout. A class is a band of channels that glides upwards, or downwards from class 10 on:
    the counts of a whole recording tell ten pairs of classes apart, the order of spikes the two of a pair."""
    rng = np.random.default_rng(0)
    root.mkdir()
    for split, samples, speakers in (("train", 400, (0, 1, 2, 3, 6, 7, 8, 9, 10, 11)), ("test", 100, (4, 5))):
        with h5py.File(root / f"shd_{split}.h5", "w") as file:
            times = file.create_dataset("spikes/times", (samples,), h5py.vlen_dtype(np.float16))
            units = file.create_dataset("spikes/units", (samples,), h5py.vlen_dtype(np.uint16))
            labels = np.arange(samples) % 20
            for index, label in enumerate(labels):
                t = np.sort(rng.uniform(0.05, 0.95, 2000))
                glide = 60 * (t if label < 10 else 1 - t)
                times[index] = t.astype(np.float16)
                units[index] = (64 * (label % 10) + glide + rng.uniform(0, 40, 2000)).astype(np.uint16)
            file["labels"] = labels.astype(np.uint16)
            file["extra/speaker"] = np.array(speakers, np.uint16)[np.arange(samples) // 20 % len(speakers)]
            file["extra/keys"] = np.array([f"key{index}" for index in range(20)], "S10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shd")
    write_shd(folder / "files")
    return folder


def learn(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict:
    """Return the results of the recipe on the simplified digits with a small network."""
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(folder / "cache"))
    small = [
        "--data",
        "SHD",
        "--data.root",
        str(folder / "files"),
        "--data.batch_size",
        "32",
        "--data.time_steps",
        "20",
    ]
    quick = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    return run_recipe("sbnn_shd", monkeypatch, *small, *quick, *arguments).report.results


def test_without_data_the_recipe_says_where_they_come_from_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as stop:
        run_recipe("sbnn_shd", monkeypatch, "--data", "SHD")
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    for part in ("`root`", "zenkelab.org/resources", "shd_train.h5", "shd_test.h5", "gunzip", "CC BY 4.0"):
        assert part in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("absent", ["files", "folder"])
def test_a_root_without_the_files_ends_with_what_to_do(
    absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path if absent == "files" else tmp_path / "absent"
    with pytest.raises(SystemExit, match="2"):
        run_recipe("sbnn_shd", monkeypatch, "--data", "SHD", "--data.root", str(root), "--trainer.accelerator", "cpu")
    assert "zenkelab.org/resources" in capsys.readouterr().err


def test_by_default_it_learns_simulated_digits_and_needs_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_figures_of_the_report: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path / "cache"))
    people = [f"--data.{name}={1}" for name in ("train_speakers", "val_speakers", "test_speakers", "repetitions")]
    small = [*people, "--data.time_steps=10", "--data.processes=1", "--network.hidden=[8]"]
    quick = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    results = run_recipe("sbnn_shd", monkeypatch, *small, *quick).report.results
    assert (results["data"], results["network"]) == ("SpokenDigits", "RecurrentNet")
    assert list((tmp_path / "cache").glob("spoken_digits-train-*"))


@pytest.mark.parametrize(("network", "method"), [("MLP", "SpikingBayes"), ("RecurrentNet", "SurrogateGradient")])
def test_other_networks_and_methods_take_the_same_data(
    network: str, method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--network", network, "--network.hidden", "[8]", "--method", method)
    results = learn(folder, monkeypatch, *options, "--trainer.fast_dev_run", "true")
    assert (results["network"], results["method"]) == (network, method)


def test_it_learns_classes_that_differ_only_in_the_order_of_spikes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--network.hidden", "[64]", "--model.learning_rate", "0.01", "--trainer.max_epochs", "8")
    noisy = ("--method.mean_epochs", "4", "--method.warmup_epochs", "2")
    results = learn(folder, monkeypatch, *options, *noisy, "--output", "run")
    # chance is 0.05; without the order of spikes no network has more than about 0.5
    assert results["accuracy"] > 0.7
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["data"], metrics["network"], metrics["method"]) == ("SHD", "RecurrentNet", "SpikingBayes")
    assert metrics["spikes_per_neuron_per_step"] > 0
    assert metrics["synaptic_operations_per_sample"] > 0
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {
        "training_curves.png",
        "anytime_samples.png",
        "anytime_scores.png",
        "confusion_matrix.png",
        "reliability.png",
        "raster.png",
    }
