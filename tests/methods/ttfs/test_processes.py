"""Windows over several processes. Apart from the other tests, so that a new process imports little."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_snn.methods.ttfs import FirstSpike
from lightning_snn.methods.ttfs.windows import calibrate, grow
from tests.support.processes import on_two_processes


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
    # a layer without a batch on this process takes part too
    if processes == 2 and rank == 0:
        network[3].forget_peak()
    grow(network, 3.0)
    found["grown"] = torch.stack([part for layer in (network[1], network[3]) for part in (layer.window, layer.t_min)])
    for quantile in (None, 0.7):
        calibrate(network, share, 0.5, quantile)
        found[f"calibrated {quantile}"] = torch.stack([network[1].window, network[3].window, network[3].t_min])
    return found


def test_over_two_processes_windows_are_those_of_one(tmp_path: Path):
    first, second = on_two_processes(partial(windows, processes=2), tmp_path)
    expected = windows(0, 1)
    for name, values in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], values, rtol=1e-13, atol=0)
