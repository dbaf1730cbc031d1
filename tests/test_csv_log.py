"""Metrics in a CSV file that is whole at any time."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from lightning_snn.csv_log import AtomicCSVLogger
from lightning_snn.figures import read_history
from tests.support.faults import killed, largest_file
from tests.support.training import trainer


class Logged(BoringModel):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        self.log("test/loss", super().test_step(batch, batch_idx)["y"])


def metrics(kind: type[CSVLogger], folder: Path) -> str:
    torch.manual_seed(0)
    logger = kind(folder, "logs", flush_logs_every_n_steps=2)
    running = trainer(logger=logger, max_epochs=2, limit_train_batches=4, limit_val_batches=0, log_every_n_steps=1)
    model = Logged()
    running.fit(model)
    running.test(model, verbose=False)
    return (Path(logger.log_dir) / "metrics.csv").read_text()


def test_the_file_is_that_of_lightning(tmp_path: Path) -> None:
    expected, found = (metrics(kind, tmp_path / kind.__name__) for kind in (CSVLogger, AtomicCSVLogger))
    assert found == expected
    assert len(found.splitlines()) == 10
    history = read_history(tmp_path / "AtomicCSVLogger" / "logs" / "version_0" / "metrics.csv")
    assert set(history) == {"test/loss", "train/loss"}


def log_test(logger: CSVLogger) -> None:
    logger.log_metrics({"test/loss": 0.25}, step=8)
    logger.save()


@pytest.mark.parametrize("kind", [AtomicCSVLogger, CSVLogger])
def test_metrics_of_the_run_survive_a_failure_while_a_new_name_is_logged(kind: type[CSVLogger], tmp_path: Path) -> None:
    """With the logger of Lightning as the negative control."""
    logger = kind(tmp_path, "logs")
    for step in range(100):
        logger.log_metrics({"train/loss": 1 / (step + 1)}, step)
    logger.save()
    file = Path(logger.log_dir) / "metrics.csv"
    before, left, moment = file.read_bytes(), set(), 1
    while killed(lambda: log_test(logger), moment):
        left.add(file.read_bytes())
        file.write_bytes(before)
        for stray in file.parent.glob(".*"):
            stray.unlink()
        moment += 1
    after = file.read_bytes()
    assert (left == {before, after}) == (kind is AtomicCSVLogger)
    file.write_bytes(before)
    with largest_file(len(before) // 2), pytest.raises(OSError, match=r"File too large|larger than") as caught:
        log_test(logger)
    assert caught.value.errno == errno.EFBIG
    assert (file.read_bytes() == before) == (kind is AtomicCSVLogger)
