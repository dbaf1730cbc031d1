"""`LeakyIntegrator` equals its closed form."""

from __future__ import annotations

import pytest
import torch

from lightning_snn.nn import LeakyIntegrator, run
from tests.nn.neurons.cases import FEATURES, current
from tests.nn.neurons.loops import assert_equal, gradients


@pytest.mark.parametrize("channels", [None, FEATURES])
def test_values_and_gradients_are_those_of_the_closed_form(channels):
    layer, x = LeakyIntegrator(0.8, learn_beta=True, channels=channels).double(), current(12).requires_grad_()
    beta = layer.beta_logit.sigmoid()
    lags = torch.arange(12)[:, None] - torch.arange(12)
    powers = torch.where(lags[..., None] >= 0, beta ** lags.clamp(min=0)[..., None], 0.0)  # [t, s, channel]
    expected = torch.einsum("tsc,sbc->tbc", powers.expand(12, 12, FEATURES), x)
    potentials, last = layer.scan(x)
    assert_equal([potentials, last], [expected, expected[-1]])
    inputs = [x, layer.beta_logit]
    assert_equal(gradients(potentials, inputs), gradients(expected, inputs))
    assert torch.equal(run(layer, x), potentials)


def test_the_state_keeps_the_precision_that_a_narrow_output_drops():
    x = torch.full((40, 1, 1), 0.01, dtype=torch.bfloat16)
    layer = LeakyIntegrator(1.0)
    whole = layer.scan(x)[0]
    head, state = layer.scan(x[:20])
    assert state.dtype == torch.float32
    assert torch.equal(torch.cat([head, layer.scan(x[20:], state)[0]]), whole)


def test_a_state_is_a_starting_potential():
    x = torch.zeros(3, 1, 2)
    start = torch.tensor([[1.0, -2.0]])
    assert_equal([LeakyIntegrator(0.5).scan(x, start)[0][:, 0]], [0.5 ** torch.arange(1, 4)[:, None] * start])
