"""`SpikeTimes` against counts by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.callbacks import HardwareConstraints, SpikeTimes
from lightning_snn.callbacks.hardware import Constrained
from lightning_snn.methods.ttfs import FirstSpike, SpikeEncoder, cascade
from tests.support.training import trainer

IMAGES = torch.rand(50, 6, generator=torch.Generator().manual_seed(0)).mul(1.2).sub(0.2).clamp(0, 1)


class Plain(pl.LightningModule):
    """Module independent of the library."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    found = nn.Sequential(SpikeEncoder(), nn.Linear(6, 8), FirstSpike(0.5), nn.Linear(8, 5), FirstSpike(2.0))
    cascade(found)
    return found


def measured(callback: SpikeTimes, module: nn.Module | Plain, **options: Any) -> dict[str, float]:
    module = module if isinstance(module, Plain) else Plain(module)
    return trainer(callback, **options).test(module, DataLoader(TensorDataset(IMAGES), 15), verbose=False)[0]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Tensor], dict[str, tuple[float, float]]]]:
    calls: list[Any] = []
    monkeypatch.setattr("lightning_snn.figures.spike_time_histograms", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr("lightning_snn.callbacks.spike_times.log_figure", lambda *arguments: None)
    return calls


def test_spikes_latency_and_overflow_are_those_counted_by_hand(drawn):
    net = network()
    found = measured(SpikeTimes(network="net", bins=4), net)
    first = net[:3](IMAGES)
    currents = [net[1](IMAGES), net[3](first)]
    spikes = [(current > 0).sum().item() for current in currents]
    assert found["test/spikes_per_neuron"] == pytest.approx(sum(spikes) / (50 * 13))
    assert found["test/spikes_per_neuron/2"] == pytest.approx(spikes[0] / (50 * 8))
    assert found["test/spikes_per_neuron/4"] == pytest.approx(spikes[1] / (50 * 5))
    assert found["test/spikes_per_neuron/0"] == pytest.approx((IMAGES > 0).float().mean().item())
    early = (currents[0] > 0.5).sum() + (currents[1] > 2.0).sum()
    assert early > 0
    assert found["test/overflow_fraction"] == pytest.approx(early.item() / (50 * 13))
    assert found["test/latency"] == 3.5


def test_without_a_name_the_network_is_what_holds_the_first_spikes(drawn):
    found = measured(SpikeTimes(), network())
    assert found == measured(SpikeTimes(network="net"), network())
    assert "test/spikes_per_neuron/2" in found

    class Apart(Plain):
        def __init__(self, network: nn.Module) -> None:
            super().__init__(network[2:])
            self.first = network[:2]

        def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.net(self.first(batch[0]))

    apart = measured(SpikeTimes(), Apart(network()))
    assert apart["test/spikes_per_neuron/first/0"] == found["test/spikes_per_neuron/0"]
    assert apart["test/spikes_per_neuron/net/2"] == found["test/spikes_per_neuron/2"]
    assert apart["test/latency"] == found["test/latency"]


def test_histograms_hold_every_spike_at_its_time(drawn):
    net = network()
    measured(SpikeTimes(network="net", bins=4), net)
    ((rates, windows),) = drawn
    assert windows == {"0": (0.0, 1.0), "layer 2": (1.0, 1.5), "layer 4": (1.5, 3.5)}
    times = 1.5 - net[:3](IMAGES)
    emitted = times[times < 1.5].detach().clamp(min=1.0)
    expected = torch.histogram(emitted, torch.linspace(1, 1.5, 5)).hist.double() / (50 * 8)
    torch.testing.assert_close(rates["layer 2"], expected)
    torch.testing.assert_close(rates["0"].sum(), (IMAGES > 0).double().mean())


def test_constraints_show_in_the_histograms(drawn):
    net = network()
    with Constrained(net, HardwareConstraints(time_bits=1)):
        measured(SpikeTimes(network="net", bins=8), net)
    ((rates, _),) = drawn
    # the only possible time of a spike is the start of the window
    assert torch.equal(rates["layer 2"] > 0, torch.arange(8) == 0)


def test_the_figure_lies_in_the_folder_and_a_fast_dev_run_writes_none(tmp_path: Path):
    measured(SpikeTimes(network="net"), network(), default_root_dir=tmp_path / "root")
    measured(SpikeTimes(tmp_path / "own", "net"), network())
    measured(SpikeTimes(tmp_path / "none", "net"), network(), fast_dev_run=True)
    assert sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.png")) == [
        "own/spike_times.png",
        "root/spike_times.png",
    ]


def test_what_has_no_first_spikes_is_refused():
    with pytest.raises(ValueError, match=r"layers for SpikeTimes, but got 'net', a Sequential without any"):
        measured(SpikeTimes(network="net"), nn.Sequential(SpikeEncoder(), nn.Linear(6, 5)))
    with pytest.raises(ValueError, match="`network` to name a module within Plain, which has net, but got 'network'"):
        measured(SpikeTimes(network="network"), network())
    with pytest.raises(
        ValueError, match="a module with `FirstSpike`, .* layers for SpikeTimes, but got Plain without any"
    ):
        measured(SpikeTimes(), nn.Sequential(SpikeEncoder(), nn.Linear(6, 5)))
    with pytest.raises(ValueError, match="`bins` to be an integer of at least 1, but got 0"):
        SpikeTimes(bins=0)
