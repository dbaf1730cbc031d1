"""The benchmark of uncertainty on a handful of images: its images, its scores and its files."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "uncertainty", raising=False)
    module = importlib.import_module("uncertainty")
    monkeypatch.delitem(sys.modules, "uncertainty")
    return module


def images_file(path: Path, *shape: int, train: int = 40, test: int = 20) -> str:
    random = np.random.default_rng(0)
    arrays = {}
    for part, number in (("train", train), ("test", test)):
        arrays[f"x_{part}"] = random.integers(0, 256, (number, *shape), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(number) % 10
    np.savez(path, **arrays)
    return str(path)


def test_scrambled_digits_have_the_pixels_of_the_digits_in_an_order_of_their_own(benchmark):
    images = torch.arange(784).remainder(256).to(torch.uint8).expand(3, -1).reshape(3, 1, 28, 28)
    found = benchmark.scrambled(images, seed=4)
    assert torch.equal(found.flatten(1).sort().values, images.flatten(1).sort().values)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found, benchmark.scrambled(images, seed=4))
    assert not torch.equal(found, benchmark.scrambled(images, seed=5))


def test_photographs_are_cropped_to_their_middle_and_turned_gray(benchmark):
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[0, :, 2, 2] = torch.tensor([255, 0, 0])
    images[0, :, 29, 29] = torch.tensor([10, 200, 30])
    images[0, :, 1, :] = images[0, :, :, 30] = 255
    found = benchmark.gray_centers(images)
    assert found.shape == (1, 1, 28, 28)
    assert found.dtype == torch.uint8
    assert (found[0, 0, 0, 0].item(), found[0, 0, -1, -1].item()) == (round(0.299 * 255), 124)
    assert found.count_nonzero() == 2


def test_one_command_trains_scores_and_draws(benchmark, tmp_path, capsys):
    output = tmp_path / "results"
    files = ["--mnist", images_file(tmp_path / "m.npz", 28, 28), "--cifar", images_file(tmp_path / "c.npz", 32, 32, 3)]
    sizes = ["--seeds", "0", "1", "--epochs", "1", "--samples", "2", "--threads", str(torch.get_num_threads())]
    benchmark.main([*files, *sizes, "--output", str(output)])
    found = json.loads((output / "uncertainty.json").read_text())
    runs, means = found["runs"], found["means"]
    assert [run["predictor"] for run in runs] == 2 * ["surrogate", "Bayes mean", "Bayes K=2"]
    assert [("AUROC photos I" in run, "AURC I" in run) for run in means] == [
        (False, False),
        (False, False),
        (True, True),
    ]
    assert means[2]["NLL"] == pytest.approx((runs[2]["NLL"] + runs[5]["NLL"]) / 2)
    assert runs[1]["NLL"] != runs[2]["NLL"]
    assert {path.name for path in output.glob("*.png")} == {
        "risk_coverage.png",
        *("H_surrogate.png", "H_Bayes_mean.png", "H_Bayes_K2.png", "I_Bayes_K2.png"),
    }
    assert "AUROC scrambled H" in capsys.readouterr().out
