"""Bayesian layers: moments against drawn weights, the mean mode against the plain layer, the KL against torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from lightning_snn import run
from lightning_snn.nn import LIF, BayesConv2d, BayesianLayer, BayesLinear, Moments, posterior_noise

DRAWS = 2000
GEOMETRIES = {
    "plain": {},
    "stride": {"stride": 2},
    "padding": {"padding": (1, 2)},
    "same": {"padding": "same"},
    "dilation": {"dilation": 2, "padding": 1},
    "groups": {"groups": 2, "stride": (2, 1), "padding": 1},
    "depthwise": {"groups": 4, "padding": 1, "bias": False},
}
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())


def conv(geometry: dict) -> tuple[BayesConv2d, nn.Conv2d]:
    """A Bayesian convolution with random moments, and the plain one with its mean weights."""
    layer, plain = BayesConv2d(4, 4, 3, **geometry), nn.Conv2d(4, 4, 3, **geometry)
    randomise(layer)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "log_std" not in name})
    return layer, plain


def randomise(layer: BayesianLayer) -> None:
    with torch.no_grad():
        layer.weight_log_std.uniform_(-2, 0)
        if layer.bias is not None:
            layer.bias.normal_()
            layer.bias_log_std.uniform_(-2, 0)


def assert_moments(samples: Tensor, moments: Moments) -> None:
    assert ((samples.mean(0) - moments.mean).abs() < 5 * (moments.variance / DRAWS).sqrt()).all()
    assert ((samples.var(0) / moments.variance - 1).abs() < 5 * math.sqrt(2 / DRAWS)).all()


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_has_the_moments_of_drawn_weights(bias):
    layer, x = BayesLinear(6, 4, bias=bias), torch.randn(3, 6)
    randomise(layer)
    with posterior_noise():
        moments = layer(x)
    samples = torch.stack([F.linear(x, *layer.sample_weights()) for _ in range(DRAWS)])
    assert_moments(samples, moments)


@torch.no_grad()
@every_geometry
def test_a_convolution_has_the_moments_of_drawn_weights(geometry):
    layer, x = conv(geometry)[0], torch.randn(2, 4, 5, 4)
    with posterior_noise():
        moments = layer(x)
    shape = layer.stride, layer.padding, layer.dilation, layer.groups
    samples = torch.stack([F.conv2d(x, *layer.sample_weights(), *shape) for _ in range(DRAWS)])
    assert_moments(samples, moments)


@every_geometry
def test_outside_posterior_noise_a_convolution_is_the_plain_one(geometry):
    (layer, plain), x = conv(geometry), torch.randn(2, 4, 5, 4)
    assert torch.equal(layer(x), plain(x))
    with posterior_noise():
        assert torch.equal(layer(x).mean, plain(x))
    with posterior_noise(None):
        assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("bias", [True, False])
def test_outside_posterior_noise_a_linear_layer_is_the_plain_one(bias):
    layer, plain, x = BayesLinear(6, 4, bias=bias), nn.Linear(6, 4, bias=bias), torch.randn(3, 6)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if "log_std" not in name})
    assert torch.equal(layer(x), plain(x))


def test_weights_of_a_plain_layer_load_into_the_mean():
    for layer, plain in ((BayesLinear(6, 4), nn.Linear(6, 4)), conv({})):
        missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
        assert set(missing) == {"weight_log_std", "bias_log_std"}
        assert unexpected == []


@pytest.mark.parametrize(
    "make", [lambda: BayesLinear(6, 4, prior_scale=0.7), lambda: BayesConv2d(2, 4, 3, prior_scale=0.7)]
)
def test_the_kl_is_that_of_torch_distributions(make):
    layer = make().double()
    randomise(layer)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    prior = 0.7 / math.sqrt(layer.weight[0].numel()) * one
    expected = (
        kl_divergence(Normal(layer.weight, layer.weight_log_std.exp()), Normal(zero, prior)).sum()
        + kl_divergence(Normal(layer.bias, layer.bias_log_std.exp()), Normal(zero, one)).sum()
    )
    torch.testing.assert_close(layer.kl(), expected, rtol=1e-12, atol=0)


def test_the_kl_of_the_prior_from_itself_is_zero():
    layer = BayesLinear(16, 4, bias=False, kappa=0.8, prior_scale=0.8).double()
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.weight_log_std, math.log(0.8 / 4))
    assert layer.kl().item() == pytest.approx(0, abs=1e-12)
    assert BayesLinear(16, 4, bias=False, kappa=0.5).kl() > 1


def test_the_posterior_starts_with_the_stated_width():
    layer = BayesConv2d(4, 8, 3, kappa=0.3)
    torch.testing.assert_close(layer.variances()[0], torch.full((8, 4, 3, 3), 0.3**2 / 36))


def test_the_log_std_acts_clamped_and_keeps_everything_finite():
    layer, x = BayesLinear(6, 4), torch.randn(3, 6)
    for value, clamped in ((-50.0, -10.0), (50.0, 2.0)):
        nn.init.constant_(layer.weight_log_std, value)
        torch.testing.assert_close(layer.variances()[0], torch.full((4, 6), math.exp(2 * clamped)))
        with posterior_noise():
            moments = layer(x)
        (moments.variance.sum() + layer.kl()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_moments_differentiate_into_mean_and_width():
    layer = BayesLinear(6, 4)
    with posterior_noise():
        moments = layer(torch.rand(3, 6))
    (moments.mean.sum() + moments.variance.sum()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_without_input_the_variance_is_that_of_the_bias_and_gradients_stay_finite():
    layer = nn.Sequential(BayesLinear(6, 4, bias=False), LIF(), BayesLinear(4, 2))
    with posterior_noise():
        moments = run(layer, torch.zeros(5, 3, 6))
    (moments.mean.sum() + moments.variance.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_a_network_within_posterior_noise_returns_moments_and_outside_the_plain_output():
    network, x = nn.Sequential(BayesLinear(6, 5), LIF(), BayesLinear(5, 2)), torch.randn(4, 3, 6)
    plain = nn.Sequential(nn.Linear(6, 5), LIF(), nn.Linear(5, 2))
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if "log_std" not in name})
    assert torch.equal(run(network, x), run(plain, x))
    with posterior_noise():
        output = run(network, x)
    assert isinstance(output, Moments)
    assert output.shape == (4, 3, 2)


def test_two_draws_of_the_weights_differ():
    layer = BayesLinear(6, 4)
    assert not torch.equal(layer.sample_weights()[0], layer.sample_weights()[0])
    assert BayesLinear(6, 4, bias=False).sample_weights()[1] is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BayesLinear(6, 4, kappa=0.0), "argument `kappa` to be a finite number larger than 0, but got 0.0"),
        (
            lambda: BayesConv2d(2, 4, 3, prior_scale=-1),
            "argument `prior_scale` to be a finite number larger than 0, but got -1",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_repr_tells_the_geometry():
    assert repr(BayesLinear(6, 4, bias=False)) == "BayesLinear(6, 4, bias=False)"
    assert repr(BayesConv2d(2, 4, 3, 2, 1, groups=2)) == (
        "BayesConv2d(2, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2, bias=True)"
    )
