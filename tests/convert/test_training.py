"""Converted networks are trained by every method that applies, and unconverted ones are refused with the converter."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
import torch.nn.functional as F
from snntorch import surrogate
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_snn import SpikingModule, run
from lightning_snn.convert import from_snntorch, from_spikingjelly, to_snntorch, to_spikingjelly
from lightning_snn.methods import (
    ExpectationPropagation,
    Method,
    NoisySpikes,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.nn import PerStep
from tests.convert.peers import keep_dtype, run_snntorch, run_spikingjelly, spikingjelly
from tests.support.training import trainer

SHAPE, CLASSES, STEPS = (1, 4, 4), 3, 8
Y = torch.arange(24) % CLASSES
METHODS: dict[str, Callable[[], Method]] = {
    "surrogate_gradient": SurrogateGradient,
    "rate_backprop": RateBackprop,
    "spiking_bayes": lambda: SpikingBayes(noise_mode="step"),
    "noisy_spikes": lambda: NoisySpikes(noise_mode="step"),
    "time_to_first_spike": lambda: TimeToFirstSpike(input_shape=SHAPE),
    "expectation_propagation": ExpectationPropagation,
}


def batches() -> DataLoader:
    """Batches in which each class lights five of 16 pixels."""
    pattern = torch.eye(CLASSES).repeat_interleave(5, 1)[Y]
    rate = 0.1 + 0.8 * F.pad(pattern, (0, 1)).view(-1, *SHAPE)
    x = (torch.rand(STEPS, len(Y), *SHAPE) < rate).float()
    return DataLoader([(x[:, part::3], Y[part::3]) for part in range(3)], batch_size=None)


def container() -> nn.Module:
    neuron = {"beta": 0.9, "spike_grad": surrogate.fast_sigmoid(slope=5), "init_hidden": True}
    return from_snntorch(nn.Sequential(nn.Flatten(), nn.Linear(16, 12), snntorch.Leaky(**neuron), nn.Linear(12, 3)))


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc2 = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(16, CLASSES)
        self.lif1 = snntorch.Leaky(beta=0.9)

    def forward(self, x, mem1):
        spk1, mem1 = self.lif1(self.conv1(x), mem1)
        return self.fc2(F.avg_pool2d(spk1, 2).view(x.size(0), -1)), mem1


def spikingjelly_csnn(step_mode: str) -> nn.Module:
    functional, layer, neuron, functions = spikingjelly().parts
    made = nn.Sequential(
        *(layer.Conv2d(1, 4, 3, padding=1), neuron.IFNode(surrogate_function=functions.ATan())),
        *(layer.MaxPool2d(2), layer.Flatten(), layer.Linear(16, CLASSES)),
    )
    functional.set_step_mode(made, step_mode)
    return made


def two_layers() -> nn.Module:
    neuron = {"reset_mechanism": "zero", "init_hidden": True}
    return from_snntorch(
        nn.Sequential(
            *(nn.Flatten(), nn.Linear(16, 12), snntorch.Synaptic(0.5, 0.9, reset_delay=False, **neuron)),
            *(nn.Linear(12, 8), snntorch.Lapicque(0.5, **neuron), nn.Linear(8, CLASSES)),
        )
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "container": (container, {}),
    "per_step": (lambda: from_snntorch(Step()), {}),
    "csnn": (lambda: from_spikingjelly(spikingjelly_csnn("m")), {}),
    "others": (
        two_layers,
        {
            "spiking_bayes": r"4: SnntorchLIF \(does not fire by noise\)",
            "noisy_spikes": r"4: SnntorchLIF \(does not fire by noise\)",
            "time_to_first_spike": r"2: SynapticLIF \(no first spike time in closed form\)",
        },
    ),
}
IN_TEST_COMMAND = (("container", "rate_backprop"), ("container", "time_to_first_spike"))
runs = pytest.mark.parametrize(
    ("network", "method"),
    [
        pytest.param(network, method, marks=[] if (network, method) in IN_TEST_COMMAND else pytest.mark.slow)
        for network in NETWORKS
        for method in METHODS
    ],
)


@runs
def test_a_converted_network_is_trained(network: str, method: str):
    make, refused = NETWORKS[network]
    if method in refused:
        with pytest.raises(ValueError, match=refused[method]):
            SpikingModule(make(), METHODS[method](), num_classes=CLASSES)
        return
    rate, epochs = (0.2, 10) if method == "expectation_propagation" else (0.05, 15)
    module = SpikingModule(make(), METHODS[method](), num_classes=CLASSES, learning_rate=rate)
    before = {name: value.clone() for name, value in module.network.named_parameters()}
    data = batches()
    fit = trainer(max_epochs=epochs)
    fit.fit(module, data)
    changed = {name for name, value in module.network.named_parameters() if not torch.equal(value, before[name])}
    assert len(changed) >= len(before) / 2
    (results,) = trainer().validate(module, data, verbose=False)
    assert results["val/accuracy"] > 0.6  # of 3 classes


@torch.no_grad()
def test_a_trained_network_returns_to_its_library():
    module = SpikingModule(container(), num_classes=CLASSES)
    trainer(max_epochs=1).fit(module, batches())
    x = batches().dataset[0][0]
    expected = run(module.network, x)
    found = to_snntorch(module.network)
    keep_dtype(found)
    torch.testing.assert_close(run_snntorch(found, x), expected)
    module = SpikingModule(from_spikingjelly(spikingjelly_csnn("s")), num_classes=CLASSES)
    trainer(max_epochs=1).fit(module, batches())
    torch.testing.assert_close(run_spikingjelly(to_spikingjelly(module.network), x), run(module.network, x))


FOREIGN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "container": (
        lambda: nn.Sequential(nn.Linear(4, 8), snntorch.Leaky(0.9, init_hidden=True), nn.Linear(8, 3)),
        "from_snntorch",
    ),
    "per_step": (Step, "from_snntorch"),
    "multi_step": (lambda: nn.Sequential(nn.Linear(4, 8), node(), nn.Linear(8, 3)), "from_spikingjelly"),
}


def node() -> Any:
    return spikingjelly().parts[2].IFNode(step_mode="m")


@pytest.mark.parametrize("network", FOREIGN)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_names_the_converter(network: str, method: str):
    make, converter = FOREIGN[network]
    with pytest.raises(ValueError, match=rf"convert the network with `lightning_snn.convert.{converter}\(network\)`"):
        SpikingModule(make(), METHODS[method](), num_classes=3)


def test_a_run_names_the_converter_where_only_the_call_tells():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = snntorch.Leaky(0.9, init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(x)

    with pytest.raises(ValueError, match=r"got lif: Leaky \(.*convert.from_snntorch\(network\)`, or wrap"):
        run(Hidden(), torch.rand(5, 2, 4))


def test_a_wrapped_neuron_is_trained_as_it_is_or_named():
    network = nn.Sequential(nn.Linear(4, 8), PerStep(snntorch.Leaky(0.9)), nn.Linear(8, 3))
    SpikingModule(network, num_classes=3)
    with pytest.raises(ValueError, match=r"1: PerStep \(.*from_snntorch\(network\)` without the wrapper, or"):
        SpikingModule(network, RateBackprop(), num_classes=3)


def test_a_network_of_this_library_names_no_converter():
    """The negative control of the messages."""
    with pytest.raises(ValueError, match="RateBackprop can train, but got") as raised:
        SpikingModule(nn.Sequential(nn.Linear(4, 8), nn.GRU(8, 3)), RateBackprop(), num_classes=3)
    assert "convert" not in str(raised.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_snntorch(nn.Sequential(nn.Linear(4, 4), snntorch.Leaky(0.9, init_hidden=True)))
