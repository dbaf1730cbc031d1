"""The check of an initialization where two processes train together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, run
from lightning_snn.callbacks import InitializationCheck
from lightning_snn.callbacks.initialization import check_initialization, rescale
from lightning_snn.callbacks.initialization.thresholds import Band, Thresholds
from tests.support.processes import on_two_processes
from tests.support.training import one_step, trainer

X = torch.rand(32, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 3
NOTHING_PASSES = Thresholds(gradient_ratio=Band((1e9, 1e9), (1e9, 1e9)))


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0].flatten(0, 1)), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(rank: int, callbacks: list[pl.Callback], module: Any = None) -> tuple[pl.Trainer, Any]:
    """Run one step in one of two processes."""
    fitting = trainer(
        *callbacks,
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        use_distributed_sampler=False,  # which would shuffle
        max_steps=1,
    )
    module = Module() if module is None else module
    # the processes are there already
    with mock.patch.dict(os.environ, {"LOCAL_RANK": str(rank)}):
        fitting.fit(module, DataLoader(TensorDataset(X[rank::2], Y[rank::2]), 8, collate_fn=one_step))
    return fitting, module


def measured(rank: int) -> dict[str, Any]:
    """Return the logged values, the findings, and the weights after a step with and without a check."""
    check = InitializationCheck(network="network")
    trainer, module = fit(rank, [check])
    _, unchecked = fit(rank, [])
    logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("initialization/")}
    found = {f"initialization/{each.quantity}/{each.layer}": each.value for each in check.findings}
    return {"logged": logged, "found": found, "state": module.state_dict(), "unchecked": unchecked.state_dict()}


def failing_on_the_second(rank: int) -> str:
    """Return the error of a check that fails on rank 1 only."""
    check = InitializationCheck("raise", network="network", thresholds=NOTHING_PASSES if rank == 1 else None)
    try:
        fit(rank, [check])
    except RuntimeError as error:
        return str(error)
    return ""


def test_each_process_measures_its_part_and_the_mean_is_logged(tmp_path: Path):
    of_ranks = on_two_processes(measured, tmp_path)
    for rank, each in enumerate(of_ranks):
        x, y = X[rank::2][:8], Y[rank::2][:8]
        expected = check_initialization(Module().network, (x[None], y))
        assert each["found"] == pytest.approx(
            {f"initialization/{found.quantity}/{found.layer}": found.value for found in expected}, rel=1e-5
        )
    first, second = of_ranks
    assert first["found"] != second["found"]
    for name, value in first["logged"].items():
        assert value == second["logged"][name]
        assert value == pytest.approx((first["found"][name] + second["found"][name]) / 2, rel=1e-5)
    assert first["logged"].keys() == first["found"].keys()


def test_two_processes_train_as_without_the_check(tmp_path: Path):
    for each in on_two_processes(measured, tmp_path):
        for name, value in each["state"].items():
            assert torch.equal(value, each["unchecked"][name]), name


def test_a_failure_in_one_process_is_a_failure_of_all(tmp_path: Path):
    first, second = on_two_processes(failing_on_the_second, tmp_path)
    assert first.endswith("a verdict of another process is 'fail'.")
    assert "gradient_ratio of all is" in second


class Spiking(pl.LightningModule):
    """Find silent neurons by the module's own step; the batches of the two processes have different statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 16, bias=False), LIF(), nn.Linear(16, 3))
        self.layers[0].weight.data.mul_(0.01)
        self.rescaled: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(run(self.layers, batch[0].expand(4, -1, -1)).mean(0), batch[1])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rescaled.append(self.layers[0].weight.detach().clone())

    configure_optimizers = Module.configure_optimizers


def rescaled(rank: int) -> dict[str, Any]:
    """Return the weights after a rescaling and before the first step."""
    check = InitializationCheck("rescale")
    _, module = fit(rank, [check], Spiking())
    return {"weight": module.rescaled[0], "factor": check.rescalings[0].factor}


def test_two_processes_rescale_alike_by_what_both_measure(tmp_path: Path):
    first, second = on_two_processes(rescaled, tmp_path)
    assert torch.equal(first["weight"], second["weight"])
    assert first["factor"] == second["factor"] > 10
    both = Spiking()
    x = torch.cat([X[rank::2][:8] for rank in range(2)])
    y = torch.cat([Y[rank::2][:8] for rank in range(2)])
    rescale(both, lambda module: module.training_step((x[None], y), 0))
    torch.testing.assert_close(both.layers[0].weight.detach(), first["weight"])
    one = Spiking()
    rescale(one, lambda module: module.training_step((x[None, :8], y[:8]), 0))
    assert not torch.allclose(one.layers[0].weight, first["weight"], rtol=1e-3)
