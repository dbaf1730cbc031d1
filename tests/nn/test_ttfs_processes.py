"""Windows over several processes. Apart from the other tests, so that a new process imports little."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_snn.nn.ttfs import FirstSpike
from lightning_snn.nn.ttfs_windows import calibrate, grow


def windows(rank: int, processes: int) -> dict[str, Tensor]:
    """Windows and t_min after a training step, and calibrated, on this process' share of the data."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), FirstSpike(0.1), nn.Linear(8, 8), FirstSpike(0.1), nn.Linear(8, 2))
    network.double()
    # all that is large is on the second process
    x = torch.rand(32, 4, dtype=torch.float64) * torch.tensor([1.0, 10.0]).repeat(16)[:, None]
    share = x[rank::processes]
    call = network if processes == 1 else nn.parallel.DistributedDataParallel(network)
    found = {}
    call(share).sum().backward()
    # a layer that this process did not hear has to take part all the same
    if processes == 2 and rank == 0:
        network[3].forget_peak()
    grow(network, 3.0)
    found["grown"] = torch.stack([part for layer in (network[1], network[3]) for part in (layer.window, layer.t_min)])
    for quantile in (None, 0.7):
        calibrate(network, share, 0.5, quantile)
        found[f"calibrated {quantile}"] = torch.stack([network[1].window, network[3].window, network[3].t_min])
    return found


def agree_over_two_processes(child: int, rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(windows(rank, 2), Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_over_two_processes_windows_are_those_of_one(tmp_path: Path):
    other = torch.multiprocessing.spawn(agree_over_two_processes, args=(1, str(tmp_path)), nprocs=1, join=False)
    agree_over_two_processes(0, 0, str(tmp_path))
    while not other.join():
        pass
    expected = windows(0, 1)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for name, values in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], values, rtol=1e-13, atol=0)
