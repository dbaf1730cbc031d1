"""Rescaling an initialization: membranes are where they should be, and silent networks learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import snntorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, TensorDataset

import lightning_snn.callbacks.initialization.callback as callback_module
from lightning_snn import LIF, run
from lightning_snn.callbacks import InitializationCheck
from lightning_snn.callbacks.initialization import (
    Rescaling,
    Trial,
    measure_initialization,
    rescale,
    rescalings_table,
    try_training,
)
from lightning_snn.callbacks.initialization.thresholds import Band, Thresholds
from lightning_snn.functional.lif import leaky_integrate
from lightning_snn.nn import RecurrentLIF
from tests.support.training import trainer

STEPS = 8
X = torch.rand(STEPS, 20, 10, generator=torch.Generator().manual_seed(1)).round()


def folded(x: Tensor = X) -> Callable[[Any], Tensor]:
    return lambda network: run(network, x).square().mean()


def distance(current: Tensor, beta: float = 0.9, threshold: float | Tensor = 1.0) -> float:
    """Return the distance of the threshold from the mean free membrane potential, in standard deviations."""
    membrane = leaky_integrate(current.detach(), beta) / threshold
    return ((1 - membrane.mean()) / membrane.std(correction=0)).item()


def chain(*sizes: int, scale: float = 1.0, bias: bool = True, **options: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for pair in pairwise(sizes):
        layers += [nn.Linear(*pair, bias=bias), LIF(**options)]
        layers[-2].weight.data.mul_(scale)
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 3))


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("xi", [1.0, 2.5])
def test_the_threshold_is_xi_deviations_above_the_mean_membrane_of_every_layer(scale: float, bias: bool, xi: float):
    network = chain(10, 200, 100, 50, scale=scale, bias=bias)
    last = network[-1].weight.clone()
    found = rescale(network, folded(), xi)
    assert [(each.layer, each.weights, each.reason) for each in found] == [
        ("1", "0", ""),
        ("3", "2", ""),
        ("5", "4", ""),
    ]
    for index in (0, 2, 4):
        assert distance(run(network[: index + 1], X)) == pytest.approx(xi, rel=0.03)
    assert torch.equal(network[-1].weight, last)


def test_factor_and_distance_are_returned():
    network = chain(10, 50, scale=0.1, bias=False)
    before = network[0].weight.clone()
    expected = distance(run(network[:1], X))
    (found,) = rescale(network, folded(), 1.0)
    assert found.distance == pytest.approx(expected, rel=1e-4)
    assert found.shift == 0
    torch.testing.assert_close(network[0].weight, before * found.factor)
    assert "1      0" in rescalings_table([found])


def test_silent_and_saturated_layers_end_up_alike():
    rates = []
    for scale in (0.01, 100.0):
        torch.manual_seed(0)
        network = chain(10, 100, 100, scale=scale, bias=False)
        rescale(network, folded())
        findings = measure_initialization(network, folded())
        rates.append([each.value for each in findings if each.quantity == "firing_rate"])
        assert all(0.03 < rate < 0.3 for rate in rates[-1])
    assert rates[0] == pytest.approx(rates[1], abs=0.01)


def test_biases_larger_than_the_input_are_removed():
    network = chain(10, 60, scale=0.01)
    current = run(network[:1], X)
    assert current.var((0, 1)).mean() < current.mean((0, 1)).var()
    (found,) = rescale(network, folded())
    assert found.shift > 0
    membrane = leaky_integrate(run(network[:1], X).detach(), 0.9)
    torch.testing.assert_close(membrane.mean((0, 1)), torch.zeros(60), rtol=0, atol=1e-2)


def test_a_mean_is_taken_out_by_the_weights_where_there_is_no_bias():
    network = chain(10, 60, bias=False)
    network[0].weight.data.abs_().neg_()
    (found,) = rescale(network, folded())
    assert not found.reason
    membrane = leaky_integrate(run(network[:1], X).detach(), 0.9)
    assert membrane.mean().abs() < 0.01
    assert distance(run(network[:1], X)) == pytest.approx(1, rel=0.03)


def test_a_normalization_before_the_neurons_is_scaled_and_not_the_weights_before_it():
    network = nn.Sequential(nn.Linear(10, 40), nn.BatchNorm1d(40), LIF(), nn.Linear(40, 3))
    network[1].weight.data.fill_(0.01)
    weight, buffers = network[0].weight.clone(), [each.clone() for each in network[1].buffers()]
    (found,) = rescale(network, folded())
    assert (found.weights, found.reason) == ("1", "")
    assert found.factor > 10
    assert torch.equal(network[0].weight, weight)
    assert all(map(torch.equal, network[1].buffers(), buffers))
    current = network[1].train()(network[0](X.flatten(0, 1))).unflatten(0, (STEPS, -1))
    assert distance(current) == pytest.approx(1, rel=0.05)


def test_convolutions_are_centered_by_channel_and_pooling_may_follow():
    x = torch.rand(4, 6, 2, 12, 12).round()
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.MaxPool2d(2), LIF(), nn.Flatten(), nn.Linear(200, 3))
    network[0].weight.data.mul_(0.01)
    (found,) = rescale(network, folded(x))
    assert found.reason == ""
    membrane = leaky_integrate(run(network[:2], x).detach(), 0.9)
    torch.testing.assert_close(membrane.mean((0, 1, 3, 4)), torch.zeros(8), rtol=0, atol=1e-2)
    assert distance(run(network[:2], x)) == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("learned", [True, False])
def test_thresholds_of_channels_count_and_stay(learned: bool):
    thresholds = torch.linspace(0.5, 4, 60)
    network = nn.Sequential(
        nn.Linear(10, 60, bias=False), LIF(0.9, thresholds, learn_threshold=learned), nn.Linear(60, 3)
    )
    network[0].weight.data.mul_(0.01)
    rescale(network, folded())
    torch.testing.assert_close(network[1].threshold.detach(), thresholds)
    assert distance(run(network[:1], X), threshold=thresholds) == pytest.approx(1, rel=0.03)


def test_recurrent_weights_stay():
    network = nn.Sequential(nn.Linear(10, 30), RecurrentLIF(30), nn.Linear(30, 3))
    network[0].weight.data.mul_(0.01)
    recurrent = network[1].weight.clone()
    (found,) = rescale(network, folded())
    assert (found.weights, found.reason) == ("0", "")
    assert torch.equal(network[1].weight, recurrent)
    assert distance(run(network[:1], X)) == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("pooled", [False, True])
def test_recurrent_weights_within_neurons_feed_none(pooled: bool):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(10, 30), nn.Linear(30, 3)
            self.first = snntorch.RLeaky(0.9, linear_features=30)
            self.second = snntorch.Leaky(0.9)
            self.fc.weight.data.mul_(0.01)

        def forward(self, x: Tensor) -> Tensor:
            (spikes, membrane), later = self.first.init_rleaky(), self.second.init_leaky()
            outputs = []
            for each in x:
                spikes, membrane = self.first(self.fc(each), spikes, membrane)
                received = spikes
                if pooled:
                    received, later = self.second(3 * spikes, later)
                outputs.append(self.out(received))
            return torch.stack(outputs)

    torch.manual_seed(0)
    network = Recurrent()
    recurrent = network.first.recurrent.weight.clone()
    first, *rest = rescale(network, lambda net: net(X).square().mean())
    assert (first.weights, first.reason) == ("fc", "")
    assert first.factor > 10
    assert torch.equal(network.first.recurrent.weight, recurrent)
    assert [each.reason for each in rest] == ["the weights of fc feed first too"] * pooled


@pytest.mark.parametrize("folded_time", [False, True])
def test_neurons_in_two_places_with_weights_of_their_own_are_left(folded_time: bool):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 3)
            self.neurons = LIF() if folded_time else snntorch.Leaky(0.9)

        def forward(self, x: Tensor) -> Tensor:
            if folded_time:
                return self.out(self.neurons(self.two(self.neurons(self.one(x)))))
            first, second = self.neurons.init_leaky(), self.neurons.init_leaky()
            outputs = []
            for each in x:
                spikes, first = self.neurons(self.one(each), first)
                spikes, second = self.neurons(self.two(spikes), second)
                outputs.append(self.out(spikes))
            return torch.stack(outputs)

    network = Shared()
    before = network.one.weight.clone()
    loss = folded() if folded_time else lambda net: net(X).square().mean()
    (found,) = rescale(network, loss)
    assert found.reason == "its calls have different weights"
    assert torch.equal(network.one.weight, before)
    # by the same weights they are rescaled
    network.two = network.one
    (found,) = rescale(network, loss)
    assert (found.weights, found.reason) == ("one", "")


def test_a_current_of_before_the_loop_feeds_neurons_as_one_within_it():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.then, self.out = nn.Linear(10, 30), nn.Linear(30, 30), nn.Linear(30, 3)
            self.one, self.two = snntorch.Leaky(0.9), snntorch.Leaky(0.9)

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.one.init_leaky(), self.two.init_leaky()
            current = self.fc(x)
            for _ in range(STEPS):
                spikes, first = self.one(current, first)
                spikes, second = self.two(self.then(spikes), second)
            return self.out(spikes)

    found = rescale(Constant(), lambda net: net(X[0]).square().mean())
    assert [(each.weights, each.reason) for each in found] == [("fc", ""), ("then", "")]


def test_neurons_of_other_libraries_are_rescaled_too():
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    def jelly(mode: str) -> nn.Sequential:
        torch.manual_seed(0)
        # a decay of 1/2, and half of the input
        net = nn.Sequential(layer.Linear(10, 50), neuron.LIFNode(tau=2.0, v_reset=None), layer.Linear(50, 3))
        functional.set_step_mode(net, mode)
        net[0].weight.data.mul_(0.01)
        return net

    def loss(net: nn.Module) -> Tensor:
        functional.reset_net(net)
        multi = net[0].step_mode == "m"
        return (net(X) if multi else torch.stack([net(each) for each in X])).square().mean()

    weights = []
    for mode in "sm":
        net = jelly(mode)
        (found,) = rescale(net, loss)
        assert found.reason == ""
        assert net[1].v_threshold == 1.0
        assert net[1].store_v_seq is False
        assert distance(net[0](X) / 2, beta=0.5) == pytest.approx(1, rel=0.03)
        weights.append(net[0].weight)
    torch.testing.assert_close(*weights)


def test_what_cannot_be_rescaled_is_left_to_the_last_bit_with_the_reason():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = LIF()
            self.shared = nn.Linear(10, 10)
            self.one, self.two = LIF(), LIF()
            self.normed, self.norm, self.three = nn.Linear(10, 10), nn.BatchNorm1d(10, affine=False), LIF()
            self.parametrized, self.four = weight_norm(nn.Linear(10, 10)), LIF()
            self.readout, self.five = nn.Linear(10, 4), LIF()

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.start(2 * x)
            spikes = self.two(4 * self.one(4 * self.shared(spikes)))
            spikes = self.three(0.01 * self.norm(self.normed(spikes)))
            spikes = self.four(9 * self.parametrized(spikes + x))
            current = self.readout(spikes)
            self.five(current)
            return current

    network = Odd()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = {each.layer: each for each in rescale(network, folded())}
    assert {name: each.reason for name, each in found.items()} == {
        "start": "no trained weights feed it",
        "one": "",
        "two": "the weights of shared feed one too",
        "three": "its membrane potential does not scale with the weights",
        "four": "parametrized has no trained parameter `weight`",
        "five": "the loss does not depend on its spikes",
    }
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"shared.weight", "shared.bias"}
    assert math.isfinite(found["three"].distance)


def test_layers_without_input_are_reported_and_rounding_is_not_scaled_up():
    silence = folded(torch.zeros(STEPS, 4, 10))
    found = rescale(chain(10, 20, 20, bias=False), silence)
    assert [each.reason for each in found] == ["its membrane potential is constant"] * 2
    network = chain(10, 20)
    before = network[0].bias.clone()
    # what moves is due to the biases, which are taken out first
    assert rescale(network, silence)[0].reason == "its membrane potential is constant"
    assert torch.equal(network[0].bias, before)


def test_a_module_whose_spiking_layers_do_not_run_is_refused():
    network = nn.ModuleDict({"used": nn.Linear(10, 3), "unused": LIF()})
    with pytest.raises(ValueError, match="spiking layers run for a rescaling, but got ModuleDict"):
        rescale(network, lambda net: net["used"](X).mean())
    with pytest.raises(ValueError, match="`xi` to be .* larger than 0"):
        rescale(chain(10, 20), folded(), 0.0)


class Digits(pl.LightningModule):
    """Deep network of snntorch's neurons for digits, with weights that are far too small."""

    def __init__(self, depth: int = 4, scale: float = 0.01) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = (784, *[64] * depth, 10)
        self.fc = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.lif = nn.ModuleList(snntorch.Leaky(beta=0.9) for _ in self.fc)
        for parameter in self.parameters():
            parameter.data.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        state = [layer.init_leaky() for layer in self.lif]
        for _ in range(5):
            spikes = x
            for index, (weights, neurons) in enumerate(zip(self.fc, self.lif, strict=True)):
                spikes, state[index] = neurons(weights(spikes), state[index])
        return state[-1]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 3e-3)


@pytest.fixture(scope="module")
def loaders(shared_data: Path) -> tuple[DataLoader, DataLoader]:
    with np.load(shared_data / "mnist.npz") as data:
        parts = [
            TensorDataset(torch.from_numpy(data[f"x_{part}"][:count]).flatten(1) / 255, labels.long())
            for part, count in (("train", 2000), ("test", 500))
            for labels in [torch.from_numpy(data[f"y_{part}"][:count])]
        ]
    return DataLoader(parts[0], 50), DataLoader(parts[1], 500)


def trained(check: InitializationCheck, loaders: tuple[DataLoader, DataLoader]) -> tuple[float, pl.Trainer, Digits]:
    fitting = trainer(check, max_epochs=2)
    module = Digits()
    torch.manual_seed(1)
    fitting.fit(module, loaders[0])
    logged = dict(fitting.callback_metrics)
    accuracy = fitting.test(module, loaders[1], verbose=False)[0]["accuracy"]
    fitting.callback_metrics.update(logged)
    return accuracy, fitting, module


def test_a_silent_network_learns_digits_when_it_is_rescaled(
    loaders: tuple[DataLoader, DataLoader], capsys: pytest.CaptureFixture[str]
):
    expected = r"not expected to train well from its initialization: firing_rate of lif.*; use on_fail='rescale'\.$"
    with pytest.warns(UserWarning, match=expected):
        silent, *_ = trained(InitializationCheck(), loaders)
    assert "on_fail" not in capsys.readouterr().out
    check = InitializationCheck(on_fail="rescale")
    rescaled, trainer, module = trained(check, loaders)
    assert silent < 0.25
    assert rescaled > 0.7
    assert list(module.state_dict()) == list(Digits().state_dict())
    assert not any(each._forward_hooks for each in module.modules())
    before, after = (
        {each.layer: each.value for each in found if each.quantity == "firing_rate"}
        for found in (check.findings, check.rescaled_findings)
    )
    assert all(before[f"lif.{index}"] == 0 < 0.03 < after[f"lif.{index}"] < 0.2 for index in range(4))
    printed = capsys.readouterr().out
    assert printed.count("Overall verdict: ") == 2
    assert rescalings_table(check.rescalings) in printed
    assert [each.reason for each in check.rescalings] == [""] * 4 + ["the loss does not depend on its spikes"]
    metrics = trainer.callback_metrics
    for name, value in after.items():
        assert metrics[f"initialization/firing_rate/{name}"] == before[name]
        assert metrics[f"initialization_rescaled/firing_rate/{name}"] == pytest.approx(value, rel=1e-6)


def test_what_fails_although_it_was_rescaled_is_a_warning():
    class Vanishing(Digits):
        def __init__(self) -> None:
            super().__init__(depth=1)
            self.lif[0] = snntorch.Leaky(beta=0.9, surrogate_disable=True)
            self.lif[0].spike_grad = lambda values: (values > 0).float()

    module = Vanishing()
    weights = module.fc[0].weight
    check = InitializationCheck(on_fail="rescale")
    data = DataLoader(TensorDataset(torch.rand(20, 784), torch.arange(20) % 10), 20)
    with pytest.warns(
        UserWarning, match="after rescaling: spike_derivative of lif.0 is 0. .*remedies: use a surrogate"
    ):
        trainer(check, max_epochs=1).fit(module, data)
    assert module.fc[0].weight is weights
    assert check.rescalings[0].factor > 10


@pytest.mark.parametrize(
    ("on_fail", "when", "promised"), [("warn", "from its", True), ("rescale", "after rescaling", False)]
)
def test_rescaling_is_no_remedy_for_those_who_asked_for_it(on_fail: Any, when: str, promised: bool):
    check = InitializationCheck(on_fail, thresholds=Thresholds(firing_rate=Band((0.9, 1.0), (0.9, 1.0))))
    data = DataLoader(TensorDataset(torch.rand(20, 784), torch.arange(20) % 10), 20)
    with pytest.warns(UserWarning, match=f"not expected to train well {when}") as caught:
        trainer(check, max_epochs=1).fit(Digits(), data)
    (message,) = (str(each.message) for each in caught if "not expected to train well" in str(each.message))
    assert "scale up the weights before the layer" in message
    assert ("on_fail='rescale'" in message) == promised


def test_a_rescaling_that_does_not_help_is_undone_to_the_last_bit(monkeypatch: pytest.MonkeyPatch):
    trials = iter([Trial(2.0, 1.0), Trial(3.0, 0.9)])
    monkeypatch.setattr(callback_module, "try_training", lambda module, run, reduce: next(trials))
    module = Digits()
    expected = [each.clone() for each in module.parameters()]
    check = InitializationCheck(on_fail="rescale")

    class Unchanged(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            assert all(map(torch.equal, pl_module.parameters(), expected))

    data = DataLoader(TensorDataset(torch.rand(20, 784), torch.arange(20) % 10), 20)
    with pytest.warns(
        UserWarning, match=r"left the weights as they were: .* undone, .* loss of 0.9 with it and 1 with"
    ):
        trainer(check, Unchanged(), max_epochs=1).fit(module, data)
    assert [(each.factor, each.reason) for each in check.rescalings[:4]] == [(1.0, "undone")] * 4
    assert check.rescaled_findings == []


def test_a_rescaling_that_can_change_nothing_says_so():
    class Fixed(Digits):
        def __init__(self) -> None:
            super().__init__(depth=1)
            self.fc[0] = weight_norm(self.fc[0])

    check = InitializationCheck(on_fail="rescale")
    data = DataLoader(TensorDataset(torch.rand(20, 784), torch.arange(20) % 10), 20)
    with pytest.warns(
        UserWarning, match="no layer can be rescaled: lif.0: fc.0 has no trained parameter `weight`; lif.1"
    ):
        trainer(check, max_epochs=1).fit(Fixed(), data)
    assert check.rescaled_findings == []


@pytest.mark.parametrize("on_fail", ["warn", "rescale"])
def test_a_trial_without_rescaling_leaves_training_as_it_is_to_the_last_bit(
    on_fail: Any, monkeypatch: pytest.MonkeyPatch
):
    class Noisy(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            silent = chain(10, 16, scale=1e-2, bias=False)
            self.layers = nn.Sequential(*silent, nn.BatchNorm1d(3), nn.Dropout())

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(run(self.layers, batch[0].transpose(0, 1)).mean(0), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-3)

    def fit(*callbacks: pl.Callback) -> dict[str, Tensor]:
        module = Noisy()
        torch.manual_seed(1)
        data = DataLoader(TensorDataset(X.transpose(0, 1), torch.arange(20) % 3), 10, shuffle=True)
        trainer(*callbacks).fit(module, data)
        return module.state_dict()

    monkeypatch.setattr(Trial, "gains_over", lambda after, before: False)
    expected = fit()
    check = InitializationCheck(on_fail)
    found = fit(check)
    assert "trial_loss" in {each.quantity for each in check.findings}
    assert [each.reason for each in check.rescalings] == ["undone"] * (on_fail == "rescale")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_module_of_pytorch_lightning_is_measured_and_rescaled():
    other = pytest.importorskip("pytorch_lightning")

    class Other(other.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = chain(10, 16, 16, 16, scale=1e-2, bias=False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(run(self.layers, batch[0].transpose(0, 1)).mean(0), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-3)

    check = InitializationCheck(on_fail="rescale")
    data = DataLoader(TensorDataset(X.transpose(0, 1), torch.arange(20) % 3), 20)
    trainer(check, trainer=other.Trainer, max_steps=1).fit(Other(), data)
    rates = [
        {each.layer: each.value for each in found if each.quantity == "firing_rate"}
        for found in (check.findings, check.rescaled_findings)
    ]
    assert {*rates[0].values()} == {0.0}
    assert min(rates[1].values()) > 0.03


class WithState(nn.Module):
    """Network with batch normalization and a state that stays on the module, whose graph ends with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.out, self.state = nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.state = 0.5 * self.state + self.norm(self.fc(x)).mean()
        return self.out(self.norm(self.fc(x)) + self.state + 0.1 * torch.randn(8))


def test_the_losses_of_a_trial_are_those_of_adam_from_the_state_of_the_module():
    torch.manual_seed(0)
    network, reference = WithState(), WithState()
    reference.load_state_dict(network.state_dict())
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    found = try_training(network, lambda copied: copied(X[0]).square().mean(), steps=8)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())
    assert network.state == 0
    assert all(each.grad is None for each in network.parameters())
    optimizer = torch.optim.Adam(reference.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        reference.state = torch.zeros(())
        loss = reference(X[0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert found == pytest.approx((losses[0], np.mean(losses[-5:])), rel=1e-5)


def test_a_healthy_network_is_not_rescaled(capsys: pytest.CaptureFixture[str]):
    data = DataLoader(TensorDataset(torch.rand(20, 784), torch.arange(20) % 10), 20)
    module = Digits(depth=1, scale=3.0)
    before = [each.clone() for each in module.parameters()]
    check = InitializationCheck(on_fail="rescale")

    class Unchanged(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            assert all(map(torch.equal, pl_module.parameters(), before))

    trainer(check, Unchanged(), max_epochs=1).fit(module, data)
    assert check.findings
    assert check.rescalings == check.rescaled_findings == []
    assert "No verdict is 'fail', so the weights were not rescaled." in capsys.readouterr().out


def test_rescalings_are_tuples_of_what_was_done():
    left = Rescaling("1", "0", 1.0, 0.0, math.nan, "no trained weights feed it")
    lines = rescalings_table([Rescaling("lif", "fc", 12.5, 0.25, 3.0), left]).splitlines()
    assert lines[0].split("  ")[0] == "layer"
    assert lines[1].split() == ["lif", "fc", "12.5", "0.25", "3"]
    assert lines[2].endswith("not changed: no trained weights feed it")
