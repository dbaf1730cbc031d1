from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_snn import SpikingModule, run
from lightning_snn.methods import SurrogateGradient
from lightning_snn.networks import ResNet, ResNet18, ResNet19
from lightning_snn.networks.resnet import BasicBlock
from lightning_snn.nn import LIF, folded
from tests.support.networks import firing_rates_on_an_image, layers, parameters_of, size_of_convolutions


def shortcut(inputs: int, outputs: int) -> int:
    return inputs * outputs + 2 * outputs


def test_resnet_18_is_of_the_size_of_the_literature():
    stages = (
        size_of_convolutions(3, 64, *[64] * 4),
        size_of_convolutions(64, *[128] * 4) + shortcut(64, 128),
        size_of_convolutions(128, *[256] * 4) + shortcut(128, 256),
        size_of_convolutions(256, *[512] * 4) + shortcut(256, 512),
    )
    assert parameters_of(ResNet18()) == sum(stages) + 512 * 10 + 10 == 11_173_962


def test_resnet_19_is_of_the_size_of_the_literature():
    stages = (
        size_of_convolutions(3, 128, *[128] * 6),
        size_of_convolutions(128, *[256] * 6) + shortcut(128, 256),
        size_of_convolutions(256, *[512] * 4) + shortcut(256, 512),
    )
    # the layer before the readout is normalized, and has no bias
    assert parameters_of(ResNet19()) == sum(stages) + 512 * 256 + 2 * 256 + 256 * 10 + 10 == 12_698_250


@pytest.mark.parametrize(("network", "depth"), [(ResNet18, 18), (ResNet19, 19)])
def test_the_name_counts_the_weight_layers(network, depth):
    made = network()
    counted = [layer for layer in layers(made, (nn.Conv2d, nn.Linear)) if getattr(layer, "kernel_size", 0) != (1, 1)]
    assert len(counted) == depth
    assert len(layers(made, LIF)) == depth - 1


def test_a_block_adds_its_input_to_two_convolutions_before_the_last_neurons():
    block, x = BasicBlock(3, 3, neuron=partial(LIF, 0.5)).eval(), (torch.rand(6, 3, 4, 4) < 0.5).float()
    first, first_norm, neurons, second, second_norm = block.branch
    nn.init.constant_(second_norm.bias, 0.4)
    with folded(2):
        branch = second_norm(second(neurons(first_norm(first(x)))))
        assert torch.equal(block(x), block.neurons(branch + x))
        # negative control: without the shortcut other neurons fire
        assert not torch.equal(block(x), block.neurons(branch))


def test_a_block_that_changes_shape_has_a_normalized_shortcut():
    block = BasicBlock(3, 5, stride=2)
    (convolution, norm) = block.shortcut
    assert (convolution.kernel_size, convolution.bias) == ((1, 1), None)
    x = torch.rand(4, 3, 7, 8)
    with folded(2):
        expected = norm(nn.functional.conv2d(x, convolution.weight, stride=2)) + block.branch(x)
        spikes = block(x)
        torch.testing.assert_close(spikes, block.neurons(expected))
        assert spikes.shape == (4, 5, 4, 4)
    assert len(BasicBlock(3, 3).shortcut) == 0
    assert len(BasicBlock(3, 3, stride=2).shortcut) == len(BasicBlock(3, 5).shortcut) == 2


@pytest.mark.parametrize(
    ("channels", "blocks", "planes"),
    [
        ((16, 32, 64), 1, [8, 4, 2]),
        ((4, 6), 2, [8, 8, 4, 4]),
        ((4, 6, 5), (1, 3, 2), [8, 4, 4, 4, 2, 2]),
        ((4,), 1, [8]),
    ],
)
def test_stages_have_their_channels_and_blocks_and_halve_the_plane(channels, blocks, planes):
    network = ResNet((2, 8, 8), 5, channels, blocks)
    seen: list[torch.Size] = []
    for block in layers(network, BasicBlock):
        block.register_forward_hook(lambda block, inputs, spikes: seen.append(spikes.shape[1:]))
    assert run(network, torch.randn(3, 2, 2, 8, 8)).shape == (3, 2, 5)
    depths = [blocks] * len(channels) if isinstance(blocks, int) else blocks
    widths = [width for width, depth in zip(channels, depths, strict=True) for _ in range(depth)]
    assert [tuple(shape) for shape in seen] == [(c, p, p) for c, p in zip(widths, planes, strict=True)]


@pytest.mark.parametrize("network", [ResNet, ResNet18, ResNet19])
def test_no_layer_is_silent_or_saturated_at_the_start(network):
    made = network()
    rates = firing_rates_on_an_image(made, (3, 32, 32))
    assert len(rates) == len(layers(made, LIF))
    assert all(0.05 < rate < 0.5 for rate in rates)


def test_a_layer_before_the_readout_would_be_silent_without_normalization():
    network = ResNet(hidden=32)
    *_, norm, neurons, _ = network
    assert isinstance(norm, nn.BatchNorm1d)
    assert firing_rates_on_an_image(network, (3, 32, 32))[-1] > 0.05
    silent = nn.Sequential(*list(network)[:-3], neurons)
    assert firing_rates_on_an_image(silent, (3, 32, 32))[-1] == 0


@pytest.mark.parametrize("hidden", [None, 12])
def test_every_parameter_gets_a_gradient(hidden):
    method = SurrogateGradient()
    network = method.prepare(ResNet((2, 8, 8), 3, (4, 8), hidden=hidden))
    method.training_step(network, torch.randn(4, 8, 2, 8, 8), torch.arange(8) % 3).objective.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_outputs_are_those_of_one_network_at_every_step():
    network = ResNet((1, 8, 8), 3, (4, 6)).eval()
    x = torch.randn(5, 2, 1, 8, 8)
    torch.testing.assert_close(run(network, x)[:2], run(network, x[:2]))
    assert SpikingModule(network, num_classes=3)(x).shape == (5, 2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ResNet(channels=()),
            r"s `channels` and `blocks` to hold one integer for each stage, but got \[\] and",
        ),
        (lambda: ResNet(blocks=(1, 2)), r"s `channels` and `blocks` to hold one integer for each stage, .*\(1, 2\)"),
        (lambda: ResNet(blocks=0), " `blocks` to be an integer of at least 1, but got 0"),
        (lambda: ResNet(blocks=(1, 0, 1)), " `blocks` to be an integer of at least 1, but got 0"),
        (lambda: ResNet(channels=(4, 2.5), blocks=1), " `channels` to be an integer of at least 1, but got 2.5"),
        (lambda: ResNet(hidden=0), " `hidden` to be an integer of at least 1, but got 0"),
        (lambda: ResNet(num_classes=0), " `num_classes` to be an integer of at least 1, but got 0"),
        (lambda: ResNet((3, 32)), r" `input_shape` to be channels, height and width, but got \(3, 32\)"),
        (
            lambda: ResNet19(neuron=partial(LIF, threshold=0.0)),
            " `threshold` to be a finite number larger than 0, but got 0.0",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=f"Expected argument{message}"):
        make()
