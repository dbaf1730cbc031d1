"""Exact resuming and noise over two processes. Apart from the other tests, so that a new process imports little."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lightning_snn import LIF, SpikingModule
from lightning_snn.callbacks import ExactResume
from lightning_snn.methods import SpikingBayes
from tests.support.processes import on_two_processes
from tests.support.resuming import CLASSES, FEATURES, Run, augmented, validation

STEPS_OF_AN_EPOCH = (5, 6, 8)  # of 4 batches: the first, a middle one, the last


class Draws(pl.Callback):
    """The first number that each process would draw in training."""

    def __init__(self) -> None:
        self.first: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.first:
            state = torch.get_rng_state()
            self.first.append(float(torch.rand(())))
            torch.set_rng_state(state)


class Weights(pl.Callback):
    """The weights before training."""

    def __init__(self) -> None:
        self.before = torch.empty(0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before = torch.cat([each.detach().flatten() for each in pl_module.parameters()])


def noisy() -> SpikingModule:
    network = nn.Sequential(nn.Linear(FEATURES, 6), LIF(0.8), nn.Dropout(0.2), nn.Linear(6, CLASSES))
    return SpikingModule(network, SpikingBayes(samples=2), num_classes=CLASSES, learning_rate=0.05)


def data() -> tuple[Any, ...]:
    return augmented(batch_size=3, num_workers=int(os.environ["WORKERS"])), validation()


def launched(rank: int) -> Any:
    variables = {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "localhost"}
    variables |= {"MASTER_PORT": "0", "GROUP_RANK": "0", "RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    return mock.patch.dict(os.environ, variables)


def fits(rank: int) -> dict[str, list[Tensor]]:
    """Fit, and resume from the first step of an epoch, a middle one and the last one; all in this process."""
    folder = Path(os.environ["RESUME_FOLDER"])
    exact = os.environ["EXACT"] == "1"

    def callbacks() -> Sequence[pl.Callback]:
        return [ExactResume()] if exact else []

    # the other process is a daemon, which ends with the tests, and may have no workers otherwise
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    draws, weights = Draws(), Weights()
    with launched(rank):
        options = {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo"), "max_epochs": 3}
        run = Run(folder, noisy, data, callbacks, **options)
        found = {"whole": run.whole(draws, weights)}
        for step in map(int, os.environ["RESUMED"].split()):
            run.options["strategy"] = DDPStrategy(process_group_backend="gloo")
            found[str(step)] = run.resumed(step)
    return {**found, "noise": [torch.tensor(draws.first)], "weights": [weights.before]}


def results(
    tmp_path: Path, exact: bool, workers: int = 0, steps: Sequence[int] = STEPS_OF_AN_EPOCH
) -> list[dict[str, list[Tensor]]]:
    (tmp_path / "group").mkdir()
    chosen = {"RESUME_FOLDER": str(tmp_path), "EXACT": str(int(exact)), "WORKERS": str(workers)}
    chosen["RESUMED"] = " ".join(map(str, steps))
    with mock.patch.dict(os.environ, chosen):
        return on_two_processes(fits, tmp_path / "group")


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_two_processes_resume_exactly_with_different_noise_and_equal_weights(tmp_path: Path) -> None:
    first, second = results(tmp_path, exact=True)
    for found in (first, second):
        for step in map(str, STEPS_OF_AN_EPOCH):
            assert equal(found[step], found["whole"]), step
    assert not torch.equal(first["noise"][0], second["noise"][0])
    assert torch.equal(first["weights"][0], second["weights"][0])
    assert equal(first["whole"][:-2], second["whole"][:-2]), "weights and optimizer"
    assert not torch.equal(first["whole"][-2], second["whole"][-2]), "generators"


@pytest.mark.slow  # four processes with two workers each
def test_two_processes_with_workers_resume_exactly(tmp_path: Path) -> None:
    for found in results(tmp_path, exact=True, workers=1, steps=[6]):
        assert equal(found["6"], found["whole"])


def test_without_it_two_processes_do_not(tmp_path: Path) -> None:
    for found in results(tmp_path, exact=False):
        assert not any(equal(found[step], found["whole"]) for step in map(str, STEPS_OF_AN_EPOCH))
