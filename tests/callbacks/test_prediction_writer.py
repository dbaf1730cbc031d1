"""`PredictionWriter`: files of plain tensors, whatever the predictions are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, SpikingModule
from lightning_snn.callbacks import PredictionWriter
from lightning_snn.methods import SpikingBayes
from tests.support.training import one_step, trainer

N = 10
X, Y = torch.rand(N, 4, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 3


def loader(part: slice = slice(N), **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(X[part], Y[part]), 4, **options)


class Doubles(pl.LightningModule):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return 2 * (batch[0] if isinstance(batch, (tuple, list)) else batch)


def written(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


def test_tensors_and_targets_of_all_batches_are_written_in_order(tmp_path: Path) -> None:
    returned = trainer(PredictionWriter(tmp_path)).predict(Doubles(), loader())
    found = written(tmp_path / "predictions.pt")
    assert found.keys() == {"mean", "target"}
    assert torch.equal(found["mean"], 2 * X)
    assert torch.equal(found["mean"], torch.cat(returned))
    assert torch.equal(found["target"], Y)


def test_a_prediction_with_samples_loads_without_this_library(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))
    module = SpikingModule(network, SpikingBayes(samples=5), num_classes=3)
    predictions = trainer(PredictionWriter(tmp_path)).predict(module, loader(collate_fn=one_step))
    found = written(tmp_path / "predictions.pt")
    assert found["samples"].shape == (5, N, 3)
    assert torch.equal(found["samples"], torch.cat([each.samples for each in predictions], 1))
    assert torch.allclose(found["samples"].mean(0), found["mean"], atol=1e-6)
    script = "import sys, torch; torch.load(sys.argv[1], weights_only=True); assert 'lightning_snn' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "predictions.pt")], check=True, cwd=tmp_path)


def test_each_of_several_loaders_has_its_file_and_a_run_keeps_those_of_others(tmp_path: Path) -> None:
    loaders = {"first": loader(slice(6)), "second": DataLoader(X[6:], 4)}
    for _ in range(2):
        made = trainer(PredictionWriter(), default_root_dir=tmp_path)
        made.predict(Doubles(), loaders, return_predictions=False)
    names = ("predictions.pt", "predictions-1.pt", "predictions_1.pt", "predictions_1-1.pt")
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert torch.equal(written(tmp_path / names[0])["mean"], 2 * X[:6])
    assert written(tmp_path / names[2]).keys() == {"mean"}
    assert torch.equal(written(tmp_path / names[2])["mean"], 2 * X[6:])


def test_a_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    trainer(PredictionWriter(tmp_path), fast_dev_run=True).predict(Doubles(), loader())
    assert not list(tmp_path.iterdir())


def test_other_outputs_are_refused_in_the_first_batch(tmp_path: Path) -> None:
    class Other(Doubles):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            assert batch_idx == 0
            return {"logits": batch[0]}

    with pytest.raises(ValueError, match=r"of Other to return a tensor \[B, ...\], .* PredictionWriter, but got dict"):
        trainer(PredictionWriter(tmp_path)).predict(Other(), loader())
