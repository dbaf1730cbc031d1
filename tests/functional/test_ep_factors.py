"""Activation and observation factors: against quadrature, against autograd, and far into the tails."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.special import log_ndtr
from torch import Tensor

from lightning_snn.functional.ep import (
    bounded,
    epistemic_spike_variance,
    log_odds_of_spike,
    soft_spike_message,
    spike_message,
    spike_probability,
    value_message,
)
from lightning_snn.functional.ep.factors import _sigmoid_message

NOISE = {"heaviside": 0.0, "probit": 8 / math.pi}
LOG_ODDS = [-math.inf, -5.0, -0.5, 0.5, 3.0, 5.0, math.inf]
GRID = torch.tensor(
    list(itertools.product([-8.0, -3.0, -0.4, 0.0, 1.0, 4.0, 9.0], [0.01, 0.3, 2.0, 50.0], LOG_ODDS)),
    dtype=torch.double,
)


def spikes_at(u: Tensor, activation: str) -> Tensor:
    """Probability of a spike at a known potential."""
    if activation == "heaviside":
        return (u > 0).to(u.dtype)
    if activation == "probit":
        return torch.special.ndtr(u / math.sqrt(8 / math.pi))
    return torch.sigmoid(u)


def tilted(mean: float, variance: float, log_odds: float, activation: str) -> tuple[float, float, float]:
    """Log evidence, mean and variance of the tilted distribution, by the midpoint rule with a cell edge at 0."""
    deviation = math.sqrt(variance)
    width = deviation * 2e-4
    low, high = (round((mean + side * 14 * deviation) / width) for side in (-1, 1))
    u = (torch.arange(low, high, dtype=torch.double) + 0.5) * width
    sigma = 1 / (1 + math.exp(-log_odds)) if log_odds > -700 else 0.0
    against = 1 / (1 + math.exp(log_odds)) if log_odds < 700 else 0.0
    factor = sigma * spikes_at(u, activation) + against * spikes_at(-u, activation)
    mass = factor * torch.exp(-0.5 * (u - mean) ** 2 / variance) * (width / math.sqrt(2 * math.pi * variance))
    evidence = mass.sum()
    first = (mass * u).sum() / evidence
    return evidence.log().item(), first.item(), ((mass * (u - first) ** 2).sum() / evidence).item()


@pytest.mark.parametrize("activation", ["heaviside", "probit"])
def test_tilted_moments_are_those_of_quadrature(activation):
    grid = GRID[GRID[:, 0].abs() < 7 * (GRID[:, 1] + NOISE[activation]).sqrt()]
    assert len(grid) > 100
    mean, variance, log_odds = grid.T
    message = spike_message(mean, variance, log_odds, activation)
    expected = torch.tensor([tilted(*row, activation) for row in grid.tolist()], dtype=torch.double)
    torch.testing.assert_close(message.log_evidence, expected[:, 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        (mean + variance * message.score - expected[:, 1]) / variance.sqrt(), 0 * mean, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(variance - variance**2 * message.curvature, expected[:, 2], rtol=1e-4, atol=0)


@pytest.mark.parametrize("activation", ["heaviside", "probit"])
def test_score_and_curvature_are_derivatives_of_the_log_evidence(activation):
    mean, variance, log_odds = GRID.T
    mean = mean.clone().requires_grad_()
    z = mean / (variance + NOISE[activation]).sqrt()
    # infinite log-odds have no gradient of their own; 60 is as certain in these tails
    finite = log_odds.clamp(-60, 60)
    kept = z.detach().abs() < 8
    log_evidence = torch.logaddexp(
        torch.special.log_ndtr(z) - torch.nn.functional.softplus(-finite),
        torch.special.log_ndtr(-z) - torch.nn.functional.softplus(finite),
    )
    (first,) = torch.autograd.grad(log_evidence.sum(), mean, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), mean)
    message = spike_message(mean.detach(), variance, log_odds, activation)
    for ours, expected in zip(message[:3], (first, -second, log_evidence), strict=True):
        torch.testing.assert_close(ours[kept], expected[kept].detach(), rtol=1e-10, atol=1e-10)


def test_curvature_of_soft_spikes_is_negative_somewhere_and_of_observed_ones_nowhere():
    mean, variance, log_odds = GRID.T
    message = spike_message(mean, variance, log_odds, "heaviside")
    observed = log_odds.isinf()
    assert (message.curvature * variance)[~observed].min() < -1
    assert message.curvature[observed].min() >= -1e-10
    assert bounded(message, variance).curvature.min() == 0


@pytest.mark.parametrize("activation", ["heaviside", "probit"])
@pytest.mark.parametrize("log_odds", LOG_ODDS)
def test_float32_is_safe_and_accurate_far_into_the_tails(activation, log_odds):
    z = torch.cat([torch.linspace(-40, 40, 401), torch.tensor([-1e3, -200.0, 200.0, 1e3])])
    variance = torch.full_like(z, 0.5)
    mean = z * (0.5 + NOISE[activation]) ** 0.5
    odds = torch.full_like(z, log_odds)
    ours = spike_message(mean, variance, odds, activation)
    exact = spike_message(mean.double(), variance.double(), odds.double(), activation)
    assert all(values.isfinite().all() for values in ours[:3])
    torch.testing.assert_close(ours.log_evidence.double(), exact.log_evidence, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.score.double(), exact.score, rtol=1e-3, atol=1e-6)
    limits = bounded(ours, variance).curvature.double(), bounded(exact, variance).curvature
    # at 1e3 standard deviations the curvature is a difference of numbers a million times as large
    torch.testing.assert_close(*limits, rtol=0.1, atol=1e-4)
    within = z.abs() <= 40
    torch.testing.assert_close(*(values[within] for values in limits), rtol=1e-3, atol=1e-4)


def test_score_of_a_missed_spike_is_the_hazard_of_scipy():
    z = torch.logspace(-1, 3, 60, dtype=torch.double)
    silent = spike_message(-z, torch.ones_like(z), torch.full_like(z, math.inf), "heaviside")
    expected = torch.from_numpy(-0.5 * z.numpy() ** 2 - 0.5 * math.log(2 * math.pi) - log_ndtr(-z.numpy())).exp()
    torch.testing.assert_close(silent.score, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(silent.log_evidence, torch.from_numpy(log_ndtr(-z.numpy())), rtol=1e-12, atol=0)


def test_hidden_neuron_that_receives_no_message_sends_none():
    mean = torch.linspace(-50, 50, 101)
    for activation in ("heaviside", "probit", "sigmoid"):
        message = spike_message(mean, torch.ones_like(mean), torch.zeros_like(mean), activation)
        torch.testing.assert_close(message.score, torch.zeros_like(mean), rtol=0, atol=1e-6)
        torch.testing.assert_close(message.curvature, torch.zeros_like(mean), rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["heaviside", "probit", "sigmoid"])
def test_factor_is_symmetric_in_spike_and_silence(activation):
    mean, variance, log_odds = GRID.T
    message = spike_message(mean, variance, log_odds, activation)
    mirrored = spike_message(-mean, variance, -log_odds, activation)
    torch.testing.assert_close(mirrored.score, -message.score, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mirrored.curvature, message.curvature, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(mirrored.log_evidence, message.log_evidence, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("nodes", "deviation", "probability"), [(32, 0.02, 6e-3), (64, 2e-3, 1e-3)])
def test_quadrature_of_the_sigmoid_is_that_of_a_fine_grid(nodes, deviation, probability):
    mean, variance, log_odds = GRID.T
    message = _sigmoid_message(mean, variance, log_odds, nodes)
    expected = torch.tensor([tilted(*row, "sigmoid") for row in GRID.tolist()], dtype=torch.double)
    shift = (mean + variance * message.score - expected[:, 1]) / variance.sqrt()
    assert shift.abs().max() < deviation
    assert (message.log_evidence.exp() - expected[:, 0].exp()).abs().max() < probability


def test_probit_neuron_is_a_sigmoid_within_two_hundredths():
    mean, variance = (
        values.flatten()
        for values in torch.meshgrid(
            torch.linspace(-8, 8, 161, dtype=torch.double),
            torch.logspace(-2, 1.7, 20, dtype=torch.double),
            indexing="ij",
        )
    )
    apart = (
        spike_probability(mean, variance, "probit")
        - _sigmoid_message(mean, variance, torch.full_like(mean, math.inf), 200).log_evidence.exp()
    )
    assert apart.abs().max() < 0.018
    steps = spike_probability(mean, variance, "heaviside") - spike_probability(mean, variance, "probit")
    assert steps.abs().max() > 0.1


@pytest.mark.parametrize("activation", ["heaviside", "probit", "sigmoid"])
def test_log_odds_of_a_spike_are_those_of_its_probability(activation):
    mean, variance = torch.linspace(-6, 6, 49, dtype=torch.double), torch.full((49,), 2.0, dtype=torch.double)
    p = spike_probability(mean, variance, activation)
    torch.testing.assert_close(log_odds_of_spike(mean, variance, activation), torch.logit(p), rtol=1e-7, atol=1e-7)
    # the evidence for an observed spike is its probability
    spike = spike_message(mean, variance, torch.full_like(mean, math.inf), activation)
    torch.testing.assert_close(spike.log_evidence, p.log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["heaviside", "probit", "sigmoid"])
def test_log_odds_stay_finite_and_rising_where_probabilities_round_to_one(activation):
    mean = torch.linspace(20, 200, 50)
    variance = torch.full_like(mean, 0.5)
    assert spike_probability(mean, variance, activation).min() > 1 - 1e-6
    log_odds = log_odds_of_spike(mean, variance, activation)
    assert log_odds.isfinite().all()
    assert (log_odds.diff() > 0).all()


@pytest.mark.parametrize("activation", ["heaviside", "probit", "sigmoid"])
def test_potential_that_nothing_reaches_sends_finite_messages(activation):
    zero = torch.zeros(4)
    log_odds = torch.tensor([math.inf, -math.inf, 1.0, 0.0])
    message = bounded(spike_message(zero, zero, log_odds, activation), zero)
    assert all(values.isfinite().all() for values in message[:3])
    assert spike_probability(zero, zero, activation).tolist() == pytest.approx([0.5] * 4)


@pytest.mark.parametrize("activation", ["heaviside", "probit"])
def test_epistemic_spike_variance_is_that_of_sampled_firing_probabilities(activation):
    mean = torch.tensor([-2.0, 0.0, 0.7, 3.0], dtype=torch.double)
    variance = torch.tensor([0.5, 2.0, 1.0, 9.0], dtype=torch.double)
    for share in (0.2, 0.9):
        epistemic = share * variance
        known = mean + epistemic.sqrt() * torch.randn(200_000, 4, dtype=torch.double)
        p = torch.special.ndtr(known / (variance - epistemic + NOISE[activation]).sqrt())
        ours = epistemic_spike_variance(mean, variance, epistemic, activation)
        torch.testing.assert_close(ours, p.var(0), rtol=0.02, atol=3e-4)


def test_without_noise_all_variance_of_a_spike_is_epistemic_and_with_noise_alone_none():
    mean, variance = torch.linspace(-3, 3, 13), torch.rand(13) + 0.1
    p = spike_probability(mean, variance, "heaviside")
    torch.testing.assert_close(
        epistemic_spike_variance(mean, variance, variance, "heaviside"), p * (1 - p), rtol=1e-4, atol=1e-6
    )
    noisy = spike_probability(mean, variance, "probit")
    assert (epistemic_spike_variance(mean, variance, variance, "probit") < 0.5 * noisy * (1 - noisy)).all()
    assert not epistemic_spike_variance(mean, variance, 0 * variance, "heaviside").any()


def test_value_message_is_the_normal_density_and_its_derivatives():
    mean, target = torch.randn(2, 6, dtype=torch.double)
    variance = torch.rand(6, dtype=torch.double) + 0.1
    mean.requires_grad_()
    log_density = torch.distributions.Normal(mean, (variance + 0.3).sqrt()).log_prob(target)
    (first,) = torch.autograd.grad(log_density.sum(), mean, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), mean)
    message = value_message(mean.detach(), variance, target, 0.3)
    for ours, expected in zip(message[:3], (first, -second, log_density), strict=True):
        torch.testing.assert_close(ours, expected.detach())


def test_bounds_leave_scores_alone_and_keep_precisions_finite():
    mean, variance, log_odds = GRID.T
    message = spike_message(mean, variance, log_odds, "heaviside")
    kept = bounded(message, variance)
    assert kept.score is message.score
    assert (kept.curvature * variance).max() == pytest.approx(0.999)
    inside = (message.curvature > 0) & (message.curvature * variance < 0.999)
    assert inside.any()
    assert torch.equal(kept.curvature[inside], message.curvature[inside])


@pytest.mark.parametrize("activation", ["heaviside", "probit", "sigmoid"])
def test_the_closed_form_of_spikes_that_are_not_observed_is_the_general_message(activation):
    mean, variance, log_odds = GRID[GRID[:, 2].isfinite()].T
    log_odds = torch.where(log_odds == 3.0, 0.0, log_odds)
    found = soft_spike_message(mean, variance, log_odds, activation)
    for ours, expected in zip(found, spike_message(mean, variance, log_odds, activation), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", ["heaviside", "probit"])
@pytest.mark.parametrize("log_odds", [-math.inf, -200.0, -30.0, -5.0, -1e-3, 0.0, 0.5, 12.0, 60.0, math.inf])
def test_the_closed_form_is_safe_in_float32_however_certain_mean_and_spike_are(activation, log_odds):
    z = torch.cat([torch.linspace(-40, 40, 401), torch.tensor([-1e3, 1e3])])
    variance = torch.full_like(z, 0.5)
    mean = z * (0.5 + NOISE[activation]) ** 0.5
    odds = torch.full_like(z, log_odds)
    ours = soft_spike_message(mean, variance, odds, activation)
    assert all(values.isfinite().all() for values in ours[:3])
    exact = spike_message(mean.double(), variance.double(), odds.double(), activation)
    kept = z.abs() < 11.5  # beyond, certainties are clamped
    torch.testing.assert_close(ours.score.double()[kept], exact.score[kept], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours.log_evidence.double()[kept], exact.log_evidence[kept], rtol=1e-5, atol=1e-5)
    # the share by which the variance shrinks, a difference of numbers a hundred times as large
    shares = (variance * bounded(message, variance).curvature.double() for message in (ours, exact))
    torch.testing.assert_close(*(share[kept] for share in shares), rtol=0, atol=1e-3)


def test_the_closed_form_keeps_nan():
    number, nan = torch.ones(1), torch.full((1,), torch.nan)
    for arguments in ((nan, number, number), (number, nan, number), (number, number, nan)):
        assert soft_spike_message(*arguments, "probit").score.isnan().all()
