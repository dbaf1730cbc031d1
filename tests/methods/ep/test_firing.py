"""Neurons that hand on the probabilities of their spikes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_snn.methods.ep.firing import FiringProbability, SpikeLogOdds, firing_network
from lightning_snn.networks import MLP
from lightning_snn.nn import run

POTENTIALS = torch.linspace(-6, 6, 101, dtype=torch.float64)


def test_probabilities_are_those_of_a_potential_with_noise():
    expected = 0.5 * (1 + torch.erf(POTENTIALS / math.sqrt(8 / math.pi) / math.sqrt(2)))
    torch.testing.assert_close(FiringProbability()(POTENTIALS), expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(FiringProbability("sigmoid")(POTENTIALS), POTENTIALS.sigmoid(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("activation", ["probit", "sigmoid"])
def test_the_softmax_of_log_odds_is_the_class_given_exactly_one_spike(activation):
    u = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = FiringProbability(activation)(u)
    alone = torch.stack([p[:, c] * (1 - p).prod(1) / (1 - p[:, c]) for c in range(4)], 1)
    expected = alone / alone.sum(1, keepdim=True)
    torch.testing.assert_close(SpikeLogOdds(activation)(u).softmax(1), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("activation", ["probit", "sigmoid"])
def test_both_have_gradients(activation):
    u = POTENTIALS[::10].clone().requires_grad_()
    for module in (FiringProbability(activation), SpikeLogOdds(activation)):
        assert torch.autograd.gradcheck(module, u)


def test_a_step_has_no_slope_and_is_refused():
    with pytest.raises(ValueError, match="`activation` to be one of 'probit', 'sigmoid', but got 'heaviside'"):
        firing_network(MLP(6, 3, [5]), "heaviside")


def test_a_network_keeps_its_weights_and_the_given_one_stays_as_it_is():
    network = MLP(6, 3, [5]).double()
    x = torch.rand(4, 6, dtype=torch.float64)
    before = run(network, x[None])
    fired = firing_network(network)
    hidden = FiringProbability()(nn.functional.linear(x, network[1].weight, network[1].bias))
    expected = SpikeLogOdds()(nn.functional.linear(hidden, network[3].weight, network[3].bias))
    torch.testing.assert_close(fired(x), expected)
    torch.testing.assert_close(firing_network(network, outputs_spike=False)(x).detach(), network[3](hidden).detach())
    assert torch.equal(run(network, x[None]), before)
    assert fired[0][1].weight is not network[1].weight
