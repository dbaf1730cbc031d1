"""`Recurrent` around any neuron, and its fused form `RecurrentLIF`."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.estimators import estimator_named
from lightning_snn.nn import LIF, AdaptiveLIF, Neuron, Recurrent, RecurrentLIF, SynapticLIF, membrane, run
from lightning_snn.nn.noise import SpikeNoise
from tests.nn.neurons.cases import FEATURES, current
from tests.nn.neurons.loops import adaptive_loop, assert_equal, gradients, lif_loop

SETTINGS = list(itertools.product(["subtract", "zero"], [False, True], [None, FEATURES]))
LEARNED = {"learn_beta": True, "learn_threshold": True}


@pytest.mark.parametrize(("reset", "detach", "channels"), SETTINGS)
def test_both_forms_are_an_independent_loop_in_values_and_gradients(reset, detach, channels):
    fused = RecurrentLIF(FEATURES, 0.8, 0.9, reset, detach, **LEARNED, channels=channels).double()
    neuron = LIF(0.8, 0.9, reset, detach, **LEARNED, channels=channels).double()
    wrapped = Recurrent(neuron, FEATURES).double()
    wrapped.weight.data.copy_(fused.weight)
    x = current().requires_grad_()
    loop = lif_loop(x, fused.beta_logit.sigmoid(), fused.threshold_log.exp(), reset, detach, weight=fused.weight)
    inputs = [x, fused.weight, fused.beta_logit, fused.threshold_log]
    expected = gradients([loop.spikes, loop.state[0]], inputs)
    for layer, names in (
        (fused, ["weight", "beta_logit", "threshold_log"]),
        (wrapped, ["weight", "neuron.beta_logit", "neuron.threshold_log"]),
    ):
        spikes, state = layer.scan(x)
        assert 0.1 < spikes.mean() < 0.9
        assert torch.equal(spikes, loop.spikes)
        assert torch.equal(state.spikes, loop.spikes[-1])
        got = gradients([spikes, membrane(state)], [x, *(layer.get_parameter(name) for name in names)])
        assert_equal(got, expected)


@pytest.mark.parametrize(("reset", "detach", "channels"), SETTINGS)
def test_both_forms_fire_alike_by_the_same_noise(reset, detach, channels):
    fused = RecurrentLIF(FEATURES, 0.8, 0.9, reset, detach, **LEARNED, channels=channels).double()
    wrapped = Recurrent(LIF(0.8, 0.9, reset, detach, **LEARNED, channels=channels), FEATURES).double()
    wrapped.weight.data.copy_(fused.weight)
    mean, variance = current().requires_grad_(), (0.1 + current(seed=1).square()).requires_grad_()
    found = []
    for layer, prefix in ((fused, ""), (wrapped, "neuron.")):
        noise = SpikeNoise(estimator_named(0.5), "step", torch.Generator().manual_seed(4))
        spikes, z = layer.noisy_scan(mean, variance, noise)
        learned = [layer.get_parameter(f"{prefix}{name}") for name in ("beta_logit", "threshold_log")]
        found.append((spikes, z, *gradients([spikes, z], [mean, variance, layer.weight, *learned])))
    assert 0.1 < found[0][0].mean() < 0.9
    assert torch.equal(found[0][0], found[1][0])
    assert_equal(found[1][1:], found[0][1:])


@pytest.mark.parametrize("make", [LIF, AdaptiveLIF, SynapticLIF, lambda: LIF(order="leak_then_reset")])
def test_without_recurrent_weights_it_is_the_neuron(make):
    layer, x = Recurrent(make(), FEATURES).double(), current()
    assert not torch.equal(layer.scan(x)[0], make().scan(x)[0])
    torch.nn.init.zeros_(layer.weight)
    assert torch.equal(layer.scan(x)[0], make().scan(x)[0])


def test_an_adaptive_neuron_receives_the_spikes_of_its_layer():
    layer = Recurrent(AdaptiveLIF(0.8, rho=0.9), FEATURES).double()
    x = current()
    spikes = layer.scan(x)[0]
    before = torch.cat([torch.zeros_like(x[:1]), spikes[:-1]])
    loop = adaptive_loop(x + before @ layer.weight.t(), 0.8, 1.0, 0.9, 0.2, "subtract", False)
    assert torch.equal(spikes, loop.spikes)


def test_the_gradient_through_the_recurrence_is_not_cut_by_a_detached_reset():
    layer, x = Recurrent(AdaptiveLIF(detach_reset=True), FEATURES).double(), current().requires_grad_()
    assert gradients(layer.scan(x)[0], [layer.weight])[0].abs().max() > 0
    later = layer.scan(x)[0][-1, :, 0].sum()
    (gradient,) = torch.autograd.grad(later, x)
    assert gradient[-2, :, 1:].abs().max() > 0  # of neurons that neuron 0 receives spikes from


def test_it_declares_that_its_neurons_receive_each_others_spikes_and_the_gain_of_the_neuron():
    class Twice(Neuron):
        gain = 2.0

        def charge(self, x: Tensor, state: Tensor) -> Tensor:
            return state + 2 * x

        def firing_threshold(self, state: Tensor) -> float:
            return 1.0

        def after_spikes(self, state: Tensor, spikes: Tensor) -> Tensor:
            return state * (1 - spikes)

    layer = Recurrent(Twice(), FEATURES)
    assert not layer.independent
    assert layer.gain == 2.0
    assert not RecurrentLIF(FEATURES).independent
    assert LIF().independent


def test_its_parts_are_one_layer_of_the_network():
    from lightning_snn.nn import spiking_layers

    network = torch.nn.Sequential(torch.nn.Linear(2, FEATURES), Recurrent(LIF(), FEATURES))
    assert [name for name, _ in spiking_layers(network)] == ["1"]
    assert run(network, torch.rand(5, 3, 2)).shape == (5, 3, FEATURES)


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(TypeError, match="Expected argument `neuron` to be a Neuron, but got ReLU"):
        Recurrent(torch.nn.ReLU(), 3)
    with pytest.raises(ValueError, match="argument `features` to be an integer of at least 1, but got 0"):
        Recurrent(LIF(), 0)


def test_the_repr_names_the_neuron():
    text = repr(Recurrent(AdaptiveLIF(), 3))
    assert text.startswith("Recurrent(\n  features=3")
    assert "AdaptiveLIF(beta=0.9" in text
