"""Residual networks without normalization."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_snn import run
from lightning_snn.functional import FastSigmoid
from lightning_snn.methods import NoisySpikes, SpikingBayes, SurrogateGradient
from lightning_snn.methods.bayes import BayesianLayer
from lightning_snn.networks import ResidualConvNet, ResidualMLP
from lightning_snn.nn import LIF, MembraneResidual, Sign
from tests.support.networks import layers


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("neuron", [Sign, LIF])
def test_a_network_has_as_many_layers_of_neurons_as_asked_for_and_one_more_of_weights(depth, neuron):
    network = ResidualMLP((1, 4, 4), 3, depth=depth, width=6, neuron=neuron)
    assert len(layers(network, neuron)) == len(layers(network, (LIF, Sign))) == depth
    assert [tuple(layer.weight.shape) for layer in layers(network, nn.Linear)] == [
        (6, 16),
        *[(6, 6)] * (depth - 1),
        (3, 6),
    ]
    assert run(network, torch.rand(2, 5, 1, 4, 4)).shape == (2, 5, 3)


def test_every_block_adds_to_the_stream():
    network, x = ResidualMLP(4, 3, depth=3, width=6), torch.randn(7, 4)
    _, first, one, other, neurons, last = network
    stream = first(x)
    for block in (one, other):
        stream = stream + block.branch[1](block.branch[0](stream))
    assert torch.equal(network(x), last(neurons(stream)))


def test_weights_start_with_the_gain_over_the_root_of_the_fan_in_and_biases_at_zero():
    for network in (ResidualMLP(400, 10, depth=3, width=100, gain=2.0), ResidualConvNet(gain=2.0)):
        for layer in layers(network, (nn.Linear, nn.Conv2d)):
            expected = 2.0 / layer.weight[0].numel() ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=5 / (2 * layer.weight.numel()) ** 0.5)
            assert layer.bias.abs().max() == 0


def test_options_reach_every_layer_of_neurons():
    network = ResidualMLP(4, 3, depth=3, width=6, neuron=partial(LIF, 0.3, 2.0))
    assert {(lif.beta, lif.threshold) for lif in layers(network, LIF)} == {(0.3, 2.0)}
    network = ResidualConvNet(neuron=partial(Sign, "fast_sigmoid"))
    assert {sign.surrogate for sign in layers(network, Sign)} == {FastSigmoid()}


def test_later_stages_halve_the_plane_and_shortcuts_follow():
    network = ResidualConvNet((2, 16, 8), 5, (4, 6, 6), blocks=2)
    blocks = layers(network, MembraneResidual)
    x, shapes = torch.randn(3, 2, 16, 8), []
    stream = network[0](x)
    for block in blocks:
        with torch.no_grad():
            stream = block.shortcut(stream)
        shapes.append(tuple(stream.shape[1:]))
    assert shapes == [(4, 16, 8), (4, 16, 8), (6, 8, 4), (6, 8, 4), (6, 4, 2), (6, 4, 2)]
    kinds = [[type(layer) for layer in block.shortcut.children()] for block in blocks]
    assert kinds == [[], [], [nn.AvgPool2d, nn.Conv2d], [], [nn.AvgPool2d], []]
    assert run(network, x[None].expand(2, *x.shape)).shape == (2, 3, 5)


def test_a_strided_stem_makes_every_later_plane_smaller():
    network, x = ResidualConvNet((2, 16, 8), 5, (4, 6), 1, 2, Sign), torch.randn(3, 2, 16, 8)
    assert network[0](x).shape == (3, 4, 8, 4)
    assert layers(network, MembraneResidual)[-1](network[1](network[0](x))).shape == (3, 6, 4, 2)
    assert run(network, x[None]).shape == (1, 3, 5)


def test_neurons_begin_every_branch_and_a_current_ends_it():
    for block in layers(ResidualConvNet(), MembraneResidual) + layers(ResidualMLP(depth=3), MembraneResidual):
        branch = list(block.branch)
        assert isinstance(branch[0], (LIF, Sign))
        assert isinstance(branch[-1], (nn.Linear, nn.Conv2d))


def test_normalization_is_there_for_comparison_and_refused_by_the_bayesian_method():
    network = ResidualConvNet((1, 8, 8), 3, (4, 6), 1, batch_norm=True)
    convolutions, norms = layers(network, nn.Conv2d), layers(network, nn.BatchNorm2d)
    assert len(norms) == len(convolutions) == 4
    assert all(convolution.bias is None for convolution in convolutions)
    assert not layers(ResidualConvNet(), nn.BatchNorm2d)
    assert run(network, torch.rand(2, 3, 1, 8, 8)).shape == (2, 3, 3)
    with pytest.raises(ValueError, match=r"BatchNorm2d.*Normalization is not needed"):
        SpikingBayes().prepare(network)


@pytest.mark.parametrize("neuron", [LIF, Sign])
@pytest.mark.parametrize(
    "method",
    [SurrogateGradient(), NoisySpikes(), SpikingBayes(kl_weight=0.0), SpikingBayes(kl_weight=0.0, noise_mode="step")],
    ids=lambda method: f"{type(method).__name__}_{getattr(method, 'noise_mode', '')}",
)
def test_both_networks_train_with_every_method(neuron, method):
    for network, x in (
        (ResidualMLP(4, 3, depth=4, width=16, neuron=neuron), 2 * torch.randn(3, 8, 4)),
        (ResidualConvNet((2, 8, 8), 3, (4, 8), 1, neuron=neuron), 2 * torch.randn(3, 8, 2, 8, 8)),
    ):
        prepared = method.prepare(network)
        method.training_step(prepared, x, torch.arange(8) % 3).objective.backward()
        for name, parameter in prepared.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_traces_are_exact_in_a_residual_network_and_refused_where_weight_layers_meet():
    prepared = SpikingBayes(noise_mode="trace").prepare(ResidualMLP(4, 3, depth=4, width=6, neuron=LIF))
    first = layers(prepared, LIF)[0]
    weighted = layers(prepared, BayesianLayer)
    assert weighted[0].targets == (first,)
    assert [len(layer.targets) for layer in weighted] == [1, 1, 1, 1, 0]
    # the readout of the convolutional network receives the stream, not spikes
    with pytest.raises(ValueError, match=r"BayesLinear \(no neurons between it and another weight layer"):
        SpikingBayes(noise_mode="trace").prepare(ResidualConvNet((1, 8, 8), 3, (4, 4), 1))


def first_over_last(network: nn.Module, kappa: float) -> float:
    """Gradient norm of the first weights over that of the last, at the start of training."""
    method = SpikingBayes(kl_weight=0.0, gain=1.0, kappa=kappa)
    prepared = method.prepare(network)
    method.training_step(prepared, torch.randn(1, 64, 64), torch.arange(64) % 10).objective.backward()
    norms = [layer.weight.grad.norm().item() for layer in layers(prepared, BayesianLayer)]
    return norms[0] / norms[-1]


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_cross_twenty_layers_with_shortcuts_and_vanish_without(seed):
    torch.manual_seed(seed)
    network = ResidualMLP(64, 10, depth=20, width=128)
    plain = nn.Sequential(*(module.branch if isinstance(module, MembraneResidual) else module for module in network))
    assert first_over_last(network, kappa=1.0) > 0.1
    assert first_over_last(plain, kappa=1.0) < 1e-2
    # at the width of the posterior that the method starts with, too
    assert first_over_last(network, kappa=0.5) > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualMLP(depth=0), "`depth` to be an integer of at least 1, but got 0"),
        (lambda: ResidualMLP(width=2.5), "`width` to be an integer of at least 1, but got 2.5"),
        (lambda: ResidualMLP((1, 0)), "`input_shape` to be an integer of at least 1, but got 0"),
        (lambda: ResidualMLP(gain=0), "`gain` to be a finite number larger than 0, but got 0"),
        (lambda: ResidualConvNet(stem_stride=0), "`stem_stride` to be an integer of at least 1, but got 0"),
        (lambda: ResidualConvNet(blocks=0), "`blocks` to be an integer of at least 1, but got 0"),
        (lambda: ResidualConvNet(channels=(4, 0)), "`channels` to be an integer of at least 1, but got 0"),
        (
            lambda: ResidualConvNet((1, 8, 12), channels=(4, 4), stem_stride=4),
            r"`input_shape` to have height and width divisible by 8, but got \(1, 8, 12\)",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=f"Expected argument {message}"):
        make()
