"""The initialization check on spiking networks of any library: numbers against counts by hand, and verdicts."""

from __future__ import annotations

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
from lightning.pytorch.utilities.compile import from_compiled
from snntorch import surrogate
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn import LIF, run
from lightning_snn.callbacks import InitializationCheck
from lightning_snn.callbacks.dry_run import detached_copy, frozen_copy
from lightning_snn.callbacks.initialization import Finding, check_initialization, measure_initialization
from lightning_snn.callbacks.initialization.findings import overall
from lightning_snn.callbacks.initialization.trial import Trial, needs_trial, with_trial
from lightning_snn.data import Gestures
from lightning_snn.networks import MLP, EventConvNet
from tests.support.training import trainer

STEPS = 6


class Loop(nn.Module):
    """snntorch loop over time steps that passes on the membrane potentials and returns spikes and last potentials."""

    def __init__(self, *sizes: int, beta: float = 0.9, steps: int = STEPS, **options: Any) -> None:
        super().__init__()
        self.steps = steps
        self.fc = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.lif = nn.ModuleList(snntorch.Leaky(beta=beta, **options) for _ in self.fc)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state = [layer.init_leaky() for layer in self.lif]
        kept = []
        for _ in range(self.steps):
            spikes = x
            for index, (weights, neurons) in enumerate(zip(self.fc, self.lif, strict=True)):
                spikes, state[index] = neurons(weights(spikes), state[index])
            kept.append((spikes, state[-1]))
        return torch.stack([spikes for spikes, _ in kept]), torch.stack([membrane for _, membrane in kept])


def of_spikes(x: Tensor, y: Tensor) -> Callable[[Any], Tensor]:
    return lambda network: F.cross_entropy(network(x)[0].mean(0), y)


def of_membranes(x: Tensor, y: Tensor) -> Callable[[Any], Tensor]:
    return lambda network: F.cross_entropy(network(x)[1].mean(0), y)


def scaled(network: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(factor)
    return network


def named(findings: list[Finding]) -> dict[tuple[str, str], Finding]:
    return {(each.quantity, each.layer): each for each in findings}


def values(findings: list[Finding]) -> dict[tuple[str, str], float]:
    return {name: each.value for name, each in named(findings).items()}


X, Y = torch.rand(12, 8, generator=torch.Generator().manual_seed(1)) * 2, torch.arange(12) % 4


def test_activity_and_membranes_are_those_counted_by_hand():
    network = Loop(8, 16, 4)
    state = [torch.zeros(12, 16), torch.zeros(12, 4)]
    spiked: list[list[Tensor]] = [[], []]
    membranes: list[list[Tensor]] = [[], []]
    for _ in range(STEPS):
        spikes = X
        for index, weights in enumerate(network.fc):
            # snntorch resets one step later
            state[index] = 0.9 * state[index] + weights(spikes).detach() - (state[index] > 1).float()
            spikes = (state[index] > 1).float()
            spiked[index].append(spikes)
            membranes[index].append(state[index])
    found = values(measure_initialization(network, of_spikes(X, Y)))
    for index in range(2):
        rates = torch.stack(spiked[index]).mean((0, 1))
        membrane = torch.stack(membranes[index])
        expected = {
            "firing_rate": rates.mean(),
            "dead_share": (rates == 0).float().mean(),
            "saturated_share": (rates > 0.95).float().mean(),
            "membrane_mean": membrane.mean(),
            "membrane_sd": membrane.std(correction=0),
        }
        assert expected["firing_rate"] > 0
        for quantity, value in expected.items():
            assert found[quantity, f"lif.{index}"] == pytest.approx(value.item(), abs=1e-6), quantity


def test_membranes_are_in_units_of_the_threshold_and_saturated_neurons_are_counted():
    network = nn.Sequential(nn.Linear(1, 4, bias=False), LIF(0.5, torch.tensor([1.0, 2.0, 4.0, 8.0])), nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[2.0], [4.0], [40.0], [-8.0]]))
    x = torch.ones(1, 3, 1)
    found = values(check_initialization(network, (x, torch.zeros(3, dtype=torch.long))))
    assert found["membrane_mean", "1"] == pytest.approx((2 + 2 + 10 - 1) / 4)
    assert found["membrane_sd", "1"] == pytest.approx(np.std([2, 2, 10, -1]))
    assert found["firing_rate", "1"] == found["saturated_share", "1"] == 0.75
    assert found["dead_share", "1"] == 0.25


def test_a_folded_network_is_as_its_loop_over_steps():
    loop = Loop(8, 16, 4)
    ours = nn.Sequential(loop.fc[0], LIF(0.9, order="leak_then_reset"), loop.fc[1], LIF(0.9, order="leak_then_reset"))
    found = values(check_initialization(ours, (X.expand(STEPS, -1, -1), Y)))
    expected = values(measure_initialization(loop, of_spikes(X, Y)))
    for quantity in ("firing_rate", "dead_share", "saturated_share", "membrane_mean", "membrane_sd"):
        for mine, its in (("1", "lif.0"), ("3", "lif.1")):
            assert found[quantity, mine] == pytest.approx(expected[quantity, its], abs=1e-6)
    # snntorch's arctangent is ours; its reset is detached, and ours is not
    assert found["spike_gain", "3"] == pytest.approx(expected["spike_gain", "lif.1"], rel=0.3)


@pytest.mark.parametrize("reset", [None, 0.0])
def test_single_and_multi_step_networks_are_measured_alike(reset: float | None):
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    class Net(nn.Module):
        def __init__(self, mode: str) -> None:
            super().__init__()
            torch.manual_seed(0)
            make = [lambda: neuron.LIFNode(v_reset=reset)] * 2
            self.net = nn.Sequential(layer.Linear(8, 16), make[0](), layer.Linear(16, 4), make[1]())
            functional.set_step_mode(self.net, mode)
            self.mode = mode

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self.net)
            sequence = 4 * x.expand(STEPS, -1, -1)
            return self.net(sequence) if self.mode == "m" else torch.stack([self.net(each) for each in sequence])

    def loss(network: Any) -> Tensor:
        return F.cross_entropy(network(X).mean(0), Y)

    single, multi = (values(measure_initialization(Net(mode), loss)) for mode in "sm")
    assert single.keys() == multi.keys()
    assert single["firing_rate", "net.1"] > 0.05
    assert ("membrane_sd", "net.1") in single
    for name, value in single.items():
        random = name[0] in ("spike_gain", "depth_gain")  # other probes
        assert multi[name] == pytest.approx(value, rel=0.2 if random else 1e-5), name


def test_the_gain_is_that_of_the_jacobian_through_time():
    network = Loop(8, 6, 5, 4, steps=4)
    x = torch.rand(60, 8) * 3
    y = torch.arange(60) % 4

    def later(spikes: Tensor) -> Tensor:
        """Return spikes of the second layer from those of the first, `[4, 6]` to `[4, 5]`."""
        membrane, spiked = torch.zeros(5), []
        for each in spikes:
            # the reset is detached
            membrane = 0.9 * membrane + network.fc[1](each) - (membrane > 1).float().detach()
            spiked.append(surrogate.atan()(membrane - 1))
        return torch.stack(spiked)

    first, membrane = [], torch.zeros(60, 6)
    for _ in range(4):
        membrane = 0.9 * membrane + network.fc[0](x) - (membrane > 1).float()
        first.append((membrane > 1).float())
    of_samples = [torch.autograd.functional.jacobian(later, each) for each in torch.stack(first, 1).detach()]
    expected = torch.stack(of_samples).square().sum().div(60 * 4 * 5).sqrt().item()
    found = values(measure_initialization(network, of_spikes(x, y)))
    assert found["spike_gain", "lif.1"] == pytest.approx(expected, rel=0.1)


def digits(folder: Path, samples: int = 64) -> tuple[Tensor, Tensor]:
    with np.load(folder / "mnist.npz") as data:
        images, labels = data["x_train"][:samples], data["y_train"][:samples]
    return torch.from_numpy(images).flatten(1) / 255, torch.from_numpy(labels).long()


def failed(findings: list[Finding]) -> set[str]:
    return {each.quantity for each in findings if each.verdict == "fail"}


@pytest.mark.parametrize("read_out", [of_spikes, of_membranes])
def test_the_network_of_snntorch_s_tutorial_passes_on_digits_and_silent_or_saturated_it_fails(
    shared_data: Path, read_out: Any
):
    loss = read_out(*digits(shared_data))
    findings = measure_initialization(Loop(784, 1000, 10, beta=0.95, steps=10), loss)
    assert not failed(findings)
    silent = measure_initialization(scaled(Loop(784, 1000, 10, beta=0.95, steps=10), 0.01), loss)
    assert {"firing_rate", "dead_share", "membrane_sd"} <= failed(silent)
    assert named(silent)["firing_rate", "lif.0"].value == 0
    assert "scale up the weights before the layer" in named(silent)["firing_rate", "lif.0"].remedy
    saturated = measure_initialization(scaled(Loop(784, 1000, 10, beta=0.95, steps=10), 100), loss)
    assert "membrane_sd" in failed(saturated)
    assert "scale down the weights before the layer" in named(saturated)["membrane_sd", "lif.0"].remedy


def test_our_networks_pass_on_events_and_silent_or_saturated_they_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIGHTNING_SNN_CACHE", str(tmp_path))
    data = Gestures(train_subjects=2, val_subjects=1, test_subjects=1, repetitions=1, time_steps=8, max_count=4)
    data.prepare_data()
    data.setup("fit")
    x, y = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    batch = x[:, :8], y[:8]
    for kind in (MLP, EventConvNet):
        assert not failed(check_initialization(kind(x.shape[2:], 11), batch))
        silent = check_initialization(scaled(kind(x.shape[2:], 11), 0.01), batch)
        assert {"firing_rate", "membrane_sd"} <= failed(silent)
        assert "membrane_sd" in failed(check_initialization(scaled(kind(x.shape[2:], 11), 100), batch))


def test_what_trains_to_chance_fails_and_what_trains_worse_is_a_warning(shared_data: Path):
    loss = of_membranes(*digits(shared_data, 32))

    def verdict(factor: float) -> str | None:
        torch.manual_seed(0)
        network = scaled(Loop(784, 100, 10, beta=0.95, steps=10), factor)
        return named(measure_initialization(network, loss))["membrane_sd", "lif.0"].verdict

    # trained, by spikes: 87, 80, 63, 34 and 24 % right
    assert [verdict(factor) for factor in (1, 3, 5, 10, 20)] == ["ok", "ok", "warn", "fail", "fail"]


@pytest.mark.parametrize(("name", "factor", "too"), [("2", 1e-4, "small"), ("4", 1e-4, "small"), ("4", 1e4, "large")])
def test_the_ratio_names_the_weights_across_which_it_arises(name: str, factor: float, too: str):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), LIF(), nn.Linear(16, 16), LIF(), nn.Linear(16, 4))
    network.get_submodule(name).weight.data.mul_(factor)
    batch = 3 * X.expand(STEPS, -1, -1), torch.ones(12, 4)
    found = named(check_initialization(network, batch, lambda outputs, y: F.mse_loss(outputs.mean(0), y)))
    assert found["gradient_ratio", "all"].verdict == "fail"
    assert found["gradient_ratio", "all"].remedy.startswith(f"check {name} first, whose weights may be too {too}: ")


class Hidden(nn.Module):
    """Network of snntorch's neurons with `init_hidden`, which returns spikes."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        neurons = {"beta": 0.5, "spike_grad": surrogate.fast_sigmoid(slope=25), "init_hidden": True}
        outputs = snntorch.Leaky(**neurons, threshold=threshold, output=True)
        self.net = nn.Sequential(nn.Linear(8, 16), snntorch.Leaky(**neurons), nn.Linear(16, 4), outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net[1::2]:
            layer.reset_mem()
        return torch.stack([self.net(3 * x)[0] for _ in range(STEPS)])


class HiddenModule(pl.LightningModule):
    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.layers = Hidden(threshold)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.layers(batch[0]).sum(0), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


@pytest.mark.parametrize(("threshold", "verdict"), [(2.0, "warn"), (50.0, "fail")])
def test_a_trial_decides_whether_silent_outputs_learn(threshold: float, verdict: str):
    module, check = HiddenModule(threshold), InitializationCheck()
    trainer(check, max_steps=1).fit(module, DataLoader(TensorDataset(X, X[:, :4].argmax(1)), 12))
    found = named(check.findings)
    assert found["firing_rate", "layers.net.1"].value > 0.1
    assert found["dead_share", "layers.net.3"][2:4] == (1.0, verdict)
    assert found["trial_loss", "all"].verdict == ("ok" if verdict == "warn" else "fail")
    assert overall(check.findings) == verdict


SILENT = Finding("firing_rate", "1", 0.0, "fail", "the layer is silent", "larger weights", may_recover=True)
DEAD = Finding("dead_share", "3", 1.0, "warn", "many neurons never spike", "larger weights", may_recover=True)
BLOCKED = Finding("spike_derivative", "1", 0.0, "fail", "no gradient", "a surrogate derivative")


def test_a_network_that_learns_is_warned_of_silence_and_fails_for_what_it_cannot_recover_from():
    *found, trial = with_trial([SILENT, DEAD, BLOCKED], Trial(2.0, 1.8))
    assert [each.verdict for each in found] == ["warn", "warn", "fail"]
    assert found[0].reason == "the layer is silent, but the network learns its first batch"
    assert trial == Finding("trial_loss", "all", 1.8, "ok")


def test_a_network_that_does_not_learn_fails_with_any_silent_layer():
    *found, trial = with_trial([SILENT, DEAD], Trial(2.0, 1.81))
    assert [each.verdict for each in found] == ["fail", "fail"]
    assert (trial.verdict, trial.value) == ("fail", 1.81)
    assert trial.reason == "60 steps on the first batch do not lower its loss of 2 by a tenth"


def test_losses_of_any_sign_are_compared():
    learned = [(2.0, 1.8), (-2.0, -2.2), (-2.0, -1.8), (2.0, float("nan"))]
    assert [Trial(*losses).learned for losses in learned] == [True, True, False, False]
    assert Trial(2.0, 1.9).gains_over(Trial(2.0, 1.95))
    # a network that learns by itself is changed for a fifth only
    assert not Trial(2.0, 1.0).gains_over(Trial(2.0, 1.2))
    assert Trial(2.0, 0.9).gains_over(Trial(2.0, 1.2))
    assert Trial(2.0, 1.0).gains_over(Trial(2.0, float("nan")))
    assert not Trial(2.0, float("nan")).gains_over(Trial(2.0, 1.0))


def test_only_spiking_networks_in_doubt_are_tried():
    fine = Finding("firing_rate", "1", 0.1, "ok")
    assert [needs_trial(each) for each in ([fine], [fine, DEAD], [SILENT])] == [False, True, True]
    assert not needs_trial([Finding("spectral_radius", "1", 0.1, "fail")])


def test_a_last_gradient_of_0_has_its_own_reason():
    network = scaled(nn.Sequential(nn.Linear(8, 16), LIF(), nn.Linear(16, 4)), 0.01)
    found = named(check_initialization(network, (X.expand(STEPS, -1, -1), Y)))["gradient_ratio", "all"]
    assert (found.value, found.verdict) == (float("inf"), "fail")
    assert found.reason.startswith("the gradient of the last weights is 0")


def test_a_convolutional_network_of_spikingjelly_passes_although_its_outputs_are_silent(shared_data: Path):
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    network = nn.Sequential(
        layer.Conv2d(1, 8, 3, padding=1, bias=False),
        layer.BatchNorm2d(8),
        neuron.IFNode(),
        layer.MaxPool2d(2),
        layer.Flatten(),
        layer.Linear(8 * 14 * 14, 64, bias=False),
        neuron.IFNode(),
        layer.Linear(64, 10, bias=False),
        neuron.IFNode(),
    )
    functional.set_step_mode(network, "m")
    x, y = digits(shared_data, 32)
    images = x.view(1, 32, 1, 28, 28).expand(4, -1, -1, -1, -1)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    findings = measure_initialization(network, lambda net: F.cross_entropy(net(images).mean(0), y))
    assert not failed(findings)
    assert named(findings)["firing_rate", "8"].value < 0.01
    assert named(findings)["firing_rate", "8"].verdict == "warn"
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_twenty_layers_whose_gradients_vanish_fail_although_they_spike(shared_data: Path):
    x, y = digits(shared_data, 24)

    def deep(surrogate: Any) -> nn.Sequential:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for index in range(20):
            layers += [nn.Linear(64 if index else 784, 64, bias=False), LIF(0.9, surrogate=surrogate)]
            nn.init.normal_(layers[-2].weight, std=2.0 / layers[-2].in_features ** 0.5)
        return nn.Sequential(*layers, nn.Linear(64, 10))

    vanishing = check_initialization(deep("fast_sigmoid"), (x.expand(6, -1, -1), y))
    found = named(vanishing)
    assert all(each.verdict == "ok" for name, each in found.items() if name[0] == "firing_rate")
    assert {found["depth_gain", "all"].verdict, found["gradient_ratio", "all"].verdict} >= {"fail"}
    assert found["gradient_ratio", "all"].value < 0.01
    assert "surrogate" in found["gradient_ratio", "all"].remedy
    shallow = check_initialization(deep("fast_sigmoid")[34:], (torch.rand(6, 24, 64).round(), y))
    assert not {"depth_gain", "gradient_ratio"} & failed(shallow)


def test_a_membrane_that_is_read_out_is_not_judged_by_its_spikes():
    network = Loop(8, 16, 4)
    network.lif[1] = snntorch.Leaky(beta=0.9, threshold=1e9, reset_mechanism="none")
    found = named(measure_initialization(network, of_membranes(2 * X, Y)))
    assert found["firing_rate", "lif.1"].value == 0
    assert {each.verdict for (_, layer), each in found.items() if layer == "lif.1"} == {None}
    assert ("depth_gain", "all") not in found
    assert found["firing_rate", "lif.0"].verdict == "ok"
    # they are if the loss depends on the spikes
    assert named(measure_initialization(network, of_spikes(2 * X, Y)))["firing_rate", "lif.1"].verdict == "warn"


def test_spikes_without_a_derivative_fail():
    network = Loop(8, 16, 4)
    network.lif[0] = snntorch.Leaky(beta=0.9, surrogate_disable=True)
    network.lif[0].spike_grad = lambda values: (values > 0).float()
    found = named(measure_initialization(network, of_spikes(2 * X, Y)))
    assert found["spike_derivative", "lif.0"].verdict == "fail"
    assert found["spike_derivative", "lif.0"].remedy == "use a surrogate derivative for spikes"
    assert found["gradient_norm", "fc.0"].value == 0
    assert ("spike_derivative", "lif.1") not in found


def test_weights_that_the_loss_does_not_depend_on_take_no_part_in_the_ratio():
    network = Loop(8, 16, 4)
    expected = values(measure_initialization(network, of_spikes(X, Y)))
    network.add_module("unused", nn.Linear(3, 3))
    found = values(measure_initialization(network, of_spikes(X, Y)))
    assert found.pop(("gradient_norm", "unused")) == 0
    assert found == expected
    assert expected["gradient_ratio", "all"] == pytest.approx(
        expected["gradient_norm", "fc.0"] / expected["gradient_norm", "fc.1"]
    )


def test_the_ratio_is_in_the_order_of_use():
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first, self.lif = nn.Linear(6, 4), nn.Linear(8, 6), LIF()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.lif(self.first(x)))

    found = values(check_initialization(Reversed(), (X.expand(STEPS, -1, -1), Y)))
    ratio = found["gradient_norm", "first"] / found["gradient_norm", "last"]
    assert found["gradient_ratio", "all"] == pytest.approx(ratio)


def test_a_layer_that_is_called_twice_with_all_steps_is_two_layers():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.lif = nn.Linear(8, 6), nn.Linear(6, 4), LIF()

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(self.two(self.lif(self.one(x))))

    found = check_initialization(Shared(), (X.expand(STEPS, -1, -1), Y))
    assert [each.layer for each in found if each.quantity == "firing_rate"] == ["lif", "lif_2"]


def test_batch_normalization_that_is_called_every_step_has_the_mean_statistics_of_all():
    norm = nn.BatchNorm1d(3)
    sequence = [torch.randn(20, 3) * scale + scale for scale in (1.0, 2.0, 3.0)]
    module = nn.Sequential(norm)
    copied = frozen_copy(module, lambda net: [net(each) for each in sequence])
    torch.testing.assert_close(copied[0].running_mean, torch.stack(sequence).mean((0, 1)))
    torch.testing.assert_close(copied[0].running_var, torch.stack([each.var(0) for each in sequence]).mean(0))
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert norm.momentum == 0.1
    assert copied.training
    assert not copied[0].training


class InferenceNeurons(nn.Module):
    """Neurons that run without autograd in evaluation mode, as those of SpikingJelly's development version do."""

    def __init__(self) -> None:
        super().__init__()
        self.neurons = LIF()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.neurons(x)
        with torch.no_grad():
            return self.neurons(x)


def test_neurons_that_have_no_gradient_in_evaluation_mode_are_measured_in_training_mode():
    network = nn.Sequential(nn.Linear(8, 16), InferenceNeurons(), nn.Linear(16, 4))
    batch = 3 * X.expand(STEPS, -1, -1), Y
    found = named(check_initialization(network, batch))
    assert not any(quantity == "spike_derivative" for quantity, _ in found)
    assert not failed(list(found.values()))
    assert network.training
    # in evaluation mode they fail, as training in that mode would
    assert named(check_initialization(network.eval(), batch))["spike_derivative", "1.neurons"].verdict == "fail"


def test_spiking_networks_are_measured_with_the_normalization_and_dropout_of_a_training_step():
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), LIF(), nn.Dropout(), nn.Linear(16, 4))
    x = X.expand(STEPS, -1, -1)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    found = values(check_initialization(network, (x, Y)))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    # a step of training from here
    rates: list[float] = []
    network[2].register_forward_hook(lambda layer, args, output: rates.append(output.mean().item()))
    F.cross_entropy(run(network, x).mean(0), Y).backward()
    assert found["firing_rate", "2"] == pytest.approx(rates[0], rel=1e-6)
    for name in ("0", "4"):
        assert found["gradient_norm", name] == pytest.approx(network.get_submodule(name).weight.grad.norm().item())
    assert not torch.equal(network[1].running_mean, state["1.running_mean"])


@pytest.mark.parametrize("by", ["module", "run"])
def test_frozen_batch_normalization_keeps_its_own_statistics(by: str):
    network = nn.Sequential(nn.BatchNorm1d(8), nn.BatchNorm1d(8)).train()
    network[0].running_mean.fill_(3.0)
    network[0].running_var.fill_(4.0)
    if by == "module":
        network[0].eval()

    def run(net: Any) -> Tensor:
        if by == "run":
            net[0].eval()
        return net(X)

    copied = frozen_copy(network, run)
    assert torch.equal(copied[0].running_mean, torch.full((8,), 3.0))
    assert torch.equal(copied[0].running_var, torch.full((8,), 4.0))
    torch.testing.assert_close(copied[1].running_mean, (X.mean(0) - 3) / (4 + 1e-5) ** 0.5)
    assert network[1].num_batches_tracked == 0


def test_normalization_in_evaluation_mode_is_measured_with_one_sample_and_step():
    network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), LIF(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        network[1].running_mean.fill_(-100.0)
    found = values(check_initialization(network, (X[None, :1], Y[:1])))
    assert found["firing_rate", "2"] == 1


def test_a_copy_has_state_of_its_own_without_graph_and_without_inference():
    network = Loop(8, 4)
    network(X)[0].sum().backward()
    assert network.lif[0].mem.grad_fn is not None
    with torch.inference_mode():
        network.kept = [torch.ones(2), {"deep": torch.ones(3)}]  # type: ignore[assignment]
    network.data = TensorDataset(X)  # type: ignore[assignment]
    copied = detached_copy(network)
    assert copied.lif[0].mem.grad_fn is None
    assert torch.equal(copied.lif[0].mem, network.lif[0].mem)
    assert not copied.kept[0].is_inference()
    assert not copied.kept[1]["deep"].is_inference()
    assert copied.kept is not network.kept
    assert copied.data is network.data
    network.handle = (each for each in ())  # type: ignore[assignment]
    with pytest.raises(ValueError, match="Expected a Loop that `copy.deepcopy` can copy .* but got: cannot pickle"):
        detached_copy(network)


def test_a_copy_has_its_trainer_logs_nothing_and_is_not_compiled():
    class Module(pl.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> int:
            self.log("loss", 1.0)
            return batch + self.trainer.global_step

    module = Module()
    module.trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    from_compiled(torch.compile(module, backend="eager"))
    copied = detached_copy(module)
    assert copied.training_step(2, 0) == 2
    assert copied.trainer is module.trainer
    assert "training_step" in vars(module)
    assert "training_step" not in vars(copied)
    assert "log" not in vars(module)


class Plain(pl.LightningModule):
    """Module independent of the library. Its batches are dicts, and its step changes them."""

    def __init__(self, network: nn.Module, automatic: bool = True, result: Any = None) -> None:
        super().__init__()
        self.inner, self.result = network, result
        self.automatic_optimization = automatic
        self.seen: list[float] = []

    def training_step(self, batch: dict[str, Tensor]) -> Any:
        batch["image"].add_(0.1)
        loss = F.cross_entropy(self.inner(batch["image"] + 0.01 * torch.randn(1))[0].mean(0), batch["label"])
        self.seen.append(float(loss.detach()) + self.trainer.global_step)
        self.log("loss", loss)
        return loss if self.result is None else self.result(loss)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    samples = [{"image": x, "label": y} for x, y in zip(2 * X, Y, strict=True)]
    torch.manual_seed(5)
    fitting = trainer(*callbacks, **options)
    fitting.fit(module, DataLoader(samples, 6))
    return fitting


@pytest.mark.parametrize("result", [None, lambda loss: {"loss": loss, "other": 1}])
def test_the_loss_is_that_of_the_module_s_own_step_on_the_whole_batch(result: Any):
    torch.manual_seed(0)
    modules = [Plain(Loop(8, 16, 4), result=result)]
    modules.append(Plain(detached_copy(modules[0].inner), result=result))
    check = InitializationCheck(name="start")
    trainer = fit(modules[0], check)
    fit(modules[1])
    assert modules[0].seen == modules[1].seen
    assert len(modules[0].seen) == 2
    assert values(check.findings).keys() >= {("firing_rate", "inner.lif.0"), ("gradient_norm", "inner.fc.1")}
    assert trainer.callback_metrics["start/firing_rate/inner.lif.0"] == pytest.approx(
        values(check.findings)["firing_rate", "inner.lif.0"], rel=1e-6
    )


def test_a_loss_that_names_no_loss_and_manual_optimization_are_refused():
    with pytest.raises(ValueError, match="training step that returns a loss, or a dict with one.*'str'"):
        fit(Plain(Loop(8, 4), result=lambda loss: "nothing"), InitializationCheck())
    with pytest.raises(
        ValueError, match="automatic optimization .* but got one with manual optimization. Pass `network`"
    ):
        fit(Plain(Loop(8, 4), automatic=False), InitializationCheck())
    with pytest.raises(ValueError, match="spiking layers or ReLUs for InitializationCheck, but got Plain"):
        fit(Plain(nn.Linear(8, 4)), InitializationCheck())
    with pytest.raises(ValueError, match="on_fail='rescale'\\), but got Plain, which has only ReLUs"):
        fit(Plain(nn.Sequential(nn.Linear(8, 4), nn.ReLU())), InitializationCheck(on_fail="rescale"))


def test_a_module_that_optimizes_by_hand_is_measured_by_a_given_loss():
    class Manual(Plain):
        def training_step(self, batch: dict[str, Tensor]) -> None:
            self.optimizers().step()

    module = Manual(nn.Sequential(nn.Linear(8, 16), LIF(), nn.Linear(16, 4)), automatic=False)
    check = InitializationCheck(
        network="inner",
        loss=lambda outputs, y: F.cross_entropy(outputs.sum(0), y),
        read_batch=lambda batch: (batch["image"].expand(STEPS, -1, -1), batch["label"]),
    )
    fit(module, check)
    assert ("firing_rate", "1") in values(check.findings)


def test_the_verdict_of_the_whole_is_the_worst():
    ok, warn, fail = (Finding("quantity", "layer", 1.0, verdict) for verdict in ("ok", "warn", "fail"))
    nothing = Finding("quantity", "layer", 1.0, None)
    assert overall([nothing]) == overall([ok, nothing]) == "ok"
    assert overall([warn, ok]) == "warn"
    assert overall([ok, fail, warn]) == "fail"
