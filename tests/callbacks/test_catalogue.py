"""Every file of the drop-in catalogue runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_snn.callbacks import GradientAlignment, Report
from tests.recipes.loading import parse_recipe, run_recipe

CATALOGUE = Path(__file__).resolve().parents[2] / "callbacks"


def test_the_report_script_writes_its_report(tmp_path):
    folder = tmp_path / "report"
    subprocess.run(
        [sys.executable, CATALOGUE / "report.py", folder], check=True, cwd=tmp_path, capture_output=True, timeout=120
    )
    assert {file.name for file in folder.iterdir()} >= {
        "metrics.json",
        "confusion_matrix.png",
        "reliability.png",
        "training_curves.png",
        "raster.png",
    }
    assert json.loads((folder / "metrics.json").read_text())["accuracy"] > 0.6


def test_the_alignment_script_prints_the_alignment_of_every_layer(tmp_path):
    done = subprocess.run(
        [sys.executable, CATALOGUE / "gradient_alignment.py"],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = dict(line.split() for line in done.stdout.splitlines() if line.startswith("alignment/"))
    layers = ["0", "2", "4", "all"]
    assert set(found) == {f"alignment/{quantity}/{layer}" for quantity in ("cosine", "norm_ratio") for layer in layers}
    assert 0.8 < float(found["alignment/cosine/all"]) <= 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("fragment", sorted(CATALOGUE.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_fragment_adds_its_callback_to_those_of_a_recipe(fragment, times, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    quiet = ["--method", "SurrogateGradient", "--trainer.accelerator", "cpu"]
    plain = parse_recipe("sbnn_dvs", monkeypatch, *quiet)
    cli = parse_recipe("sbnn_dvs", monkeypatch, *quiet, *["--config", str(fragment)] * times)
    kinds = [type(callback) for callback in cli.trainer.callbacks]
    added = kinds.copy()
    for callback in plain.trainer.callbacks:
        added.remove(type(callback))
    assert Report in kinds
    # fragments come beside each other, too
    (entry,) = yaml.safe_load(fragment.read_text())["trainer"]["callbacks+"]
    assert [f"lightning_snn.callbacks.{kind.__name__}" for kind in added] == [entry["class_path"]] * times


def test_the_alignment_fragment_measures_in_a_recipe(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path / "cache"))
    data = {"train_subjects": 2, "val_subjects": 1, "test_subjects": 1, "repetitions": 1, "time_steps": 4}
    cli = run_recipe(
        "sbnn_dvs",
        monkeypatch,
        *(part for name, value in data.items() for part in (f"--data.{name}", str(value))),
        *("--method", "RateBackprop", "--method.window", "step", "--network.hidden", "16"),
        *("--config", str(CATALOGUE / "gradient_alignment.yaml")),
        *("--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"),
    )
    (callback,) = (each for each in cli.trainer.callbacks if isinstance(each, GradientAlignment))
    assert callback.samples == 32
    assert cli.report.results["accuracy"] >= 0
    assert not (tmp_path / "runs").exists()


def test_every_file_has_its_row_in_the_table():
    table = (CATALOGUE / "README.md").read_text()
    files = [*CATALOGUE.glob("*.py"), *CATALOGUE.glob("*.yaml")]
    assert [file.name for file in files if f"({file.name})" not in table] == []
