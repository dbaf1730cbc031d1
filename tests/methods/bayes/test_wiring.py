"""What drives what in a network whose structure says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_snn.functional import Smooth
from lightning_snn.methods.bayes import BayesConv1d, BayesConv2d, BayesLinear
from lightning_snn.methods.bayes.wiring import mark_inputs, trace_wiring
from lightning_snn.nn import LIF, GaussianNoise, LeakyIntegrator, MembraneResidual, RecurrentLIF, Sign, SynapticDelays


class Opaque(nn.Module):
    """A module whose forward nobody can read."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Skip(nn.Sequential):
    """A chain that is none: spikes come out added to what went in."""

    def forward(self, x):
        return x + super().forward(x)


def bayes() -> BayesLinear:
    return BayesLinear(4, 4)


def values_before(last: nn.Module, *layers: nn.Module) -> str:
    mark_inputs(nn.Sequential(*layers, last))
    return last.input_values


@pytest.mark.parametrize(
    ("layers", "values"),
    [
        ((), "real"),
        ((bayes(),), "real"),
        ((LIF(),), "spikes"),
        ((RecurrentLIF(4),), "spikes"),
        ((Sign(),), "signs"),
        ((LIF(surrogate=Smooth()),), "real"),
        ((Sign(Smooth()),), "real"),
        ((LIF(), nn.Flatten(), nn.Unflatten(1, (2, 2)), nn.Identity()), "spikes"),
        ((LIF(), SynapticDelays((0, 1))), "spikes"),
        ((Sign(), SynapticDelays((0, 1))), "real"),  # what has not arrived yet is 0
        ((Sign(), nn.Flatten()), "signs"),
        ((LIF(), nn.MaxPool2d(2, padding=1)), "spikes"),
        ((Sign(), nn.MaxPool2d(2)), "signs"),
        ((LIF(), nn.AvgPool1d(2)), "real"),
        ((LIF(), nn.AvgPool2d(2)), "real"),
        ((LIF(), nn.AdaptiveAvgPool2d(1)), "real"),
        ((LIF(), LeakyIntegrator()), "real"),
        ((LIF(), nn.Dropout(0.5)), "real"),
        ((LIF(), GaussianNoise(0.5)), "real"),
        ((nn.Sequential(bayes(), nn.Sequential(LIF())),), "spikes"),
        ((LIF(), MembraneResidual(nn.Sequential(LIF()))), "real"),
        ((LIF(), Opaque(LIF())), "real"),
        ((LIF(), Skip(LIF())), "real"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(type(layer).__name__ for layer in value) or "none",
)
def test_the_values_that_reach_a_layer_are_known_where_the_structure_shows_them(layers, values):
    assert values_before(bayes(), *layers) == values


@pytest.mark.parametrize("kind", [BayesConv1d, BayesConv2d])
def test_convolutions_are_told_too(kind):
    assert values_before(kind(2, 2, 3), Sign()) == "signs"


def test_a_layer_with_several_kinds_of_input_takes_the_general_path():
    for first, second in ((LIF(), LIF()), (LIF(), Sign()), (nn.Identity(), LIF())):
        shared = bayes()
        mark_inputs(nn.Sequential(first, shared, second, shared))
        assert shared.input_values == ("spikes" if type(first) is type(second) else "real")


def test_layers_in_branch_and_shortcut_are_told_what_enters_the_block():
    branch, shortcut = bayes(), bayes()
    mark_inputs(nn.Sequential(LIF(), MembraneResidual(nn.Sequential(Sign(), branch), shortcut)))
    assert (branch.input_values, shortcut.input_values) == ("signs", "spikes")


def test_inside_a_module_of_unknown_structure_nothing_is_known():
    inner = bayes()
    wiring = trace_wiring(nn.Sequential(LIF(), Opaque(inner, LIF())))
    assert inner not in wiring.values
    inner.input_values = "spikes"  # of the network where it stood before
    mark_inputs(nn.Sequential(LIF(), Opaque(inner, LIF())))
    assert inner.input_values == "real"


def test_a_chain_drives_the_next_neurons():
    one, other, first, second = bayes(), bayes(), LIF(), LIF()
    wiring = trace_wiring(nn.Sequential(one, nn.Flatten(), first, other, nn.AvgPool1d(2), second, bayes()))
    assert wiring.targets == {one: [first], other: [second]}
    assert not wiring.stacked
    assert wiring.known == {first, second}


def test_a_stream_drives_the_neurons_of_every_later_block():
    inputs, increments = bayes(), [bayes(), bayes()]
    neurons = [LIF(), LIF(), LIF()]
    blocks = [MembraneResidual(nn.Sequential(lif, layer)) for lif, layer in zip(neurons[:2], increments, strict=True)]
    wiring = trace_wiring(nn.Sequential(inputs, *blocks, neurons[2]))
    assert wiring.targets == {inputs: neurons, increments[0]: neurons[1:], increments[1]: neurons[2:]}
    assert not wiring.stacked | wiring.elsewhere


def test_a_projection_of_the_stream_is_stacked_on_what_the_stream_holds():
    inputs, increment, projection = bayes(), bayes(), bayes()
    wiring = trace_wiring(nn.Sequential(inputs, MembraneResidual(nn.Sequential(LIF(), increment), projection), LIF()))
    assert wiring.stacked == {inputs, projection}


def test_what_is_read_out_or_drives_other_neurons_is_heard_elsewhere():
    readout, shared, before_sign = bayes(), bayes(), bayes()
    wiring = trace_wiring(nn.Sequential(shared, LIF(), shared, Sign(), before_sign, Sign(), readout))
    assert wiring.elsewhere == {shared, before_sign, readout}
    assert wiring.targets.keys() == {shared}


@pytest.mark.parametrize("between", [GaussianNoise(0.5), LeakyIntegrator(), Opaque(nn.Flatten())])
def test_neurons_behind_a_module_of_unknown_structure_are_not_known(between):
    source, lif, readout = bayes(), LIF(), bayes()
    wiring = trace_wiring(nn.Sequential(source, between, lif, readout))
    assert not wiring.known
    assert source not in wiring.targets
    assert not wiring.stacked
    assert trace_wiring(nn.Sequential(between, LIF())).known  # nothing is behind it
    stacked = trace_wiring(nn.Sequential(source, between, readout)).stacked
    assert stacked == {readout}


def test_neurons_inside_a_module_of_unknown_structure_are_not_known():
    assert not trace_wiring(nn.Sequential(bayes(), Opaque(LIF()))).known


def test_marking_changes_no_parameter_and_leaves_no_module_behind():
    network = nn.Sequential(bayes(), LIF(), bayes())
    names, state = [name for name, _ in network.named_modules()], dict(network.state_dict())
    mark_inputs(network)
    assert [name for name, _ in network.named_modules()] == names
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
