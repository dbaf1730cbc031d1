"""Networks of this library, run by the loops of the others, and back: no mismatch on 20 inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import LIF, run
from lightning_snn.convert import from_snntorch, from_spikingjelly, to_snntorch, to_spikingjelly
from lightning_snn.nn import IF, RecurrentLIF, SynapticLIF
from tests.convert.peers import keep_dtype, run_snntorch, run_spikingjelly, scale_weights, spikingjelly, to_grid


def snntorch_outputs(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    converted = to_snntorch(network)
    back = from_snntorch(converted)
    keep_dtype(converted)
    return run_snntorch(converted, x), run(back, x)


def spikingjelly_outputs(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    spikingjelly()
    converted = to_spikingjelly(network)
    back = from_spikingjelly(converted)
    return run_spikingjelly(converted, x), run(back, x)


LIBRARIES = {"snntorch": snntorch_outputs, "spikingjelly": spikingjelly_outputs}
ORDERS = {"snntorch": "leak_then_reset", "spikingjelly": "reset_then_leak"}


def dense(neuron: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 12), neuron(), nn.Linear(12, 6), neuron())


def images() -> nn.Module:
    layers = (nn.Conv2d(1, 4, 3), LIF(0.8, reset="zero", detach_reset=True), nn.AvgPool2d(2), nn.Flatten())
    return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), *layers, nn.Linear(4, 6), LIF(0.9))


NETWORKS: dict[str, Callable[[str], nn.Module]] = {
    "mlp": lambda library: dense(lambda: LIF(0.9)),
    "convolution": lambda library: images(),
    "recurrent": lambda library: nn.Sequential(
        *(nn.Linear(16, 12), RecurrentLIF(12, 0.8), nn.Linear(12, 6), RecurrentLIF(6, 0.8, reset="zero"))
    ),
    "current_based": lambda library: dense(
        lambda: SynapticLIF(0.6, 0.8, detach_reset=library == "snntorch", order=ORDERS[library])
    ),
    "integer_grid": lambda library: dense(IF),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_round_trip(name: str, library: str, dtype: torch.dtype):
    network = NETWORKS[name](library).to(dtype)
    scale_weights(network)
    x = 2 * torch.rand(12, 20, 16, dtype=dtype)
    if name == "integer_grid":
        to_grid(network)
        x = x.round()
    expected = run(network, x)
    assert 0.02 < expected.mean() < 0.9
    assert [(expected != found).sum().item() for found in LIBRARIES[library](network, x)] == [0, 0]
