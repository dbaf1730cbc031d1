"""200 random networks: each comes back from NIR with the same outputs to the last bit, or is refused by name."""

from __future__ import annotations

import random
import re

import pytest
import torch
from torch import Tensor, nn

from lightning_snn import run
from lightning_snn.convert import from_nir, to_nir
from lightning_snn.nn import (
    IF,
    LIF,
    AdaptiveLIF,
    LeakyIntegrator,
    MembraneResidual,
    Recurrent,
    Scale,
    Sign,
    SynapticDelays,
    SynapticLIF,
    recurrent,
)

pytest.importorskip("nir")
pytestmark = pytest.mark.filterwarnings("ignore:NIR has no field for the reset")
# what NIR cannot represent
REFUSED = {"AdaptiveLIF", "BatchNorm1d", "MaxPool2d", "ReLU", "Sign", "SynapticDelays"}
Shape = tuple[int, ...]


class Draw:
    """Random networks of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def decay(self, channels: int) -> float | list[float]:
        one = self.random.random
        return self.random.choice([round(one(), 2), one(), [one() for _ in range(channels)]])

    def neurons(self, shape: Shape) -> nn.Module:
        channels, pick = shape[0], self.random
        options = {
            "reset": pick.choice(["subtract", "zero"]),
            "threshold": pick.choice([0.5, 1.0, [0.2 + pick.random() for _ in range(channels)]]),
            "detach_reset": pick.random() < 0.3,
            "surrogate": pick.choice(["arctangent", "fast_sigmoid", "sigmoid", "triangular"]),
            "learn_threshold": pick.random() < 0.3,
        }
        kind = pick.choice(["IF", "LIF", "LIF", "SynapticLIF", "SynapticLIF", "LeakyIntegrator"])
        if kind == "IF":
            made: nn.Module = IF(**options)
        elif kind == "LeakyIntegrator":
            return LeakyIntegrator(self.decay(channels), learn_beta=pick.random() < 0.3)
        else:
            options["order"] = pick.choice(["reset_then_leak", "leak_then_reset"])
            options["learn_beta"] = pick.random() < 0.3
            decays = {"beta": self.decay(channels)} | ({"alpha": self.decay(channels)} if kind != "LIF" else {})
            made = (LIF if kind == "LIF" else SynapticLIF)(**decays, **options)
        if len(shape) == 1 and pick.random() < 0.4:
            made = pick.choice([recurrent, Recurrent])(made, channels)
        return made

    def flat(self, size: int) -> tuple[nn.Module, Shape]:
        pick = self.random
        kind = pick.choice(["Linear", "Linear", "neurons", "neurons", "Scale", "Delay", "Residual", "Dropout", "other"])
        if kind == "Linear":
            outputs = pick.randint(2, 9)
            return nn.Linear(size, outputs, bias=pick.random() < 0.7), (outputs,)
        if kind == "other" and pick.random() < 0.5:
            others = [AdaptiveLIF(), nn.ReLU(), Sign(), SynapticDelays((0,)), nn.BatchNorm1d(size).eval()]
            return pick.choice(others), (size,)
        made = {
            "neurons": lambda: self.neurons((size,)),
            "Scale": lambda: Scale(torch.rand(size) + 0.5),
            "Delay": lambda: SynapticDelays((pick.randint(0, 3),)),
            "Residual": lambda: MembraneResidual(nn.Sequential(self.neurons((size,)), nn.Linear(size, size))),
            "Dropout": lambda: nn.Dropout(0.3),
            "other": nn.Identity,
        }[kind]()
        return made, (size,)

    def plane(self, shape: Shape) -> tuple[nn.Module, Shape]:
        pick, (channels, *sides) = self.random, shape
        kind = pick.choice(["Conv2d", "Conv2d", "neurons", "neurons", "AvgPool2d", "SumPool2d", "MaxPool2d"])
        if kind == "Conv2d":
            groups = pick.choice([1, channels])
            made: nn.Module = nn.Conv2d(
                channels,
                groups * pick.randint(1, 3),
                pick.choice([1, 2, 3, (1, 3), (2, 1)]),
                stride=pick.choice([1, (2, 1)]),
                padding=pick.choice([1, (0, 1)]),
                groups=groups,
                bias=pick.random() < 0.5,
            )
        elif kind == "neurons":
            made = self.neurons(shape)
        elif kind == "MaxPool2d" and pick.random() < 0.3:
            made = nn.MaxPool2d(1)
        else:
            padding = pick.choice([0, 1]) if min(sides) > 1 else 1
            made = nn.AvgPool2d(2, pick.choice([1, 2]), padding, divisor_override=1 if kind == "SumPool2d" else None)
        return made, tuple(made(torch.zeros(1, *shape)).shape[1:]) if not hasattr(made, "scan") else shape

    def network(self) -> tuple[nn.Module, Shape]:
        torch.manual_seed(self.random.randrange(2**31))
        layers: list[nn.Module] = []
        shape: Shape = (self.random.randint(2, 7),)
        if self.random.random() < 0.5:
            shape = (self.random.randint(1, 3), self.random.randint(4, 7), self.random.randint(4, 7))
        first = shape
        for _ in range(self.random.randint(1, 4) if len(shape) > 1 else 0):
            layer, shape = self.plane(shape)
            layers.append(layer)
        if len(shape) > 1:
            layers.append(nn.Flatten())
            shape = (int(torch.tensor(shape).prod()),)
        for _ in range(self.random.randint(1, 6)):
            layer, shape = self.flat(shape[0])
            layers.append(layer)
        network = nn.Sequential(*layers)
        with torch.no_grad():
            for layer in network.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)):
                    layer.weight.mul_(3)
        return network.eval(), first


def refused_by(network: nn.Module) -> set[str]:
    kinds = {type(layer).__name__ for layer in network.modules()}
    delays = [layer for layer in network.modules() if isinstance(layer, SynapticDelays) and len(layer.delays) > 1]
    return (kinds & REFUSED) - (set() if delays else {"SynapticDelays"})


def check(seed: int) -> bool:
    """Convert the network of a seed, and return whether it was refused."""
    draw = Draw(seed)
    network, shape = draw.network()
    dtype = draw.random.choice([torch.float32, torch.float64])
    network.to(dtype)
    x: Tensor = 2 * torch.rand(12, 4, *shape, dtype=dtype)
    kinds = refused_by(network)
    if kinds:
        with pytest.raises(ValueError, match="Expected a network that NIR can represent") as raised:
            to_nir(network, shape)
        assert set(re.findall(r"\d+: (\w+) \(", str(raised.value))) == kinds
        return True
    graph = to_nir(network, shape, dt=draw.random.choice([1e-4, 1e-3, 1.0]), strict=draw.random.random() < 0.5)
    with torch.no_grad():
        assert torch.equal(run(from_nir(graph), x), run(network, x)), network
    return False


def test_random_networks_come_back_or_are_refused_by_name():
    refused = sum(map(check, range(15)))
    assert 0 < refused < 10


@pytest.mark.slow
def test_many_random_networks_come_back_or_are_refused_by_name():
    refused = sum(map(check, range(200)))
    assert 10 < refused < 100
