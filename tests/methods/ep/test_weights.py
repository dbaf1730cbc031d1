"""Families of weights: moments, the most probable ones, draws, and how they begin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.linear_maps import DenseMap
from lightning_snn.methods.ep import GaussianWeights, LevelWeights, MessageLayer, Natural

LEVELS = [(-1.0, 1.0), (0.0, 0.6), (-1.0, 0.0, 1.0), (-2.0, -0.5, 0.1, 3.0)]


def like(rows: int = 3, columns: int = 5) -> Tensor:
    return torch.empty(rows, columns, dtype=torch.float64)


def natural(rows: int = 3, columns: int = 5) -> Natural:
    return Natural(torch.rand(rows, columns).double() + 0.5, torch.randn(rows, columns).double())


def probabilities(levels: tuple[float, ...], parameters: Natural) -> Tensor:
    """Of each level by enumeration, `[O, I, K]`."""
    weights = [(parameters.precision_mean * w - 0.5 * parameters.precision * w * w).exp() for w in levels]
    return torch.stack(weights, -1) / torch.stack(weights, -1).sum(-1, keepdim=True)


def test_gaussian_moments_are_those_of_the_natural_parameters():
    parameters = natural()
    mean, variance = GaussianWeights(1.0, 0.5).moments(parameters)
    torch.testing.assert_close(variance, 1 / parameters.precision)
    torch.testing.assert_close(mean, parameters.precision_mean / parameters.precision)


@pytest.mark.parametrize("split", [0.0, 0.3, 0.9])
def test_a_split_prior_is_as_wide_as_the_whole(split):
    family = GaussianWeights(2.0, split)
    mean, variance = family.moments(family.prior(like(200, 200)))
    torch.testing.assert_close(variance, torch.full_like(variance, (1 - split) * 2.0))
    assert mean.mean().item() == pytest.approx(0, abs=0.03)
    assert mean.var().item() == pytest.approx(split * 2.0, rel=0.05)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("bias_variance", [None, 4.0])
def test_moments_of_levels_are_those_of_enumeration_and_a_bias_is_gaussian(levels, bias_variance):
    parameters, family = natural(), LevelWeights(levels, 0.5, bias_variance)
    values = torch.tensor(levels, dtype=torch.float64)
    expected = probabilities(levels, parameters)
    mean = expected @ values
    variance = expected @ values**2 - mean**2
    if bias_variance is not None:
        mean[:, -1] = (parameters.precision_mean / parameters.precision)[:, -1]
        variance[:, -1] = 1 / parameters.precision[:, -1]
    for found, exact in zip(family.moments(parameters), (mean, variance), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("bias_variance", [None, 4.0])
def test_most_probable_weights_are_certain_and_a_bias_is_not(levels, bias_variance):
    parameters, family = natural(), LevelWeights(levels, 0.5, bias_variance)
    mean, variance = family.most_probable(parameters)
    values = torch.tensor(levels, dtype=torch.float64)
    expected = values[probabilities(levels, parameters).argmax(-1)]
    weights = slice(None) if bias_variance is None else slice(-1)
    assert torch.equal(mean[:, weights], expected[:, weights])
    assert variance[:, weights].abs().max() == 0
    if bias_variance is not None:
        torch.testing.assert_close(variance[:, -1], 1 / parameters.precision[:, -1])


@pytest.mark.parametrize("levels", LEVELS)
def test_levels_are_drawn_as_often_as_they_are_probable(levels):
    draws = 20_000
    parameters = natural(2, 3)
    family = LevelWeights(levels, 0.5, 1.0)
    many = Natural(*(values.repeat(draws, 1) for values in parameters))
    drawn = family.draw(many).view(draws, 2, 3)
    expected = probabilities(levels, parameters)
    for index, level in enumerate(levels):
        found = (drawn[..., :-1] == level).double().mean(0)
        torch.testing.assert_close(found, expected[:, :-1, index], rtol=0, atol=4 * 0.5 / draws**0.5)
    mean, variance = family.moments(parameters)
    torch.testing.assert_close(drawn[..., -1].mean(0), mean[:, -1], rtol=0, atol=0.05)
    torch.testing.assert_close(drawn[..., -1].var(0), variance[:, -1], rtol=0.06, atol=0)


def test_gaussian_draws_have_the_moments_of_the_weights():
    parameters, family = natural(2, 3), GaussianWeights(1.0, 0.5)
    drawn = family.draw(Natural(*(values.repeat(20_000, 1) for values in parameters))).view(-1, 2, 3)
    mean, variance = family.moments(parameters)
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.06, atol=0)


@pytest.mark.parametrize("amplitude", [0.2, 1.0, 3.0])
def test_two_levels_start_with_log_odds_of_the_jitter_whatever_their_distance(amplitude):
    family = LevelWeights([-amplitude, amplitude], 0.5, 2.0)
    prior = family.prior(like(100, 101))
    log_odds = probabilities(tuple(family.levels), prior).log().diff(dim=-1)[:, :-1, 0]
    assert (log_odds / 2).std().item() == pytest.approx(0.5, rel=0.05)
    torch.testing.assert_close(prior.precision[:, -1], torch.full((100,), 0.5).double())
    assert prior.precision_mean[:, -1].abs().max() == 0


def test_levels_without_jitter_all_start_equally_probable():
    family = LevelWeights([-1.0, 1.0], 0.0, None)
    mean, variance = family.moments(family.prior(like()))
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(variance, torch.ones_like(variance))


def test_a_hard_layer_applies_its_most_probable_weights_and_a_soft_one_its_means():
    torch.manual_seed(1)
    family, x = LevelWeights([-1.0, 0.0, 1.0], 2.0, 1.0), torch.rand(6, 4).double()
    layers = []
    for hard in (False, True):
        torch.manual_seed(2)
        layers.append(MessageLayer(DenseMap(), like(), family, hard))
    soft, certain = layers
    for layer, moments in ((soft, family.moments), (certain, family.most_probable)):
        mean, _ = moments(layer.natural)
        torch.testing.assert_close(layer(x), x @ mean[:, :-1].T + mean[:, -1])
    assert not torch.allclose(soft(x), certain(x))
    drawn = certain.draw()
    assert torch.equal(drawn[:, :-1], certain.moments()[0][:, :-1])
    assert not torch.equal(drawn[:, -1], certain.moments()[0][:, -1])
    assert not torch.equal(soft.draw(), soft.draw())
