"""The module, the report and the uncertainty logger give one expected calibration error for the same predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_snn import SpikingModule, figures
from lightning_snn.callbacks import Report, UncertaintyLogger
from tests.metrics.test_calibration import equal_width_by_hand
from tests.support.figures import save_nothing
from tests.support.training import one_step, trainer

N, CLASSES = 60, 4


def logits() -> tuple[Tensor, Tensor]:
    """Logits `[N, C]` and classes `[N]`; the softmax of every third row is exactly one-hot, and half of these err."""
    outputs = torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(0))
    targets = outputs.argmax(1)
    outputs[::3] *= 1000
    targets[::6] = (targets[::6] + 1) % CLASSES
    # confidences of about 0.95, all right
    outputs[1::3] = torch.eye(CLASSES)[targets[1::3]] * 4
    return outputs, targets


class Passes(nn.Module):
    """A network whose outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class WithoutMetrics(SpikingModule):
    """A module whose steps return predictions and log nothing, so that the report computes its own scores."""

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        return {"prediction": self.method.predict(self.network, batch[0]), "target": batch[1]}


def errors(folder: Path, module: SpikingModule) -> dict[str, float]:
    outputs, targets = logits()
    report, logger = Report(folder), UncertaintyLogger(folder=folder)
    testing = trainer(report, logger, default_root_dir=folder)
    data = DataLoader(TensorDataset(outputs, targets), batch_size=7, collate_fn=one_step)
    with mock.patch.object(figures, "save", save_nothing):
        (logged,) = testing.test(module, data, verbose=False)
    return {"report": report.results["ece"], "test": logged["test/ece"], "logger": logged["uncertainty/test/ece"]}


def test_module_report_and_logger_give_the_same_calibration_error(tmp_path: Path) -> None:
    outputs, targets = logits()
    probabilities = outputs.softmax(1)
    assert (probabilities.max(1).values == 1).sum() == N / 3
    expected = equal_width_by_hand(probabilities, targets, 15)
    theirs = multiclass_calibration_error(probabilities, targets, num_classes=CLASSES, n_bins=15, norm="l1").item()
    assert theirs - expected > 1e-3

    logging = SpikingModule(Passes(), num_classes=CLASSES)
    assert "test/ece" in logging.test_metrics.compute()
    with_metrics = errors(tmp_path, logging)
    without = errors(tmp_path, WithoutMetrics(Passes(), num_classes=CLASSES))
    found = {"module": with_metrics["test"], "report": without["report"], "logger": with_metrics["logger"]}
    assert found == dict.fromkeys(found, pytest.approx(expected, abs=1e-7))
    # Lightning keeps logged numbers in float32, and those of metrics in their own dtype.
    assert len({np.float32(value) for value in found.values()}) == 1
