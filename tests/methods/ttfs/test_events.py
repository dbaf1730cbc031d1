"""The event-driven simulator: trajectories by hand, and the closed form that it is to prove."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_snn.functional.ttfs import TimeConstraints
from lightning_snn.methods.ttfs import (
    AlphaConv2d,
    AlphaLinear,
    FirstSpike,
    OffsetMap,
    SpikeEncoder,
    SpikePool2d,
    bound_row_sums,
)
from lightning_snn.methods.ttfs.events import safe_window, simulate
from lightning_snn.methods.ttfs.mapping import from_relu
from lightning_snn.methods.ttfs.windows import calibrate

NEURONS = (FirstSpike, AlphaLinear, AlphaConv2d)


pytestmark = pytest.mark.usefixtures("float64_by_default")


def in_a_row(network: nn.Module) -> nn.Module:
    """Windows one after the other, in order of registration."""
    end = 1.0
    for layer in network.modules():
        if isinstance(layer, NEURONS):
            layer.t_min.fill_(end)
            end = float(layer.t_max)
    return network.eval()


def fitted(network: nn.Module, x: Tensor, margin: float = 1.5) -> nn.Module:
    """Windows of so many times the largest remaining time."""
    for layer, remaining in remaining_times(network.double(), x).items():
        layer.window.fill_(margin * remaining.max().item())
    return in_a_row(network)


def remaining_times(network: nn.Module, x: Tensor) -> dict[nn.Module, Tensor]:
    """Return the closed form of the network for each layer of neurons."""
    found: dict[nn.Module, Tensor] = {}
    layers = [layer for layer in network.modules() if isinstance(layer, NEURONS)]
    handles = [layer.register_forward_hook(lambda layer, _, out: found.update({layer: out})) for layer in layers]
    network.eval()(x)
    for handle in handles:
        handle.remove()
    return found


def compare(network: nn.Module, x: Tensor, **options: bool) -> tuple[int, float]:
    """Neurons that spike in one model only, and the largest difference of the other spike times."""
    record, mismatches, worst = simulate(network, x, **options), 0, 0.0
    for (name, layer), remaining in zip(
        ((name, layer) for name, layer in network.named_modules() if isinstance(layer, NEURONS)),
        remaining_times(network, x).values(),
        strict=True,
    ):
        times = record.times[name]
        if options.get("forced"):
            times = times.where(times < layer.t_max, torch.inf)
        assert times.shape == remaining.shape
        mismatches += int((times.isfinite() != (remaining > 0)).sum())
        both = times.isfinite() & (remaining > 0)
        worst = max(worst, (times - (layer.t_max - remaining))[both].abs().max().item())
    return mismatches, worst


def inputs(*shape: int) -> Tensor:
    return torch.rand(shape) * 2 - 1


def trained_mlp() -> tuple[nn.Sequential, Tensor]:
    """Three hidden layers that tell five noisy clusters apart, and ten samples."""
    return copy.deepcopy(_trained_mlp())


@functools.cache
def _trained_mlp() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    y = torch.arange(250) % 5
    x = (inputs(5, 30)[y] + 0.3 * torch.randn(250, 30)).clamp(-1, 1)
    hidden = [part for _ in range(2) for part in (nn.Linear(32, 32), FirstSpike())]
    network = nn.Sequential(SpikeEncoder(-1, 1), nn.Linear(30, 32), FirstSpike(), *hidden, nn.Linear(32, 5))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return network.requires_grad_(False), x[:10]


def alpha_mlp(mapped: bool) -> nn.Sequential:
    relu = [nn.Linear(30, 32), nn.Linear(32, 32), nn.Linear(32, 5)]
    bound_row_sums(relu, high=0.8)
    network = nn.Sequential(
        SpikeEncoder(-1, 1), AlphaLinear(30, 32, window=9.0), AlphaLinear(32, 32, window=20.0), relu[2]
    )
    if mapped:
        for layer, of in zip(network[1:3], relu, strict=False):
            layer.copy_relu(of)
    else:
        for layer in network[1:3]:
            nn.init.kaiming_normal_(layer.weight)
    return in_a_row(network)


class Residual(nn.Module):
    """A skip connection over two layers, into a neuron or past it."""

    def __init__(self, join: Callable[..., Tensor], width: int = 16) -> None:
        super().__init__()
        self.join = join
        self.encoder = SpikeEncoder(-1, 1)
        self.synapses = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.neurons = nn.ModuleList(FirstSpike() for _ in range(4))
        self.readout = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.neurons[0](self.synapses[0](self.encoder(x)))
        second = self.neurons[1](self.synapses[1](first))
        return self.readout(self.join(self, first, self.synapses[2](second)))


def into_the_neuron(net: Residual, skip: Tensor, branch: Tensor) -> Tensor:
    return net.neurons[2](branch + skip)


def through_a_projection(net: Residual, skip: Tensor, branch: Tensor) -> Tensor:
    return net.neurons[2](branch.add(net.synapses[3](skip)))


def past_the_neuron(net: Residual, skip: Tensor, branch: Tensor) -> Tensor:
    return skip + net.neurons[2](branch)


def concatenated(net: Residual, skip: Tensor, branch: Tensor) -> Tensor:
    return torch.cat([skip, net.neurons[2](branch)], 1)


def by_a_relay(net: Residual, skip: Tensor, branch: Tensor) -> Tensor:
    return net.neurons[2](branch + net.neurons[3](skip))


JOINS = (into_the_neuron, through_a_projection, past_the_neuron, concatenated)


def residual(join: Callable[..., Tensor], x: Tensor) -> Residual:
    network = Residual(join, 16 if join is concatenated else 8)
    if join is not by_a_relay:
        network.neurons = network.neurons[:3]
    return fitted(network, x)


def two_inputs(window: float) -> nn.Sequential:
    """Excited at 0.2, inhibited more from 0.5 on: V = 0, 0.9, 0.4 at 0.2, 0.5 and 1."""
    network = nn.Sequential(SpikeEncoder(), nn.Linear(2, 1), FirstSpike(window), nn.Linear(1, 1))
    for parameter, values in zip(network.parameters(), ([[3.0, -4.0]], [0.0], [[2.0]], [0.25]), strict=True):
        parameter.data = torch.tensor(values)
    return in_a_row(network)


X = torch.tensor([[0.8, 0.5]], dtype=torch.float64)


def test_a_potential_is_that_of_a_trajectory_by_hand():
    record = simulate(two_inputs(0.7), X)
    assert record.layers == ("0", "2")
    assert record.times["0"].flatten().tolist() == pytest.approx([0.2, 0.5], abs=1e-15)
    assert record.potential["2"].item() == pytest.approx(0.4, abs=1e-15)
    assert record.peak["2"].item() == pytest.approx(0.9, abs=1e-15)
    # 0.3 are missing at t_min = 1; read out at 1.7
    assert record.times["2"].item() == pytest.approx(1.3, abs=1e-15)
    assert record.outputs.item() == pytest.approx(2 * 0.4 + 0.25, abs=1e-15)
    assert record.t_read == pytest.approx(1.7)


def test_without_a_gate_a_neuron_fires_at_its_first_crossing():
    network = two_inputs(0.6)
    gated, free = simulate(network, X), simulate(network, X, gated=False)
    assert gated.times["2"].item() == pytest.approx(1.2)
    assert free.times["2"].item() == pytest.approx(0.2 + 0.6 / 3)
    assert gated.early_crossings == free.early_crossings == {"2": 1}
    assert not gated.overflow["2"].any()


def test_a_neuron_above_its_threshold_at_t_min_fires_there():
    record = simulate(two_inputs(0.3), X)
    assert record.times["2"].item() == 1.0
    assert record.overflow["2"].all()
    assert record.early_crossings == {"2": 1}


def test_the_safe_window_is_the_bound_on_excitation_alone():
    network = two_inputs(0.6)
    network[1].bias.data.fill_(0.1)
    assert safe_window(network, X) == {"2": pytest.approx(3 * 0.8 + 0.1, abs=1e-14)}
    network[1].bias.data.fill_(-0.1)
    assert safe_window(network, X) == {"2": pytest.approx(3 * 0.8, abs=1e-14)}


def test_spikes_of_a_trained_network_are_those_of_the_closed_form():
    network, x = trained_mlp()
    mismatches, worst = compare(fitted(network, x), x)
    assert mismatches == 0
    assert worst < 1e-12
    record = simulate(network, x)
    torch.testing.assert_close(record.outputs, network(x), rtol=0, atol=1e-12)
    assert record.t_read == pytest.approx(1 + sum(float(network[index].window) for index in (2, 4, 6)))
    for index in (2, 4, 6):
        remaining = remaining_times(network, x)[network[index]]
        fires = remaining > 0
        potential = record.potential[str(index)] + network[index - 1].bias
        torch.testing.assert_close(potential[fires], remaining[fires], rtol=0, atol=1e-12)
        assert (potential[~fires] <= 0).all()


def test_spikes_are_those_of_the_time_domain_path():
    network, x = trained_mlp()
    fitted(network, x)
    for index in (2, 4, 6):
        network[index].time_domain = True
    mismatches, worst = compare(network, x)
    assert mismatches == 0
    assert worst < 1e-11


@pytest.mark.parametrize("mapped", [True, False])
def test_spikes_of_neurons_of_other_slopes_are_those_of_the_closed_form(mapped: bool):
    network, x = alpha_mlp(mapped), inputs(6, 30)
    assert (network[1].slope <= 0).any() != mapped
    for index in (1, 2):
        assert remaining_times(network, x)[network[index]].max() < network[index].window or not mapped
    if not mapped:
        # neurons with B near 0 spike before t_min, where the gate holds them
        with torch.no_grad():
            network[1].bias.copy_(network[1].bias.abs() + 4), network[2].bias.copy_(network[2].bias.abs() + 30)
    record = simulate(network, x)
    assert not any(mask.any() for mask in record.overflow.values())
    mismatches, worst = compare(network, x)
    assert mismatches == 0
    assert worst < 1e-11


def test_a_single_slope_is_exact_only_where_the_silent_are_forced_to_spike():
    network, x = trained_mlp()
    fitted(network, x)
    reference = simulate(network, x)
    mismatches, worst = compare(network, x, single_slope=True, forced=True)
    assert mismatches == 0
    assert worst < 1e-9
    wrong = simulate(network, x, single_slope=True)
    differs = [(wrong.times[name] - reference.times[name]).abs() > 1e-6 for name in ("2", "4", "6")]
    silent = [wrong.times[name].isinf() != reference.times[name].isinf() for name in ("2", "4", "6")]
    assert torch.stack([one | other for one, other in zip(differs, silent, strict=True)]).double().mean() > 0.2
    assert (wrong.outputs - reference.outputs).abs().max() > 0.1


def test_forced_spikes_carry_no_potential_and_make_everybody_spike():
    network, x = trained_mlp()
    fitted(network, x)
    plain, forced = simulate(network, x), simulate(network, x, forced=True)
    torch.testing.assert_close(forced.outputs, plain.outputs, rtol=0, atol=1e-12)
    assert all(times.isfinite().all() for times in forced.times.values())
    assert len(forced.spikes().time) == 10 * (30 + 3 * 32) > len(plain.spikes().time)


def test_potentials_stay_below_the_excitation_and_cross_early_only_below_the_safe_window():
    network, x = trained_mlp()
    fitted(network, x)
    safe = safe_window(network, x)
    record = simulate(network, x)
    excitation = network[0](x)
    for index in (2, 4, 6):
        bound = excitation @ network[index - 1].weight.T.clamp(min=0)
        assert (record.peak[str(index)] <= bound + 1e-12).all()
        expected = (bound + network[index - 1].bias.clamp(min=0)).max().item()
        assert safe[str(index)] == pytest.approx(expected, rel=1e-12)
        excitation = remaining_times(network, x)[network[index]]
        assert safe[str(index)] >= excitation.max() - 1e-12
        network[index].window.fill_(safe[str(index)] + 1e-9)
    in_a_row(network)
    assert simulate(network, x).early_crossings == {"2": 0, "4": 0, "6": 0}
    assert torch.equal(simulate(network, x, gated=False).outputs, simulate(network, x).outputs)


def test_the_safe_window_bounds_layers_in_a_row():
    network = in_a_row(nn.Sequential(SpikeEncoder(), nn.Linear(2, 1), nn.Linear(1, 1), FirstSpike(1.0)))
    for parameter, values in zip(network.parameters(), ([[-3.0, 4.0]], [0.0], [[-1.0]], [0.0]), strict=True):
        parameter.data = torch.tensor(values)
    peak = simulate(network, X).peak["3"].item()
    assert peak == pytest.approx(0.9)
    # the excitation of each weight alone would be 0
    assert safe_window(network, X)["3"] == pytest.approx(3 * 0.8)


def test_a_window_below_the_peak_is_crossed_early_and_without_a_gate_the_output_changes():
    network, x = trained_mlp()
    fitted(network, x, margin=0.6)
    gated, free = simulate(network, x), simulate(network, x, gated=False)
    assert gated.early_crossings["2"] > 0
    assert all((gated.overflow[name] <= gated.early[name]).all() for name in gated.early)
    assert (gated.outputs - free.outputs).abs().max() > 1e-3


def test_a_gate_is_what_clips_the_closed_form():
    network, x = trained_mlp()
    fitted(network, x, margin=0.6)
    for index in (2, 4, 6):
        network[index].overflow = "clip"
    mismatches, worst = compare(network, x)
    assert mismatches == 0
    assert worst < 1e-12


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"),
    ],
    ids=str,
)
@pytest.mark.parametrize("single_slope", [False, True])
def test_convolutions_gather_the_spikes_under_their_kernel(layer: nn.Module, single_slope: bool):
    x = inputs(2, 4, 6, 7)
    network = fitted(nn.Sequential(SpikeEncoder(-1, 1), copy.deepcopy(layer), FirstSpike(), nn.Flatten()), x)
    mismatches, worst = compare(network, x, single_slope=single_slope, forced=single_slope)
    assert mismatches == 0
    assert worst < 1e-12


def test_a_convolution_of_sequences_and_of_other_slopes():
    x = inputs(2, 4, 9)
    network = nn.Sequential(
        SpikeEncoder(-1, 1), nn.Conv1d(4, 6, 3, 2, 1), FirstSpike(), nn.MaxPool1d(2), nn.Conv1d(6, 2, 1)
    )
    assert compare(fitted(network, x), x) == (0, pytest.approx(0, abs=1e-12))
    torch.testing.assert_close(simulate(network, x).outputs, network(x), rtol=0, atol=1e-12)
    x = inputs(2, 3, 6, 6)
    network = in_a_row(nn.Sequential(SpikeEncoder(-1, 1), AlphaConv2d(3, 4, 3, padding=1, window=6.0)))
    with torch.no_grad():
        network[1].weight.mul_(0.3), network[1].bias.abs_()
    assert remaining_times(network, x)[network[1]].max() < 6
    for options in ({}, {"single_slope": True, "forced": True}):
        assert compare(network, x, **options) == (0, pytest.approx(0, abs=1e-11))


@pytest.mark.parametrize(
    "pool",
    [
        SpikePool2d(2),
        SpikePool2d(3, 2, 1, sign=torch.tensor([1.0, -1, 1, -1])),
        SpikePool2d(2, dilation=2, ceil_mode=True, sign=-torch.ones(4)),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Sequential(SpikePool2d(2, 1), nn.AvgPool2d(2, 1)),
    ],
    ids=str,
)
def test_pools_are_races_and_averages_are_synapses(pool: nn.Module):
    x = inputs(2, 3, 7, 7)
    layers = [
        nn.Conv2d(3, 4, 3),
        OffsetMap((4, 5, 5)),
        FirstSpike(),
        pool,
        nn.Conv2d(4, 5, 2),
        FirstSpike(),
        nn.Flatten(),
    ]
    network = nn.Sequential(SpikeEncoder(-1, 1), *layers, nn.LazyLinear(3))
    network(x)
    nn.init.normal_(network[2].offset, std=0.3)
    fitted(network, x)
    mismatches, worst = compare(network, x)
    assert mismatches == 0
    assert worst < 1e-12
    torch.testing.assert_close(simulate(network, x).outputs, network(x), rtol=0, atol=1e-12)


def test_averages_between_synapses_and_neurons_and_before_the_logits():
    class Averages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.first, self.second = SpikeEncoder(-1, 1), FirstSpike(), FirstSpike()
            self.conv, self.other, self.pool = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.AvgPool2d(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(self.pool(self.conv(self.encoder(x))))
            return self.other(self.second(hidden)).mean((2, 3))

    x = inputs(2, 3, 6, 6)
    network = fitted(Averages(), x)
    assert compare(network, x) == (0, pytest.approx(0, abs=1e-12))
    torch.testing.assert_close(simulate(network, x).outputs, network(x), rtol=0, atol=1e-12)


def test_layers_in_a_row_are_one_layer_of_synapses():
    x = inputs(2, 3, 6, 6)
    convolutions = [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 2, padding=1)]
    network = nn.Sequential(
        SpikeEncoder(-1, 1), *convolutions, FirstSpike(), nn.Flatten(), nn.Linear(80, 4), nn.Linear(4, 3)
    )
    assert compare(fitted(network, x), x) == (0, pytest.approx(0, abs=1e-12))
    torch.testing.assert_close(simulate(network, x).outputs, network(x), rtol=0, atol=1e-12)


class Block(nn.Module):
    """A basic block with a strided shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        norms = [nn.BatchNorm2d(outside) for _ in range(3)]
        first, second = nn.Conv2d(inside, outside, 3, stride, 1), nn.Conv2d(outside, outside, 3, 1, 1)
        self.branch = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1])
        self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride), norms[2]) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


@pytest.mark.parametrize("skips", ["delay", "relay"])
def test_a_mapped_residual_network_is_its_relu_network(skips: str):
    """Batch normalization before, and with negative scales after the ReLU, max-pooling, strided skips."""
    stem = [nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), nn.BatchNorm2d(6), nn.MaxPool2d(2)]
    blocks = [Block(6, 6, 1), Block(6, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    relu = nn.Sequential(*stem, *blocks)
    for layer in relu.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value in (layer.weight.data, layer.bias.data, layer.running_mean):
                value.normal_()
    x = inputs(3, 3, 8, 8)
    network = from_relu(relu.eval(), -1.0, 1.0, x, skips)
    calibrate(network, [x])
    record = simulate(network, x)
    assert list(record.layers[1:]) == [name for name, _ in network.spiking] == list(safe_window(network, x))
    torch.testing.assert_close(record.outputs, relu(x), rtol=0, atol=1e-12)
    assert not any(mask.any() for mask in record.overflow.values())
    for name, layer in network.spiking:
        remaining = remaining_times(network, x)[layer]
        assert torch.equal(record.times[name].isfinite(), remaining > 0)
    assert (simulate(network, x, delays=False).outputs - relu(x)).abs().max() > 0.1


@pytest.mark.parametrize("join", JOINS)
def test_delayed_skips_are_exact_and_undelayed_ones_are_not(join: Callable[..., Tensor]):
    x = inputs(4, 8)
    network = residual(join, x)
    mismatches, worst = compare(network, x)
    assert mismatches == 0
    assert worst < 1e-12
    expected = network(x)
    torch.testing.assert_close(simulate(network, x).outputs, expected, rtol=0, atol=1e-12)
    assert (simulate(network, x, delays=False).outputs - expected).abs().max() > 1e-2


def test_a_relay_hands_on_the_remaining_time():
    x = inputs(4, 8)
    network = residual(by_a_relay, x)
    relay, last = network.neurons[3], network.neurons[2]
    relay.t_min.copy_(network.neurons[0].t_max)
    last.t_min.copy_(torch.maximum(relay.t_max, network.neurons[1].t_max))
    torch.testing.assert_close(simulate(network, x).outputs, network(x), rtol=0, atol=1e-12)


def test_a_float32_network_is_simulated_in_float64_and_left_as_it_is():
    network, x = trained_mlp()
    fitted(network, x)
    exact = simulate(network, x).outputs
    single = copy.deepcopy(network).float().train()
    before = copy.deepcopy(single.state_dict())
    record = simulate(single, x.float())
    assert record.outputs.dtype == torch.float64
    torch.testing.assert_close(record.outputs, exact, rtol=0, atol=1e-4)
    safe_window(single, x.float())
    assert single.training
    assert all(torch.equal(before[name], value) for name, value in single.state_dict().items())
    assert single[2].peak is None or single[2].peak.dtype != torch.float32
    assert not any(layer._forward_hooks for layer in single.modules())


def test_the_table_lists_every_spike_in_order(tmp_path: Path):
    network, x = trained_mlp()
    record = simulate(fitted(network, x), x)
    table = record.spikes()
    assert record.layers == ("0", "2", "4", "6")
    for layer, times in enumerate(record.times.values()):
        chosen = table.layer == layer
        assert chosen.sum() == times.isfinite().sum()
        found = times.numpy()[table.sample[chosen], table.neuron[chosen]]
        assert np.array_equal(found, table.time[chosen])
    assert np.array_equal(np.lexsort((table.time, table.layer, table.sample)), np.arange(len(table.time)))
    np.savez(tmp_path / "spikes.npz", **table._asdict())
    assert np.array_equal(np.load(tmp_path / "spikes.npz")["time"], table.time)


def test_wide_layers_are_walked_through_in_parts(monkeypatch: pytest.MonkeyPatch):
    network, x = trained_mlp()
    fitted(network, x)
    whole = simulate(network, x).outputs
    monkeypatch.setattr("lightning_snn.methods.ttfs.events.simulator._ARRIVALS", 200)
    assert torch.equal(simulate(network, x).outputs, whole)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Linear(4, 4), nn.BatchNorm1d(4), FirstSpike()], "2: BatchNorm1d on currents"),
        ([nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)], "2: ReLU on currents"),
        ([nn.Linear(4, 4), AlphaLinear(4, 2)], "2: AlphaLinear on currents"),
    ],
)
def test_layers_without_spikes_are_refused_by_name(layers: list[nn.Module], reason: str):
    with pytest.raises(ValueError, match=f"that the event simulator supports, but got {reason}"):
        simulate(in_a_row(nn.Sequential(SpikeEncoder(), *layers)), torch.rand(1, 4))


def test_inputs_that_no_encoder_makes_spikes_are_refused():
    with pytest.raises(ValueError, match="0: Linear on numbers"):
        simulate(in_a_row(nn.Sequential(nn.Linear(4, 4), FirstSpike())), torch.rand(1, 4))


def test_windows_that_overlap_are_refused():
    network = two_inputs(0.6)
    network[2].t_min.fill_(0.5)
    with pytest.raises(ValueError, match="window of 2 to start after those of its inputs, but got a start at 0.5"):
        simulate(network, X)


def test_constrained_neurons_are_refused():
    network = two_inputs(0.6)
    network[2].constraints = TimeConstraints(jitter=0.1)
    with pytest.raises(ValueError, match="no constraints on spike times for the event simulator, but got some on 2"):
        simulate(network, X)


def test_max_pooling_of_averaged_spikes_is_refused():
    network = nn.Sequential(SpikeEncoder(), nn.AvgPool2d(2), SpikePool2d(2))
    with pytest.raises(ValueError, match="spikes that were averaged or added"):
        simulate(network, torch.rand(1, 1, 4, 4))


def test_safe_windows_are_for_unit_slopes():
    with pytest.raises(ValueError, match="unit slope for safe windows, but got 1: AlphaLinear"):
        safe_window(alpha_mlp(mapped=True), inputs(1, 30))


@pytest.mark.parametrize("options", [{}, {"gated": False}, {"forced": True}, {"single_slope": True, "forced": True}])
def test_an_input_of_nan_never_becomes_silence(options: dict[str, bool]):
    torch.manual_seed(0)
    network = nn.Sequential(SpikeEncoder(), nn.Linear(4, 5), FirstSpike(), nn.Linear(5, 3))
    x = torch.rand(3, 4)
    network = fitted(network, x)
    clean = simulate(network, x, **options)
    x[1, 2] = torch.nan
    bad = simulate(network, x, **options)
    assert bad.times["0"].isnan().nonzero().tolist() == [[1, 2]]
    assert bad.times["2"][1].isnan().all()
    assert bad.potential["2"][1].isnan().all()
    assert torch.equal(bad.outputs.isnan(), network(x).isnan())
    assert torch.equal(bad.outputs[[0, 2]], clean.outputs[[0, 2]])
    assert np.isnan(bad.spikes().time).sum() == 1 + 5
    assert not np.isnan(clean.spikes().time).any()


def test_a_weight_of_nan_counts_for_silent_inputs_too():
    network = nn.Sequential(SpikeEncoder(), nn.Linear(2, 2), FirstSpike(), nn.Linear(2, 1))
    x = torch.tensor([[0.0, 0.5]])
    network = fitted(network, torch.rand(3, 2))
    with torch.no_grad():
        network[1].weight[0, 0] = torch.nan
    closed = remaining_times(network, x)[network[2]]
    record = simulate(network, x)
    assert torch.equal(record.times["2"].isnan(), closed.isnan())
    assert closed.isnan().tolist() == [[True, False]]


def test_an_infinite_time_stays_silence_by_a_pool_of_nan_and_silence():
    pool = nn.Sequential(SpikeEncoder(), SpikePool2d(2), nn.Flatten(), nn.Linear(2, 1))
    x = torch.tensor([[[[0.2, 0.0, torch.nan, 0.0], [0.0, 0.4, 0.0, 0.0]]]])
    record = simulate(pool, x)
    assert record.times["0"].isinf().sum() == 5
    assert record.outputs.isnan().all()
    assert pool.double()(x).isnan().all()
    x[..., 2] = 0.0
    torch.testing.assert_close(simulate(pool, x).outputs, pool(x))
