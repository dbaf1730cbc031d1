"""Surrogates of snntorch, and networks of this library that become those of snntorch, or are refused by name."""

from __future__ import annotations

import pytest
import snntorch
import torch
from snntorch import surrogate
from torch import nn

from lightning_snn import LIF
from lightning_snn.convert import Scaled, from_snntorch, to_snntorch
from lightning_snn.functional import ArcTangent, FastSigmoid, Sigmoid
from lightning_snn.nn import LeakyIntegrator, SynapticLIF


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (surrogate.atan(2.0), ArcTangent()),
        (surrogate.atan(4.0), Scaled(ArcTangent(ArcTangent().width / 2), 2.0)),
        (surrogate.fast_sigmoid(25), FastSigmoid(1 / 25)),
        (surrogate.sigmoid(4), Sigmoid()),
        (surrogate.sigmoid(25), Scaled(Sigmoid(1 / 25), 6.25)),
    ],
)
def test_surrogates_have_their_derivatives_and_return(function, expected):
    layer = from_snntorch(nn.Sequential(nn.Linear(2, 2), snntorch.Leaky(0.9, spike_grad=function, init_hidden=True)))[1]
    assert layer.surrogate == expected
    back = to_snntorch(nn.Sequential(nn.Linear(2, 2), layer))[1].spike_grad
    assert back.__qualname__ == function.__qualname__
    distance = torch.linspace(-2, 2, 41, requires_grad=True)
    for spike in (function, back):
        (gradient,) = torch.autograd.grad(spike(distance).sum(), distance)
        torch.testing.assert_close(layer.surrogate.derivative(distance.detach()), gradient)


def test_gradients_that_snntorch_cannot_have_are_named():
    network = nn.Sequential(nn.Linear(4, 8), LIF(0.8, detach_reset=True))
    with pytest.warns(UserWarning, match="gradients are not: the reset of 1 is detached, that of snntorch's neuron is"):
        to_snntorch(network)


def test_networks_without_a_counterpart_in_snntorch_are_refused():
    network = nn.Sequential(nn.Linear(4, 8), SynapticLIF(), nn.Linear(8, 2), LeakyIntegrator())
    with pytest.raises(ValueError, match=r"1: SynapticLIF \(snntorch has no .*; 3: LeakyIntegrator \(it has no"):
        to_snntorch(network)
    shared = LIF()
    with pytest.raises(ValueError, match=r"1: LIF \(it is called more than once"):
        to_snntorch(nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared))
