"""The KL term over several processes. Apart from the other tests, so that a new process imports little."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_snn.methods import Progress, SpikingBayes
from lightning_snn.nn import LIF


class Objective(nn.Module):
    """The objective of a batch, of which all but the KL term is silenced."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.method = SpikingBayes(kl_weight=0.5, warmup_epochs=0)
        self.method.task.readout = lambda outputs: 0 * outputs.mean(0)
        self.method.progress = Progress(0.0, 16)  # over all processes, as the module tells
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


def average_over_two_processes(child: int, rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(gradients(rank, 2), Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_over_two_processes_the_kl_counts_as_in_one(tmp_path: Path):
    other = torch.multiprocessing.spawn(average_over_two_processes, args=(1, str(tmp_path)), nprocs=1, join=False)
    average_over_two_processes(0, 0, str(tmp_path))
    while not other.join():
        pass
    expected = gradients(0, 1)
    assert all(gradient.abs().max() > 0 for name, gradient in expected.items() if not name.endswith(".bias"))
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9)
