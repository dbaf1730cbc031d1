"""The contexts that select the use of a posterior."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_snn import run
from lightning_snn.functional import IWST, AnalyticalGumbelRao
from lightning_snn.methods.bayes import BayesLinear, BayesRecurrentLIF
from lightning_snn.nn import LIF, GaussianNoise, MembraneResidual, Sign, posterior_noise, weight_draws
from lightning_snn.nn.noise import draws, spike_noise


def network() -> nn.Module:
    return nn.Sequential(
        BayesLinear(3, 4),
        LIF(0.8),
        MembraneResidual(nn.Sequential(nn.Identity(), BayesLinear(4, 4), Sign()), BayesLinear(4, 4)),
        BayesRecurrentLIF(4),
        BayesLinear(4, 2),
    )


def test_the_contexts_exclude_each_other_and_nest():
    assert spike_noise() is draws() is None
    with weight_draws(3):
        assert (draws().count, spike_noise()) == (3, None)
        with posterior_noise(0.2, "step"):
            assert draws() is None
            assert (spike_noise().estimator, spike_noise().mode) == (IWST(0.2), "step")
        with posterior_noise(None):
            assert spike_noise() is draws() is None
        assert draws().count == 3
    assert spike_noise() is draws() is None


def test_an_exception_ends_a_context():
    for context in (posterior_noise(), weight_draws(2)):
        with pytest.raises(KeyError), context:
            raise KeyError
        assert spike_noise() is draws() is None


def test_an_estimator_is_a_lambda_a_name_or_itself():
    own = AnalyticalGumbelRao(0.5, noise="gaussian")
    for given, expected in ((1.0, IWST(1.0)), ("reinmax", IWST(0.0)), (own, own)):
        with posterior_noise(given):
            assert spike_noise().estimator == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: posterior_noise(1.5), "argument `estimator` to be a number from -1 to 1, .* but got 1.5"),
        (lambda: posterior_noise("best"), "argument `estimator` to be .* but got 'best'"),
        (lambda: posterior_noise(mode="white"), "argument `mode` to be one of 'moment', 'step', 'trace', but got 'wh"),
        (lambda: weight_draws(0), "argument `count` to be an integer of at least 1, but got 0"),
        (lambda: weight_draws(2.0), "argument `count` to be an integer of at least 1, but got 2.0"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message), make():
        pass


def test_logistic_noise_is_refused_where_it_would_be_used():
    with (
        pytest.raises(ValueError, match="argument `estimator` to be of Gaussian noise, but got IWST"),
        posterior_noise(IWST(0.5, "logistic")),
    ):
        run(nn.Sequential(BayesLinear(3, 2), LIF()), torch.rand(2, 1, 3))


@torch.no_grad()
@pytest.mark.parametrize("mode", ["moment", "step"])
def test_a_generator_is_the_only_source_of_the_noise(mode):
    layers, x, spikes = network()[:2], torch.rand(6, 5, 3), []
    for seed, global_seed in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        with posterior_noise(0.5, mode, torch.Generator().manual_seed(seed)):
            spikes.append(run(layers, x))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(spikes[0], spikes[1])
    assert not torch.equal(spikes[0], spikes[2])


def test_the_observer_sees_every_noisy_layer_in_order_with_gradients():
    seen, layers = [], network()
    with posterior_noise(observe=lambda layer, t: seen.append((layer, t))):
        # the sum of signs and an activation is an activation, and the input of the recurrent layer
        run(layers, torch.rand(6, 5, 3))
    assert [layer for layer, _ in seen] == [layers[1], layers[2].branch[2], layers[3]]
    assert all(t.shape == (30, 4) and t.requires_grad and t.dtype == torch.float32 for _, t in seen)
    assert torch.autograd.grad(seen[0][1].square().mean(), layers[0].weight_log_std)[0].abs().max() > 0


def test_a_layer_that_no_noise_reaches_is_not_observed():
    seen = []
    with posterior_noise(observe=lambda layer, t: seen.append(layer)):
        run(nn.Sequential(nn.Linear(3, 4), LIF(), GaussianNoise(0.3), Sign()), torch.rand(6, 5, 3))
    assert [type(layer) for layer in seen] == [Sign]


def test_what_is_observed_decides_on_the_spikes():
    seen = []
    with torch.no_grad(), posterior_noise(observe=lambda layer, t: seen.append(t)):
        spikes = run(network()[:2], 3 * torch.randn(40, 200, 3))
    t = seen[0]
    expected = torch.special.ndtr(t)
    assert abs((spikes.flatten(0, 1) - expected).mean().item()) < 4.5 * math.sqrt(0.25 / t.numel())
    high = t > t.median()
    assert spikes.flatten(0, 1)[high].mean() > spikes.flatten(0, 1)[~high].mean() + 0.1
