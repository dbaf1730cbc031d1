from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_snn import SpikingModule, run
from lightning_snn.methods import (
    EProp,
    ExpectationPropagation,
    Method,
    NoisySpikes,
    OnlineThroughTime,
    RateBackprop,
    SpikingBayes,
    SurrogateGradient,
    TimeToFirstSpike,
)
from lightning_snn.networks import SEWResNet
from lightning_snn.networks.sew_resnet import SEWBlock
from lightning_snn.nn import LIF, SpikeGate, folded
from tests.support.networks import firing_rates_on_an_image, layers, parameters_of, size_of_convolutions


def shortcut(inputs: int, outputs: int) -> int:
    return inputs * outputs + 2 * outputs


def test_it_is_of_the_size_of_the_literature():
    stages = (
        size_of_convolutions(64, *[64] * 4),
        size_of_convolutions(64, *[128] * 4) + shortcut(64, 128),
        size_of_convolutions(128, *[256] * 4) + shortcut(128, 256),
        size_of_convolutions(256, *[512] * 4) + shortcut(256, 512),
    )
    stem = 7 * 7 * 3 * 64 + 2 * 64
    # the 11.69 million parameters of Table 1 of Fang et al. 2021
    assert (
        parameters_of(SEWResNet((3, 224, 224), 1000, large_images=True)) == stem + sum(stages) + 513_000 == 11_689_512
    )
    deep = SEWResNet((3, 224, 224), 1000, blocks=(3, 4, 6, 3), large_images=True)
    assert parameters_of(deep) == 21_797_672


@pytest.mark.parametrize("join", ["add", "and", "iand"])
def test_a_block_joins_the_spikes_of_its_branch_with_its_input(join):
    block, x = SEWBlock(3, 3, neuron=partial(LIF, 0.5), join=join).eval(), (torch.rand(6, 3, 4, 4) < 0.5).float()
    nn.init.constant_(block.branch[4].bias, 0.8)
    with folded(2):
        spikes, joined = block.branch(x), block(x)
    assert 0 < spikes.mean() < 1
    expected = {
        "add": spikes + x,
        "and": ((spikes == 1) & (x == 1)).float(),
        "iand": ((spikes == 0) & (x == 1)).float(),
    }
    assert torch.equal(joined, expected[join])
    assert not any(torch.equal(joined, other) for name, other in expected.items() if name != join)


def test_a_block_that_changes_shape_has_a_shortcut_that_spikes():
    block = SEWBlock(3, 5, stride=2, neuron=partial(LIF, 0.5))
    convolution, norm, neurons = block.shortcut
    x = torch.rand(4, 3, 7, 8)
    with folded(2):
        skipped = neurons(norm(nn.functional.conv2d(x, convolution.weight, stride=2)))
        joined = block(x)
        torch.testing.assert_close(joined, block.branch(x) + skipped)
    assert joined.shape == (4, 5, 4, 4)
    assert len(SEWBlock(3, 3).shortcut) == 0


@pytest.mark.parametrize("join", ["add", "and", "iand"])
def test_gating_keeps_spikes_and_adding_counts_them(join):
    network = SEWResNet((2, 8, 8), 3, (6, 8), 3, join)
    seen: list[torch.Tensor] = []
    for block in layers(network, SEWBlock):
        block.register_forward_hook(lambda block, inputs, joined: seen.append(joined))
    assert run(network, torch.randn(4, 3, 2, 8, 8)).shape == (4, 3, 3)
    assert len(seen) == 6
    values = {value for joined in seen for value in joined.unique().tolist()}
    assert values == ({0.0, 1.0, 2.0, 3.0, 4.0} if join == "add" else {0.0, 1.0})


def test_no_layer_is_silent_or_saturated_at_the_start():
    rates = firing_rates_on_an_image(SEWResNet(channels=(16, 32, 64), blocks=2), (3, 32, 32))
    assert all(0.02 < rate < 0.6 for rate in rates)


TRAINS = {
    "add": (SurrogateGradient, RateBackprop, OnlineThroughTime, NoisySpikes),
    "and": (SurrogateGradient, OnlineThroughTime, NoisySpikes),
}


@pytest.mark.parametrize(("join", "method"), [(join, method) for join, kinds in TRAINS.items() for method in kinds])
def test_every_parameter_gets_a_gradient(join: str, method: type[Method]):
    learner = method()
    network = learner.prepare(SEWResNet((2, 8, 8), 3, (4, 8), 1, join))
    learner.training_step(network, torch.rand(4, 8, 2, 8, 8), torch.arange(8) % 3).objective.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("join", "method", "message"),
    [
        ("and", RateBackprop(), r"3.gate: SpikeGate \(the rate of a product of spikes is not the product of their"),
        ("iand", RateBackprop(), r"4.gate: SpikeGate \(the rate of a product"),
        ("add", SpikingBayes(), "3.branch.1: BatchNorm2d"),
        ("add", EProp(), "the network: SEWResNet"),
        ("add", ExpectationPropagation(), "3: SEWBlock"),
        ("and", TimeToFirstSpike(input_shape=(2, 8, 8)), "SpikeGate"),
    ],
)
def test_rules_that_cannot_train_it_say_why(join: str, method: Method, message: str):
    with pytest.raises(ValueError, match=message):
        method.prepare(SEWResNet((2, 8, 8), 3, (4, 8), 1, join))


def test_outputs_are_those_of_one_network_at_every_step():
    network = SEWResNet((1, 8, 8), 3, (4, 6), 1, "iand").eval()
    x = torch.randn(5, 2, 1, 8, 8)
    torch.testing.assert_close(run(network, x)[:2], run(network, x[:2]))
    assert SpikingModule(network, num_classes=3)(x).shape == (5, 2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SEWResNet(channels=()), r"s `channels` and `blocks` to hold one integer for each stage"),
        (lambda: SEWResNet(blocks=(1, 2)), r"s `channels` and `blocks` to hold one integer for each stage"),
        (lambda: SEWResNet(join="or"), " `join` to be one of 'add', 'and', 'iand', but got 'or'"),
        (lambda: SEWBlock(1, 1, join="or"), " `join` to be one of 'add', 'and', 'iand', but got 'or'"),
        (lambda: SpikeGate("or"), " `kind` to be one of 'and', 'iand', but got 'or'"),
        (lambda: SEWResNet(num_classes=0), " `num_classes` to be an integer of at least 1, but got 0"),
        (lambda: SEWResNet((3, 32)), r" `input_shape` to be channels, height and width, but got \(3, 32\)"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=f"Expected argument{message}"):
        make()
