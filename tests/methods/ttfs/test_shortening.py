"""The report on latency: its predictions against the clipped network, and the windows that it chooses."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_snn.functional.linear_response import accuracy_under_noise, gain_and_noise
from lightning_snn.functional.ttfs import TimeConstraints
from lightning_snn.methods import TimeToFirstSpike
from lightning_snn.methods.ttfs import (
    FirstSpike,
    SpikeEncoder,
    TTFSNetwork,
    calibrate,
    first_spike_layers,
    from_relu,
    latency,
    latency_report,
    set_windows,
)
from lightning_snn.methods.ttfs.clipping import sequential_noise
from lightning_snn.methods.ttfs.observed import observed_activations
from lightning_snn.methods.ttfs.shortening import LARGEST, OPTIMIZED

INPUTS, WIDTH, CLASSES = 30, 48, 10


def relu_network(depth: int, seed: int = 0) -> nn.Sequential:
    """He-initialized layers, `depth` of them hidden, with small biases."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [INPUTS] + [WIDTH] * depth + [CLASSES]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        layer.weight.data.normal_(0, (2 / inputs) ** 0.5, generator=generator)
        layer.bias.data.normal_(0, 0.05, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def samples(network: nn.Module, number: int = 1500, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Random inputs in two batches, whose classes are the predictions of the network."""
    x = torch.rand(number, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).square()
    with torch.no_grad():
        y = network(x).argmax(1)
    return list(zip(x.split(1000), y.split(1000), strict=True))


def mapped(depth: int, seed: int = 0) -> tuple[TTFSNetwork, list[tuple[Tensor, Tensor]]]:
    relu = relu_network(depth, seed)
    data = samples(relu, seed=seed)
    return from_relu(relu, 0.0, 1.0, data[0][0][:1]), data


def test_measured_rows_are_those_of_a_network_with_their_windows():
    network, data = mapped(2)
    report = latency_report(network, data, factors=(1, 4), steps=(3,), measure=True)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    logits = network.eval()(x)
    for row in (*report.by_factor, *report.by_steps):
        trial = copy.deepcopy(network)
        set_windows(trial, row.windows)
        assert latency(trial).item() == pytest.approx(row.latency, rel=1e-12)
        if row.steps is not None:
            for layer in (trial.encoder, *first_spike_layers(trial).values()):
                layer.constraints = TimeConstraints(time_steps=row.steps)
        outputs = trial.eval()(x)
        assert row.measured_accuracy == (outputs.argmax(1) == y).double().mean().item()
        assert row.measured_noise == pytest.approx(gain_and_noise(logits, outputs)[1].item(), rel=1e-9, abs=1e-14)
        predicted = accuracy_under_noise(logits, y, row.predicted_noise).item()
        assert row.predicted_accuracy == pytest.approx(predicted, rel=1e-12)
    assert report.accuracy == 1
    assert report.by_factor[0].measured_noise == pytest.approx(0, abs=1e-12)


def test_windows_of_a_factor_have_its_part_of_the_sum():
    network, data = mapped(4)
    report = latency_report(network, data, factors=(1, 4))
    calibrate(network, [x for x, _ in data], zeta=0.0)
    longest = {name: layer.window.item() for name, layer in first_spike_layers(network).items()}
    for rule in (LARGEST, OPTIMIZED):
        windows = report.windows(4, rule)
        assert list(windows) == list(longest)
        assert sum(windows.values()) == pytest.approx(sum(longest.values()) / 4, rel=1e-3)
    assert report.windows(4, LARGEST) == pytest.approx({name: window / 4 for name, window in longest.items()}, rel=1e-3)
    assert report.windows(1) == report.windows(1, LARGEST)
    assert report.windows(4, OPTIMIZED) != pytest.approx(report.windows(4, LARGEST), rel=1e-2)
    assert report.latency == pytest.approx(latency(network).item(), rel=1e-3)
    best, plain = (
        next(row for row in report.by_factor if (row.rule, row.factor) == (rule, 4)) for rule in (OPTIMIZED, LARGEST)
    )
    assert best.predicted_noise < plain.predicted_noise
    set_windows(network, report.windows(4))
    assert all(layer.overflow == "clip" and not layer.adaptive for layer in first_spike_layers(network).values())
    assert latency(network).item() == pytest.approx(best.latency, rel=1e-12)


def test_layers_are_described_without_clipping():
    network, data = mapped(2)
    set_windows(network, dict.fromkeys(first_spike_layers(network), 0.01))
    report = latency_report(network, data, factors=(), quantiles=(0.5, 0.9))
    x = torch.cat([x for x, _ in data])
    relu = network.to_relu().eval()
    hidden = [module for module in relu.modules() if isinstance(module, nn.Linear)][:-1]
    for layer, found in zip(hidden, report.layers, strict=True):
        x = layer(x).relu()
        emitted = x[x > 0]
        assert found.active == pytest.approx((x > 0).double().mean().item(), abs=1e-4)
        assert found.largest == pytest.approx(emitted.max().item(), rel=1e-3)
        for level, value in found.quantiles.items():
            assert value == pytest.approx(emitted.quantile(level).item(), rel=5e-3)


def test_a_report_leaves_the_network_as_it_was():
    network, data = mapped(2)
    network.train()
    state, layers = copy.deepcopy(network.state_dict()), first_spike_layers(network)
    latency_report(network, data, factors=(4,), steps=(4,), measure=True, fine_tune=lambda trial: None)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())
    assert network.training
    assert all(layer.overflow == "pass" and layer.adaptive and layer.constraints is None for layer in layers.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_fine_tuning_gets_a_copy_under_the_windows_of_each_row():
    network, data = mapped(2)
    seen: list[tuple[float, bool, int | None]] = []

    def predict_first_class(trial: nn.Module) -> None:
        layers = first_spike_layers(trial)
        assert all(layer.overflow == "clip" and not layer.adaptive for layer in layers.values())
        constraints = [layer.constraints for layer in (trial.encoder, *layers.values())]
        seen.append((latency(trial).item(), trial is network, constraints[0] and constraints[0].time_steps))
        assert all(each == constraints[0] for each in constraints)
        with torch.no_grad():
            trial.body.get_submodule("4").bias[0] = 1e6

    report = latency_report(network, data, factors=(4,), steps=(3,), measure=True, fine_tune=predict_first_class)
    rows = (*report.by_factor, *report.by_steps)
    assert seen == [(pytest.approx(row.latency), False, row.steps) for row in rows]
    first = torch.cat([y for _, y in data]).eq(0).double().mean().item()
    unchanged = latency_report(network, data, factors=(4,), steps=(3,), measure=True)
    for row, expected in zip(rows, (*unchanged.by_factor, *unchanged.by_steps), strict=True):
        assert row.fine_tuned_accuracy == first
        assert dataclasses.replace(row, fine_tuned_accuracy=None) == expected


def test_accuracies_are_those_of_the_evaluation_data_and_windows_of_the_other():
    network, data = mapped(2)
    wrong = [(x, (y + 1) % CLASSES) for x, y in samples(network.to_relu().eval(), seed=1)]
    report = latency_report(network, data, evaluation=wrong, factors=(4,), measure=True)
    assert report.accuracy == 0
    assert report.windows(4) == latency_report(network, iter(data), evaluation=wrong, factors=(4,)).windows(4)


def test_a_report_prints_its_tables_and_gives_curves():
    network, data = mapped(2)
    report = latency_report(network, data, factors=(1, 4), steps=(8,), measure=True)
    text = str(report)
    assert text.splitlines()[1].startswith("body.1 ")
    assert "accuracy 100.00 % at latency" in text
    assert sum(line.startswith("optimized") for line in text.splitlines()) == 2
    curves = report.curves()
    assert list(curves) == [LARGEST, OPTIMIZED]
    assert {name: len(values) for name, values in curves[LARGEST].items()} == {
        "latency": 2,
        "predicted": 2,
        "measured": 2,
    }
    assert curves[OPTIMIZED]["latency"] == curves[LARGEST]["latency"][1:]
    assert "fine-tuned" not in text


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(INPUTS, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last((x + self.second(x)).relu())


def test_skip_connections_are_reported():
    relu = Residual().double()
    data = samples(relu)
    report = latency_report(from_relu(relu, 0.0, 1.0, data[0][0][:1]), data, factors=(4,), measure=True)
    for row in report.by_factor:
        assert 0.4 < row.predicted_noise / row.measured_noise < 2.5


def test_layers_that_were_put_together_by_hand_are_reported():
    relu = relu_network(2)
    data = samples(relu)
    network = nn.Sequential(*(FirstSpike() if isinstance(layer, nn.ReLU) else layer for layer in relu))
    found = latency_report(network, data, factors=(4,), steps=(4,), measure=True)
    encoded = latency_report(nn.Sequential(SpikeEncoder(), *network), data, factors=(4,), steps=(4,), measure=True)
    assert [row.predicted_noise for row in found.by_factor] == [row.predicted_noise for row in encoded.by_factor]
    # inputs have times, and these are rounded, only with an encoder
    assert found.by_steps[0].predicted_noise < encoded.by_steps[0].predicted_noise
    assert found.by_steps[0].measured_noise < encoded.by_steps[0].measured_noise


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factors": (0.5,)}, "`factors`"),
        ({"steps": (0,)}, "`steps`"),
        ({"quantiles": (1.0,)}, "`quantiles`"),
        ({"data": []}, "at least one batch"),
        ({"network": nn.Linear(INPUTS, 3)}, "FirstSpike layers, but got Linear"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict[str, object], message: str):
    network, data = mapped(1)
    with pytest.raises(ValueError, match=message):
        latency_report(**{"network": network, "data": data, "factors": (2,), **arguments})


def test_an_iterator_that_is_needed_again_is_refused_before_it_is_read():
    network, data = mapped(1)
    read: list[int] = []

    def stream() -> object:
        read.append(1)
        yield from data

    with pytest.raises(ValueError, match="`data` to be batches that can be read several times"):
        latency_report(network, stream(), factors=(2,))
    with pytest.raises(ValueError, match="`evaluation` to be batches that can be read several times"):
        latency_report(network, data, evaluation=stream(), factors=(2,), measure=True)
    assert read == []
    latency_report(network, stream(), evaluation=data, factors=(2,), measure=True)
    assert read == [1]


def test_shuffled_batches_are_refused_where_outputs_are_compared():
    network, data = mapped(1)
    (x, y) = data[0]
    shuffled = DataLoader(TensorDataset(x, y), batch_size=100, shuffle=True)
    with pytest.raises(ValueError, match="to give the same batches each time"):
        latency_report(network, data, evaluation=shuffled, factors=(2,), measure=True)
    # predictions and accuracies after fine-tuning do not compare outputs
    tuned = latency_report(network, shuffled, factors=(1,), fine_tune=lambda trial: None)
    assert tuned.by_factor[0].fine_tuned_accuracy == tuned.accuracy == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_potentials_that_are_no_numbers_and_silent_layers_are_named(value: float):
    network, data = mapped(2)
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.body.get_submodule("2").bias[0] = value
    with pytest.raises(ValueError, match=r"finite potentials, but got \w+ in body\.3"):
        latency_report(broken, data)
    with torch.no_grad():
        network.body.get_submodule("2").bias.fill_(-100)
    with pytest.raises(ValueError, match=r"spikes in every layer, but got none in body\.3"):
        latency_report(network, data)


@pytest.mark.parametrize("names", [{"nothing": 1.0}, {"body.1": 0.0}, {"body.1": 0.5, "body.3": float("nan")}])
def test_windows_that_cannot_be_set_change_nothing(names: dict[str, float]):
    network, _ = mapped(2)
    with pytest.raises(ValueError, match="Expected argument `windows"):
        set_windows(network, names)
    assert all(layer.window == 1 and layer.overflow == "pass" for layer in first_spike_layers(network).values())


def test_windows_can_be_set_without_clipping():
    network, _ = mapped(1)
    set_windows(network, {"body.1": 3.0}, clip=False)
    (layer,) = first_spike_layers(network).values()
    assert (layer.window.item(), layer.overflow, layer.adaptive) == (3.0, "pass", True)
    assert latency(network) == 4


def test_a_method_keeps_the_windows_that_were_set_while_it_trains():
    network, data = mapped(2)
    report = latency_report(network, data, factors=(4,))
    set_windows(network, report.windows(4))
    method = TimeToFirstSpike(gamma=None, overflow="clip")
    prepared = method.prepare(network)
    x, y = data[0]
    step = method.training_step(prepared, x[None], y)
    assert step.metrics["latency"].item() == pytest.approx(report.by_factor[1].latency, rel=1e-6)
    torch.testing.assert_close(step.output, network.eval()(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("factor", [1 / 16, 0.3])
@pytest.mark.parametrize("depth", [2, 8])
def test_the_unit_of_time_is_free(depth: int, factor: float):
    # weights of the first layer, all biases and windows times c, weights of the readout divided by c
    network, data = mapped(depth)
    x = data[0][0]
    calibrate(network, x, zeta=0.0)
    for _, layer in network.spiking:
        layer.time_domain, layer.overflow = True, "clip"
    scaled = copy.deepcopy(network).eval()
    linear = [layer for layer in scaled.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        linear[0].weight.mul_(factor)
        for layer in linear[:-1]:
            layer.bias.mul_(factor)
        linear[-1].weight.div_(factor)
    set_windows(scaled, {name: factor * layer.window.item() for name, layer in first_spike_layers(scaled).items()})
    expected = network.eval()(x)
    torch.testing.assert_close(scaled(x), expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    assert latency(scaled).item() - 1 == pytest.approx(factor * (latency(network).item() - 1), rel=1e-12)
    # without the weights of the readout they are not the same
    with torch.no_grad():
        linear[-1].weight.mul_(factor)
    assert (scaled(x) - expected).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 4, 8])
def test_noise_and_accuracy_of_trained_networks_are_predicted(shared_data: Path, depth: int):
    with np.load(shared_data / "mnist.npz") as file:
        x, y = (torch.from_numpy(file[name][:8000]) for name in ("x_train", "y_train"))
    x, y = x.flatten(1).float() / 255, y.long()
    torch.manual_seed(depth)
    sizes = [784, *[128] * depth, 10]
    relu = nn.Sequential(*(layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())))[:-1]
    for layer in relu[::2]:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(relu.parameters(), 1e-3)
    for _ in range(6):
        for rows in torch.randperm(6000).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(relu(x[rows]), y[rows]).backward()
            optimizer.step()
    network = from_relu(relu, 0.0, 1.0, x[:1])
    known, tested = [(x[:6000], y[:6000])], [(x[6000:], y[6000:])]
    report = latency_report(network, known, evaluation=tested, factors=(4, 6, 8), measure=True)
    plain = [row for row in report.by_factor if row.rule == LARGEST]
    best = [row for row in report.by_factor if row.rule == OPTIMIZED]
    for row, better in zip(plain, best, strict=True):
        assert 1 / 1.7 < row.predicted_noise / row.measured_noise < 1.7
        # at an eighth, errors that depend on the class cost deep networks more than Gaussian noise
        assert abs(row.predicted_accuracy - row.measured_accuracy) < (0.05 if row.factor < 8 else 0.1)
        assert better.measured_accuracy > row.measured_accuracy - 0.01
    # the control without gains expects much more noise
    activations = observed_activations(network, known, (0.5,))
    windows = activations.largest.where(~activations.free, activations.largest / 8)
    alone = sequential_noise(activations.layers, windows, sequential=False)[1].sum().item()
    assert alone > 1.7 * plain[-1].predicted_noise if depth > 2 else alone > 1.4 * plain[-1].predicted_noise
