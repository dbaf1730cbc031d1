"""`AdaptiveLIF` equals an independent loop, in values and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_snn.nn import LIF, AdaptiveLIF
from tests.nn.neurons.cases import FEATURES, current
from tests.nn.neurons.loops import adaptive_loop, assert_equal, gradients

LEARNED = {"learn_beta": True, "learn_threshold": True, "learn_rho": True, "learn_strength": True}
SETTINGS = list(itertools.product(["subtract", "zero"], [False, True], [None, FEATURES]))


@pytest.mark.parametrize(("reset", "detach", "channels"), SETTINGS)
def test_values_and_gradients_are_those_of_an_independent_loop(reset, detach, channels):
    layer = AdaptiveLIF(0.8, 0.9, 0.9, 0.3, reset, detach, **LEARNED, channels=channels).double()
    x = current().requires_grad_()
    parameters = [layer.beta_logit, layer.threshold_log, layer.rho_logit, layer.strength_log]
    expected = adaptive_loop(
        x, parameters[0].sigmoid(), parameters[1].exp(), parameters[2].sigmoid(), parameters[3].exp(), reset, detach
    )
    spikes, state = layer.scan(x)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(spikes, expected.spikes)
    assert_equal(state, expected.state)
    got = gradients([spikes, *state], [x, *parameters])
    assert_equal(got, gradients([expected.spikes, *expected.state], [x, *parameters]))


@pytest.mark.parametrize("values", [0.8, [0.5, 0.6, 0.7, 0.95]], ids=["number", "channels"])
def test_fixed_values_are_numbers_or_one_per_channel(values):
    layer, x = AdaptiveLIF(values, rho=values), current()
    # fixed values per channel are held in float32
    fixed = values if isinstance(values, float) else torch.tensor(values)
    expected = adaptive_loop(x, fixed, 1.0, fixed, 0.2, "subtract", False)
    spikes, state = layer.scan(x)
    assert torch.equal(spikes, expected.spikes)
    assert_equal(state, expected.state)
    potentials, thresholds = layer.potentials(x, spikes)
    assert_equal([potentials, thresholds], [expected.potentials, expected.thresholds])


def test_a_detached_reset_still_passes_gradients_through_the_adaptation():
    x = current().requires_grad_()
    found = [gradients(AdaptiveLIF(rho=0.9, detach_reset=detach).scan(x)[0], [x])[0] for detach in (False, True)]
    without = [gradients(LIF(detach_reset=detach).scan(x)[0], [x])[0] for detach in (False, True)]
    assert (found[0] - found[1]).norm() > 0.05 * found[0].norm()
    # as if the adaptation received detached spikes
    cut = adaptive_loop(x, 0.9, 1.0, 0.9, 0.2, "subtract", True)
    no_adaptation = torch.autograd.grad(cut.spikes, x, torch.ones_like(x), retain_graph=True)
    assert (no_adaptation[0] - without[1]).norm() > 0.05 * without[1].norm()


def test_a_spike_raises_the_threshold_which_then_decays():
    layer = AdaptiveLIF(beta=0.0, rho=0.5, strength=1.0)
    x = torch.tensor([1.4, 0.0, 0.0, 0.0], dtype=torch.float64).view(4, 1, 1)
    spikes = layer.scan(x)[0]
    assert spikes.flatten().tolist() == [1, 0, 0, 0]
    assert layer.potentials(x, spikes)[1].flatten().tolist() == [1.0, 2.0, 1.5, 1.25]


def test_without_adaptation_it_is_a_lif_neuron():
    x = current()
    layer = AdaptiveLIF(0.8, strength=1e-300)
    assert torch.equal(layer.scan(x)[0], LIF(0.8).scan(x)[0])
    assert not torch.equal(AdaptiveLIF(0.8).scan(x)[0], LIF(0.8).scan(x)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.5}, "argument `beta` to be a number from 0 to 1, but got 1.5"),
        ({"rho": -0.1}, "argument `rho` to be a number from 0 to 1, but got -0.1"),
        ({"rho": 1.0, "learn_rho": True}, "argument `rho` to be a number between 0 and 1, both excluded, but got 1.0"),
        ({"threshold": 0.0}, "argument `threshold` to be a finite number larger than 0, but got 0.0"),
        ({"strength": 0.0}, "argument `strength` to be a finite number larger than 0, but got 0.0"),
        ({"strength": [1.0, 2.0], "channels": 3}, r"argument `strength` to be a number or 3 numbers, but got .*\(2,\)"),
        ({"reset": "none"}, "argument `reset` to be one of 'subtract', 'zero', but got 'none'"),
        ({"surrogate": "relu"}, "argument `surrogate` to be a Surrogate or one of .* but got 'relu'"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveLIF(**options)


def test_the_repr_names_every_value():
    layer = AdaptiveLIF([0.5, 0.6], rho=0.5, reset="zero", learn_strength=True)
    assert repr(layer) == "AdaptiveLIF(beta=[2 channels], threshold=1, rho=0.5, strength=0.2 (learned), reset=zero)"
