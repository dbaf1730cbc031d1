"""The KL term over several processes. Apart from the other tests, so that a new process imports little."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_snn.methods import Progress, SpikingBayes
from lightning_snn.nn import LIF
from tests.support.processes import on_two_processes


class Objective(nn.Module):
    """The objective of a batch, of which only the KL term has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.method = SpikingBayes(kl_weight=0.5, warmup_epochs=0)
        self.method.task.readout = lambda outputs: 0 * outputs.mean(0)
        self.method.progress = Progress(0.0, 16)  # over all processes, as the module reports
        self.network = self.method.prepare(nn.Sequential(nn.Linear(2, 6), LIF(0.9), nn.Linear(6, 2)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.method.training_step(self.network, x, y).objective


def gradients(rank: int, processes: int) -> dict[str, Tensor]:
    objective = Objective()
    call = objective if processes == 1 else nn.parallel.DistributedDataParallel(objective)
    torch.manual_seed(rank)  # noise differs
    x, y = torch.rand(4, 16, 2), torch.arange(16) % 2
    call(x[:, rank::processes], y[rank::processes]).backward()
    return {name: parameter.grad for name, parameter in objective.network.named_parameters()}


def test_over_two_processes_the_kl_counts_as_in_one(tmp_path: Path):
    of_ranks = on_two_processes(partial(gradients, processes=2), tmp_path)
    expected = gradients(0, 1)
    assert all(gradient.abs().max() > 0 for name, gradient in expected.items() if not name.endswith(".bias"))
    for found in of_ranks:
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9)
