from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_snn import methods
from lightning_snn.callbacks import Report
from lightning_snn.cli import RecipeCLI, main
from tests.support.networks import parameters_of
from tests.support.processes import PATIENCE, wait_until, with_checkout
from tests.support.recipes import load_recipe, parse_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "sbnn_dvs.py"
TINY = [
    *("--data.train_subjects", "2", "--data.val_subjects", "1", "--data.test_subjects", "1", "--data.repetitions", "1"),
    *("--data.time_steps", "4", "--trainer.accelerator", "cpu"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def start(cache: Path, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(RECIPE), *arguments],
        cwd=folder,
        env=with_checkout({"LIGHTNING_SNN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts background jobs that ignore Ctrl-C, and their children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def write_nmnist(root: Path) -> None:
    """A tree of N-MNIST recordings in which each digit makes events in its own place."""
    rng = np.random.default_rng(0)
    for split, samples in (("Train", 3), ("Test", 1)):
        for digit in range(10):
            for sample in range(samples):
                t = np.sort(rng.integers(0, 300_000, 200))
                x, y = 3 * digit + rng.integers(0, 4, 200), rng.integers(0, 34, 200)
                high = (rng.integers(0, 2, 200) << 7) | (t >> 16)
                file = root / split / str(digit) / f"{sample:05d}.bin"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(np.stack([x, y, high, t >> 8 & 255, t & 255], 1).astype(np.uint8).tobytes())


def test_the_recipe_runs_from_the_command_line(cache: Path, tmp_path: Path) -> None:
    process = start(cache, tmp_path, *TINY, "--trainer.max_epochs", "1")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    for line in (
        "accuracy",
        "within-pair direction accuracy",
        "expected calibration error",
        "spikes per neuron per step",
    ):
        assert f"\n  {line} " in out
    assert "epoch 1/1  train/loss" in out, "no progress bar, but a line per epoch, where there is no terminal"
    (folder,) = (tmp_path / "runs" / "sbnn_dvs").iterdir()
    assert {path.name for path in folder.glob("*.png")} == {
        "training_curves.png",
        "anytime_samples.png",
        "anytime_scores.png",
        "confusion_matrix.png",
        "reliability.png",
        "raster.png",
        "events.png",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["data"], metrics["method"]) == ("Gestures", "SpikingBayes")
    for noise in ("💡", "Traceback", "Warning", "does not have many workers"):
        assert noise not in out + err


@pytest.mark.slow  # three processes
def test_two_recipes_at_once_fill_an_empty_cache_and_have_their_own_results(cache: Path, tmp_path: Path) -> None:
    empty = tmp_path / "cache"
    options = (*TINY, "--trainer.max_epochs", "1")
    runs = [start(empty, tmp_path, *options, "--output", name) for name in ("one", "two")]
    alone = start(cache, tmp_path, *options, "--output", "alone")
    for process in (*runs, alone):
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert "Traceback" not in err
    results = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two", "alone")]
    for name in ("accuracy", "nll", "per_class", "spikes_per_neuron_per_step"):
        assert results[0][name] == results[1][name] == results[2][name]
    assert {path.name for path in empty.iterdir()} == {path.name for path in cache.iterdir()}, "nothing stray"


def interrupt(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C, again after a while as people do, until a process ends; return its errors."""
    end = time.monotonic() + PATIENCE
    while True:
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            assert time.monotonic() < end, "Ctrl-C never ended the process"


@pytest.mark.slow  # as tests/cli/test_stopping.py, with the main job
def test_ctrl_c_during_training_says_how_to_resume(cache: Path, tmp_path: Path) -> None:
    process = start(cache, tmp_path, *TINY, "--trainer.max_epochs", "1000", "--output", "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    metrics = tmp_path / "run" / "logs" / "version_0" / "metrics.csv"
    wait_until(lambda: last.is_file() and metrics.is_file(), process)
    err = interrupt(process)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    command = shlex.split(err.strip().splitlines()[-1])
    assert command == ["python", str(RECIPE), "--ckpt_path", "run/checkpoints/last.ckpt"]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["max_epochs"] == 1000


def test_the_recipe_learns_real_formats_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nmnist(tmp_path / "nmnist")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path / "cache"))
    arguments = ["--data", "NMNIST", "--data.root", "nmnist", "--data.time_steps", "4", "--data.val_fraction", "0.4"]
    monkeypatch.setattr(Report, "_test_figures", lambda self, trainer: {})
    quick = [
        "--trainer.max_epochs",
        "1",
        "--network.hidden",
        "8",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.accelerator",
        "cpu",
        "--output",
        "run",
    ]
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *arguments, *quick])
    script = load_recipe("sbnn_dvs")
    results = main(str(RECIPE), script.DEFAULTS, getattr(script, "PRESETS", None)).report.results
    assert results["data"] == "NMNIST"
    assert "pair_accuracy" not in results
    assert results["synaptic_operations_per_sample"] > 0


@pytest.mark.parametrize("method", [name for name in methods.__all__ if name in ("SpikingBayes", "SurrogateGradient")])
@pytest.mark.parametrize("network", ["EventConvNet", "MLP"])
@pytest.mark.parametrize("data", [["Gestures"], ["MNIST", "--data.root", "x"], ["DVSGesture", "--data.root", "x"]])
def test_every_choice_can_be_combined_with_every_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: list[str], network: str, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", *data, "--network", network, "--method", method, "--trainer.accelerator", "cpu"]
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *arguments])
    script = load_recipe("sbnn_dvs")
    cli = RecipeCLI(str(RECIPE), script.DEFAULTS, getattr(script, "PRESETS", {}))
    assert [kind.__name__ for kind in cli.classes.values()] == [data[0], network, method]


def test_the_small_variant_has_a_fifth_of_the_weights_and_leaves_other_networks_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    default = parse_recipe("sbnn_dvs", monkeypatch, "--trainer.accelerator", "cpu").model.network
    small = parse_recipe("sbnn_dvs", monkeypatch, "--small", "true", "--trainer.accelerator", "cpu").model.network
    assert 4 < parameters_of(default) / parameters_of(small) < 6
    options = ("--small", "true", "--network", "MLP", "--trainer.accelerator", "cpu")
    assert type(parse_recipe("sbnn_dvs", monkeypatch, *options).model.network).__name__ == "MLP"
