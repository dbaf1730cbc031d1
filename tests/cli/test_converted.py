"""Recipes take networks of other libraries by import path, converted with one line, or refused with a remedy."""

from __future__ import annotations

import pytest
import snntorch
import torch
from torch import Tensor, nn

from lightning_snn import load_run, run
from lightning_snn.convert import Converted
from tests.cli.tiny import call

HERE = "tests.cli.test_converted"
PEER = ("--network", f"{HERE}.PeerNetwork", "--network.width", "7", "--output", "run", "--method.noise_mode", "step")


class PeerNetwork(nn.Module):
    """One step of a network of snntorch, as in its tutorials."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.fc1 = nn.Linear(48, width)
        self.lif1 = snntorch.Leaky(beta=0.9)
        self.fc2 = nn.Linear(width, 3)
        self.lif2 = snntorch.Leaky(beta=0.8)

    def forward(self, x: Tensor, mem1: Tensor | None = None, mem2: Tensor | None = None) -> tuple[Tensor, ...]:
        spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


class LoopingNetwork(PeerNetwork):
    """The same, with a loop over time of its own."""

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spk2_rec = []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step].flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
        return torch.stack(spk2_rec)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_network_of_snntorch_is_converted_trained_and_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = call(monkeypatch, *PEER)
    line = f"network: lightning_snn.convert.from_snntorch converted {HERE}.PeerNetwork, 2 layers of neurons"
    assert capsys.readouterr().out.count(line) == 1
    loaded = load_run("run", allow=["tests.cli"])
    assert isinstance(loaded.module.network, Converted)
    x = torch.rand(4, 2, 2, 4, 6)
    with torch.no_grad():
        assert torch.equal(run(loaded.module.network, x), run(cli.model.eval().network, x))
    with pytest.raises(ValueError, match=f"{HERE}.PeerNetwork"):
        load_run("run", allow=["tests.cli.tiny"])


def test_a_network_that_cannot_be_converted_is_refused_with_the_body_of_its_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "--network", f"{HERE}.LoopingNetwork", "--output", "run")
    message = capsys.readouterr().err
    assert "`for step in range(x.size(0))` calls lif1: Leaky, lif2: Leaky" in message
    assert "def forward(self, x, mem1=None, mem2=None):" in message
