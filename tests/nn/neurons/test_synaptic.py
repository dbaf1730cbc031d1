"""`SynapticLIF` equals an independent loop, and snntorch's `Synaptic`."""

from __future__ import annotations

import itertools

import pytest
import snntorch
import torch
from torch import Tensor

from lightning_snn.nn import LIF, SynapticLIF
from lightning_snn.nn.neurons import membrane
from tests.nn.neurons.cases import FEATURES, current
from tests.nn.neurons.loops import assert_equal, gradients, synaptic_loop

ORDERS = ["reset_then_leak", "leak_then_reset"]
LEARNED = {"learn_alpha": True, "learn_beta": True, "learn_threshold": True}
SETTINGS = list(itertools.product(["subtract", "zero"], [False, True], ORDERS, [None, FEATURES]))


@pytest.mark.parametrize(("reset", "detach", "order", "channels"), SETTINGS)
def test_values_and_gradients_are_those_of_an_independent_loop(reset, detach, order, channels):
    layer = SynapticLIF(0.5, 0.8, 0.9, reset, detach, **LEARNED, channels=channels, order=order).double()
    x = current().requires_grad_()
    parameters = [layer.alpha_logit, layer.beta_logit, layer.threshold_log]
    expected = synaptic_loop(
        x, parameters[0].sigmoid(), parameters[1].sigmoid(), parameters[2].exp(), reset, detach, order
    )
    spikes, state = layer.scan(x)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(spikes, expected.spikes)
    carried, _, synaptic = expected.state
    assert_equal([membrane(state), state.current], [carried, synaptic])
    got = gradients([spikes, membrane(state), state.current], [x, *parameters])
    assert_equal(got, gradients([expected.spikes, carried, synaptic], [x, *parameters]))
    potentials, threshold = layer.potentials(x, spikes)
    assert_equal([potentials], [expected.potentials.detach()])
    assert torch.equal(potentials > threshold, spikes.bool())


def setting(index: int) -> tuple[float, float, float, Tensor]:
    """Two decays, a threshold and an input `[T, B, N]`."""
    generator = torch.Generator().manual_seed(index)
    alpha, beta, threshold, offset = torch.rand(4, generator=generator).tolist()
    x = torch.randn(20, 4, 8, generator=generator, dtype=torch.float64)
    return 0.05 + 0.9 * alpha, 0.05 + 0.9 * beta, 0.5 + threshold, 0.5 * x + 0.3 * offset


def snntorch_spikes(alpha: float, beta: float, threshold: float, x: Tensor, reset: str, delay: bool) -> Tensor:
    # tensors of float64: it would round numbers to float32
    values = (torch.tensor(value, dtype=torch.float64) for value in (alpha, beta, threshold))
    layer = snntorch.Synaptic(*values, reset_mechanism=reset, reset_delay=delay)
    synaptic, potential = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    spikes = []
    for each in x:
        fired, synaptic, potential = layer(each, synaptic, potential)
        spikes.append(fired)
    return torch.stack(spikes)


EQUAL = [("subtract", True, "leak_then_reset"), ("subtract", False, "reset_then_leak"), ("zero", False, ORDERS[0])]


@pytest.mark.parametrize(("reset", "delay", "order"), EQUAL)
def test_spikes_are_those_of_snntorch(reset, delay, order):
    mismatches = compared = spiked = 0
    for index in range(50):
        alpha, beta, threshold, x = setting(index)
        layer = SynapticLIF(alpha, beta, threshold, reset, order=order)
        spikes = layer.scan(x)[0]
        same = spikes == snntorch_spikes(alpha, beta, threshold, x, reset, delay)
        valid = torch.ones_like(same)
        if (reset, delay) == ("subtract", False):
            # a potential that stays above the threshold after its reset is reset a second time by snntorch
            twice = (layer.potentials(x, spikes)[0] > 2 * threshold).cumsum(0) > 0
            valid[1:] = ~twice[:-1]
        mismatches += int((~same & valid).sum())
        compared += int(valid.sum())
        spiked += int((spikes.bool() & valid).sum())
    assert compared > 10_000
    assert spiked > 1000
    assert mismatches == 0


@pytest.mark.parametrize(("reset", "delay", "order"), [("subtract", True, ORDERS[0]), ("zero", True, ORDERS[0])])
def test_the_other_order_has_other_spikes_than_snntorch(reset, delay, order):
    mismatches = 0
    for index in range(50):
        alpha, beta, threshold, x = setting(index)
        spikes = SynapticLIF(alpha, beta, threshold, reset, order=order).scan(x)[0]
        mismatches += int((spikes != snntorch_spikes(alpha, beta, threshold, x, reset, delay)).sum())
    assert mismatches > 100


def test_without_synaptic_memory_it_is_a_lif_neuron():
    x = current()
    assert torch.equal(SynapticLIF(0.0, 0.8).scan(x)[0], LIF(0.8).scan(x)[0])
    assert not torch.equal(SynapticLIF(0.5, 0.8).scan(x)[0], LIF(0.8).scan(x)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "argument `alpha` to be a number from 0 to 1, but got 1.5"),
        ({"beta": -0.5}, "argument `beta` to be a number from 0 to 1, but got -0.5"),
        ({"alpha": 0.0, "learn_alpha": True}, "argument `alpha` to be a number between 0 and 1, both excluded"),
        ({"threshold": -1.0}, "argument `threshold` to be a finite number larger than 0, but got -1.0"),
        ({"reset": "none"}, "argument `reset` to be one of 'subtract', 'zero', but got 'none'"),
        ({"order": "late"}, "argument `order` to be one of 'reset_then_leak', 'leak_then_reset', but got 'late'"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        SynapticLIF(**options)


def test_the_repr_names_every_value():
    text = "SynapticLIF(alpha=0.8, beta=[2 channels], threshold=1 (learned), reset=zero, order=reset_then_leak)"
    assert repr(SynapticLIF(beta=[0.5, 0.6], reset="zero", learn_threshold=True)) == text
