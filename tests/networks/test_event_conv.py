"""The convolutional network for event cameras."""

from __future__ import annotations

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from lightning_snn import run
from lightning_snn.methods import SpikingBayes
from lightning_snn.networks import EventConvNet, RecurrentNet
from lightning_snn.nn import IF, Neuron, posterior_noise, spiking_layers
from tests.support.networks import firing_rates


@pytest.mark.parametrize(("shape", "classes"), [((2, 32, 32), 11), ((2, 34, 34), 10), ((1, 17, 20), 3)])
def test_any_frame_shape_gives_one_output_a_class_and_step(shape, classes):
    network = EventConvNet(shape, classes, channels=(4, 6), hidden=8)
    assert run(network, torch.rand(3, 2, *shape)).shape == (3, 2, classes)


@pytest.mark.parametrize("events_per_cell", [0.003, 0.03, 0.3, 3.0, 30.0])
def test_every_layer_of_a_new_network_is_active_at_any_density_of_events(events_per_cell):
    events = torch.poisson(torch.full((16, 4, 2, 32, 32), events_per_cell))
    assert all(0.01 < rate < 0.3 for rate in firing_rates(EventConvNet(), events))
    # negative controls: without it few events leave layers silent, and many make one fire at most steps
    alone = firing_rates(EventConvNet(input_rms=None), events)
    assert (min(alone) < 0.01) == (events_per_cell < 0.1)
    assert (max(alone) > 0.35) == (events_per_cell > 1)
    # and the initialization of torch's own layers leaves the deeper half silent
    assert min(firing_rates(EventConvNet(gain=3**-0.5), events)) == 0
    with posterior_noise(1.0):
        assert all(0.01 < rate < 0.5 for rate in firing_rates(SpikingBayes().prepare(EventConvNet()), events))


def test_a_recording_with_k_times_the_events_gives_the_same_output():
    events = torch.poisson(torch.full((6, 2, 2, 16, 16), 0.5))
    network = EventConvNet((2, 16, 16), 3, channels=(4, 6), hidden=8)
    outputs = run(network, events)
    assert torch.allclose(run(network, 10 * events), outputs, atol=1e-2)
    alone = EventConvNet((2, 16, 16), 3, channels=(4, 6), hidden=8, input_rms=None)
    assert not torch.allclose(run(alone, 10 * events), run(alone, events), atol=0.1)


def test_an_order_of_events_changes_the_output():
    network = EventConvNet(channels=(4, 6), hidden=32)
    frames = torch.poisson(torch.full((8, 1, 2, 32, 32), 0.5))
    forwards, backwards = run(network, frames).mean(0), run(network, frames.flip(0)).mean(0)
    assert not torch.allclose(forwards, backwards)


def test_the_convolutions_keep_channels_last_as_a_bayesian_network():
    network = SpikingBayes().prepare(EventConvNet())
    assert network[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[3].weight_log_std.is_contiguous(memory_format=torch.channels_last)


def decays(network: nn.Module) -> list[float | Tensor]:
    """The decays of all neurons."""
    layers = [layer for _, layer in spiking_layers(network)]
    return [getattr(layer, "neuron", layer).value("beta") for layer in layers if isinstance(layer, Neuron)]


@pytest.mark.parametrize("network", [EventConvNet, RecurrentNet])
@pytest.mark.parametrize("options", [[], ["--network.neuron", "AdaptiveLIF", "--network.neuron.rho", "0.5"]])
def test_a_neuron_of_the_command_line_gets_the_decays_that_the_network_spreads(network, options):
    parser = ArgumentParser()
    parser.add_class_arguments(network, "network")
    made = parser.instantiate(parser.parse_args(options)).network
    assert decays(made)
    assert all(each.requires_grad and each.min() < each.max() for each in decays(made))


def test_a_neuron_without_a_decay_is_taken_as_it_is():
    assert decays(EventConvNet(neuron=IF)) == [1.0] * 4
