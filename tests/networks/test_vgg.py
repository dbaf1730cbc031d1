from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_snn import run
from lightning_snn.functional.surrogate import ArcTangent, Sigmoid
from lightning_snn.networks import VGG, ResNet, ResNet18, ResNet19
from lightning_snn.nn import LIF
from tests.support.networks import firing_rates_on_an_image, layers, parameters_of, size_of_convolutions
from tests.support.recipes import parse_recipe


def test_vgg_11_is_the_default_and_of_the_size_of_the_literature():
    network = VGG()
    expected = size_of_convolutions(3, 64, 128, 256, 256, 512, 512, 512, 512) + 512 * 10 + 10
    assert parameters_of(network) == expected == 9_228_362
    assert [type(layer).__name__ for layer in network].count("AvgPool2d") == 3
    assert parameters_of(VGG(num_classes=100)) == expected + 90 * 513


@pytest.mark.parametrize(
    ("input_shape", "channels", "planes"),
    [
        ((3, 32, 32), (16, 16, "A", 32, 32, "A", 64), [32, 32, 16, 16, 8]),
        ((1, 28, 28), ("A", 12, "A", 24, 24, "A", 32), [14, 7, 7, 3]),
        ((2, 16, 16), (16, "A", 24, 24, "A", 32), [16, 8, 8, 4]),
    ],
)
def test_any_plan_of_convolutions_and_averages_can_be_written_down(input_shape, channels, planes):
    network = VGG(input_shape, 7, channels)
    seen: list[torch.Size] = []
    for layer in layers(network, LIF):
        layer.register_forward_hook(lambda layer, inputs, spikes: seen.append(spikes.shape))
    assert run(network, torch.randn(4, 2, *input_shape)).shape == (4, 2, 7)
    widths = [entry for entry in channels if entry != "A"]
    assert [tuple(shape) for shape in seen] == [(8, c, p, p) for c, p in zip(widths, planes, strict=True)]


@pytest.mark.parametrize("network", [VGG, ResNet, ResNet18, ResNet19])
def test_the_published_neuron_is_the_default_and_options_reach_every_layer(network):
    def neurons(**options) -> set:
        found = layers(network((1, 8, 8), 3, **options), LIF)
        assert len(found) > 6
        return {(lif.beta, lif.threshold, lif.dynamics) for lif in found}

    ((beta, threshold, dynamics),) = neurons()
    assert (beta, threshold, dynamics.reset, dynamics.detach_reset) == (0.2, 1.0, "subtract", True)
    ((beta, threshold, dynamics),) = neurons(neuron=partial(LIF, 0.5, reset="zero", detach_reset=True))
    assert (beta, threshold, dynamics.reset, dynamics.detach_reset) == (0.5, 1.0, "zero", True)
    assert dynamics.surrogate == ArcTangent()


def test_the_default_surrogate_is_the_derivative_of_the_published_sigmoid():
    surrogate = layers(VGG(), LIF)[0].dynamics.surrogate
    assert surrogate == Sigmoid(0.25)
    distance = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    (published,) = torch.autograd.grad(torch.sigmoid(4 * distance).sum(), distance)
    torch.testing.assert_close(surrogate.derivative(distance.detach()), published, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("channels", [(64, 128, "A", 256, 256, "A", 512, 512, "A", 512, 512), ("A", 12, "A", 24, 24)])
def test_no_layer_is_silent_or_saturated_at_the_start(channels):
    rates = firing_rates_on_an_image(VGG((3, 32, 32), channels=channels), (3, 32, 32))
    assert len(rates) == sum(entry != "A" for entry in channels)
    assert all(0.05 < rate < 0.5 for rate in rates)


def test_the_ann_of_a_plan_has_rectifiers_and_may_take_maxima():
    network = VGG((3, 8, 8), 5, (4, "M", 6, "A"), relu=True)
    kinds = [type(layer) for layer in network]
    block = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert kinds[:8] == [*block, nn.MaxPool2d, *block, nn.AvgPool2d]
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_every_convolution_is_normalized_and_has_no_bias():
    network = VGG(channels=(4, "A", 6))
    norms = layers(network, nn.BatchNorm2d)
    assert [norm.num_features for norm in norms] == [4, 6]
    assert all(convolution.bias is None for convolution in layers(network, nn.Conv2d))
    assert layers(network, nn.Linear)[0].bias is not None


@pytest.mark.parametrize("plan", ["[4,A,6]", '["A", 4, 6]'])
def test_a_plan_can_be_given_on_the_command_line(plan, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = ("--network", "VGG", "--network.channels", plan, "--method", "SurrogateGradient", "--data.root", "x.npz")
    network = parse_recipe("rate_cifar10", monkeypatch, *options, "--data.auto_augment", "false").model.network
    assert [conv.out_channels for conv in layers(network, nn.Conv2d)] == [4, 6]
    assert len(layers(network, nn.AvgPool2d)) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VGG(channels=(4, "X")), '`channels` to hold integers, "A" and "M", but got \'X\''),
        (lambda: VGG(channels=(4, 0)), "`channels` to be an integer of at least 1, but got 0"),
        (lambda: VGG(channels=("A",)), "`channels` to hold at least one integer, but got .'A'."),
        (lambda: VGG(channels=()), "`channels` to hold at least one integer"),
        (lambda: VGG(num_classes=0), "`num_classes` to be an integer of at least 1, but got 0"),
        (lambda: VGG((3, 32)), r"`input_shape` to be channels, height and width, but got \(3, 32\)"),
        (lambda: VGG((3, 0, 32)), "`input_shape` to be an integer of at least 1, but got 0"),
        (lambda: VGG((3, 32, 3), channels=(4, "A", "A")), "`input_shape` to have height and width of at least 4"),
        (lambda: VGG(neuron=partial(LIF, 2.0)), "`beta` to be a number from 0 to 1, but got 2"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=f"Expected argument {message}"):
        make()


def test_a_plane_that_the_pooling_just_uses_up_is_accepted():
    assert run(VGG((1, 4, 4), 3, (4, "A", "A")), torch.randn(2, 3, 1, 4, 4)).shape == (2, 3, 3)
