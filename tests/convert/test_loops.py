"""A module that loops over time gets an error that shows the forward for one step, which then converts and agrees."""

from __future__ import annotations

import re

import pytest
import snntorch
import torch
from torch import Tensor, nn

from lightning_snn import run
from lightning_snn.convert import from_snntorch, from_spikingjelly
from tests.convert.peers import scale_weights, spikingjelly


class Tutorial(nn.Module):
    """The network of snntorch's tutorial 5, on a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.lif1 = snntorch.Leaky(beta=0.9)
        self.fc2 = nn.Linear(8, 3)
        self.lif2 = snntorch.Leaky(beta=0.9)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for step in range(x.size(0)):
            cur1 = self.fc1(x[step])
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class OverInput(Tutorial):
    """A loop over the input, with a recurrent layer and hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.lif1 = snntorch.RLeaky(beta=0.9, linear_features=8)
        self.lif2 = snntorch.Leaky(beta=0.9, init_hidden=True)

    def forward(self, data):
        spk, mem = self.lif1.init_rleaky()
        self.lif2.reset_mem()
        outputs = []
        for frame in data:
            spk, mem = self.lif1(self.fc1(frame), spk, mem)
            outputs.append(self.lif2(self.fc2(spk)))
        return (torch.stack(outputs),)


class Comprehension(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), snntorch.Leaky(0.9, init_hidden=True, output=True))

    def forward(self, x):
        self.net[1].reset_mem()
        return (torch.stack([self.net(frame)[0] for frame in x]),)


EXPECTED = {
    Tutorial: (
        "`for step in range(x.size(0))` calls lif1: Leaky, lif2: Leaky",
        """\
    def forward(self, x, mem1=None, mem2=None):
        cur1 = self.fc1(x)
        spk1, mem1 = self.lif1(cur1, mem1)
        cur2 = self.fc2(spk1)
        spk2, mem2 = self.lif2(cur2, mem2)
        return spk2, mem1, mem2""",
    ),
    OverInput: (
        "`for frame in data` calls lif1: RLeaky, lif2: Leaky",
        """\
    def forward(self, frame, spk=None, mem=None):
        spk, mem = self.lif1(self.fc1(frame), spk, mem)
        return self.lif2(self.fc2(spk)), spk, mem""",
    ),
    Comprehension: (
        "`[self.net(frame)[0] for frame in x]` calls net.1: Leaky",
        """\
    def forward(self, frame):
        return self.net(frame)""",
    ),
}


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_the_error_shows_a_forward_for_one_step_that_converts(kind: type[nn.Module]):
    network = kind()
    scale_weights(network)
    with pytest.raises(ValueError, match="loops over time by itself") as raised:
        from_snntorch(network)
    calls, body = EXPECTED[kind]
    assert calls in str(raised.value)
    assert body in str(raised.value)

    x = 2 * torch.rand(15, 4, 6)
    expected = network(x)[0]
    assert 0.02 < expected.mean() < 0.9
    namespace: dict = {}
    exec(re.sub("^    ", "", body, flags=re.MULTILINE), namespace)
    per_step = type("PerStep", (nn.Module,), {"forward": namespace["forward"]})()
    for name, part in network.named_children():
        setattr(per_step, name, part)
    assert torch.equal(run(from_snntorch(per_step), x), expected)


def test_a_forward_that_resets_states_is_refused():
    class Resets(Tutorial):
        def forward(self, x):
            mem1 = self.lif1.init_leaky()
            return self.lif1(self.fc1(x), mem1)

    with pytest.raises(ValueError, match=r"Resets.forward resets states by `self.lif1.init_leaky\(\)`"):
        from_snntorch(Resets())


def test_a_loop_whose_source_is_not_known_is_refused_by_the_neurons_that_it_repeats():
    namespace = {"nn": nn, "snntorch": snntorch, "torch": torch}
    exec(
        "class Hidden(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.lif1 = snntorch.Leaky(0.9)\n"
        "    def forward(self, x):\n"
        "        mem1 = None\n"
        "        for step in range(3):\n"
        "            spk1, mem1 = self.lif1(x, mem1)\n"
        "        return spk1\n",
        namespace,
    )
    with pytest.raises(ValueError, match=r"lif1: Leaky \(it is called more than once: if this is a loop over time"):
        from_snntorch(namespace["Hidden"]())


def test_the_part_of_a_spikingjelly_network_without_its_own_time_axis_is_named():
    functional, layer, neuron, _ = spikingjelly().parts

    class CSNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.T = 4
            self.conv_fc = nn.Sequential(layer.Conv2d(1, 2, 3), neuron.IFNode(), layer.Flatten(), layer.Linear(8, 3))
            functional.set_step_mode(self, "m")

        def forward(self, x: Tensor) -> Tensor:
            x_seq = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
            return self.conv_fc(x_seq).mean(0)

    with pytest.raises(ValueError, match=r"operation `unsqueeze` \(.*convert the rest, such as `network.conv_fc`"):
        from_spikingjelly(CSNN())
    assert run(from_spikingjelly(CSNN().conv_fc), torch.rand(4, 2, 1, 4, 4)).shape == (4, 2, 3)
