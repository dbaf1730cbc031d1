"""Networks that leave as NIR give the same spikes in the importers of snntorch and SpikingJelly."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_snn.convert import to_nir
from tests.convert.nir_cases import CASES, network_of, network_on_a_grid, spikes_of

pytest.importorskip("nir")
pytest.importorskip("nirtorch")
pytestmark = pytest.mark.filterwarnings("ignore:.*triton.*", "ignore:.*deprecated.*")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The dtype of the network, which snntorch takes from torch's default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def snntorch_spikes(graph: Any, x: Tensor) -> Tensor:
    """Import a graph by snntorch and run it; sample by sample where its Flatten would flatten the batch, too."""
    from snntorch.import_nir import import_from_nir

    with contextlib.redirect_stdout(io.StringIO()):
        network = import_from_nir(graph).to(x.dtype)  # which are rounded to float32 before
    neurons = [layer for layer in network.modules() if hasattr(layer, "reset_mem")]
    for layer in neurons:  # its spikes are float32 for any input
        layer.register_forward_hook(lambda layer, given, spikes: spikes.to(x.dtype))
    flattens = any(isinstance(layer, nn.Flatten) for layer in network.modules())
    parts = []
    for part in x.unbind(1) if flattens else [x]:
        for layer in neurons:
            layer.reset_mem()
        state, steps = None, []
        for step in part:
            spikes, state = network(step, state)
            steps.append(spikes)
        parts.append(torch.stack(steps))
    return torch.stack(parts, 1) if flattens else parts[0]


def spikingjelly_spikes(graph: Any, x: Tensor) -> Tensor:
    """Import a graph by SpikingJelly and run it step by step."""
    from spikingjelly.activation_based import nir_exchange

    network = nir_exchange.import_from_nir(graph, dtype=x.dtype)
    state, steps = None, []
    for step in x:
        spikes, state = network(step, state)
        steps.append(spikes)
    return torch.stack(steps)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_snntorch_imports_the_same_spikes(name: str, dtype: torch.dtype):
    network, x, expected = network_of(name, dtype)
    spikes = snntorch_spikes(to_nir(network, x.shape[2:]), x)
    assert int((spikes != expected).sum()) == 0


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_spikingjelly_imports_the_same_spikes(name: str, dtype: torch.dtype):
    pytest.importorskip("spikingjelly")
    network, x, expected = network_of(name, dtype)
    spikes = spikingjelly_spikes(to_nir(network, x.shape[2:]), x)
    assert int((spikes != expected).sum()) == 0


@torch.no_grad()
def test_a_potential_at_its_threshold_is_silent_in_a_simulator_that_fires_at_it(dtype: torch.dtype):
    pytest.importorskip("spikingjelly")
    network, x = network_on_a_grid(dtype)
    expected = spikes_of(network, x)
    # SpikingJelly fires at v >= v_threshold, so the threshold of NIR's definition gives other spikes
    assert (spikingjelly_spikes(to_nir(network, (12,)), x) != expected).sum() > 100
    spikes = spikingjelly_spikes(to_nir(network, (12,), strict=False), x)
    assert int((spikes != expected).sum()) == 0


def test_a_reset_by_subtraction_warns_of_other_simulators(dtype: torch.dtype):
    network, x = network_on_a_grid(dtype, "subtract")
    with pytest.warns(UserWarning, match='no field for the reset="subtract" of 1, 3:'):
        graph = to_nir(network, (12,), strict=False)
    pytest.importorskip("spikingjelly")
    with torch.no_grad():
        assert (spikingjelly_spikes(graph, x) != spikes_of(network, x)).sum() > 100


def test_neurons_of_other_libraries_are_refused_with_their_converter():
    snntorch = pytest.importorskip("snntorch")
    network = nn.Sequential(nn.Linear(4, 4), snntorch.Leaky(0.9, init_hidden=True))
    with pytest.raises(ValueError, match=r"1: Leaky \(.*lightning_snn.convert.from_snntorch\(network\)` first"):
        to_nir(network, (4,))
