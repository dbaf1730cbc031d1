"""Gumbel-Rao and its relatives: adaptive quadrature, Monte Carlo with the kept noise, normalization, saturation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from lightning_snn.functional.estimators import (
    AnalyticalGumbelRao,
    Estimator,
    GumbelRao,
    GumbelStraightThrough,
    iwst_weight,
    noisy_spikes,
)
from tests.support.estimators import every_noise, probability

GRID = [-7.9, -5.0, -2.0, -0.61, -0.6, -0.3, -0.1, 0.0, 1e-9, 0.1, 0.3, 0.6, 0.61, 2.0, 5.0, 7.9]


def both(estimator: Estimator, t: Tensor) -> tuple[Tensor, Tensor]:
    """Weights where the unit spiked and where it did not."""
    return estimator.weight(t, torch.ones_like(t)), estimator.weight(t, torch.zeros_like(t))


def density(y: float, noise: str) -> float:
    if noise == "gaussian":
        return math.exp(-0.5 * y * y) / math.sqrt(2 * math.pi)
    return 0.25 / math.cosh(0.5 * y) ** 2


def by_quadrature(s: float, tau: float, noise: str) -> float:
    """``E[F'((s + M) / tau) / tau | M > -s]``, by adaptive quadrature over the distance ``y = s + M``."""

    def integrand(y: float) -> float:
        return density(y / tau, noise) / tau * density(y - s, noise)

    edges = (0.0, 0.05, 0.3, 1.0, 3.0, 8.0, 20.0, 60.0)
    pieces = [
        quad(integrand, low, high, epsabs=0, epsrel=1e-11, limit=400)[0] for low, high in itertools.pairwise(edges)
    ]
    return sum(pieces) / probability(torch.tensor(s, dtype=torch.float64), noise).item()


@pytest.mark.parametrize(
    ("noise", "tau", "tolerance"),
    [
        ("gaussian", 0.3, 1e-9),
        ("gaussian", 1.0, 1e-9),
        ("gaussian", 2.0, 1e-9),
        ("logistic", 0.1, 1e-6),
        ("logistic", 0.25, 1e-6),
        ("logistic", 0.5, 1e-4),
        ("logistic", 1.0, 1e-7),
        ("logistic", 2.0, 1e-3),
    ],
)
def test_the_analytical_weight_is_the_integral(noise, tau, tolerance):
    t = torch.tensor(GRID, dtype=torch.float64)
    for sign, weight in zip((1, -1), both(AnalyticalGumbelRao(tau, noise=noise), t), strict=True):
        expected = torch.tensor([by_quadrature(sign * value, tau, noise) for value in GRID], dtype=torch.float64)
        torch.testing.assert_close(weight, expected, rtol=tolerance, atol=0)
    other = both(AnalyticalGumbelRao(tau * 1.1, noise=noise), t)[1]
    assert ((other - weight) / weight).abs().max() > 10 * tolerance


def test_the_analytical_weight_at_zero_has_its_known_values():
    t = torch.zeros(1, dtype=torch.float64)
    spiked, silent = both(AnalyticalGumbelRao(noise="logistic"), t)
    assert spiked.item() == pytest.approx(1 / 6, rel=1e-14)
    mean = 0.5 * (spiked + silent).item()
    assert mean == pytest.approx(2 / 3 * 1 / 4, rel=1e-14)
    for value, ratio in ((2.0, 1.08), (8.0, 6.0)):
        t = torch.tensor([value], dtype=torch.float64)
        spiked, silent = both(AnalyticalGumbelRao(noise="logistic"), t)
        fires = torch.sigmoid(t)
        assert ((fires * spiked + (1 - fires) * silent) / (fires * (1 - fires))).item() == pytest.approx(
            ratio, rel=1e-2
        )
    spiked, _ = both(AnalyticalGumbelRao(), torch.zeros(1, dtype=torch.float64))
    assert spiked.item() == pytest.approx(0.5 / math.sqrt(math.pi), rel=1e-14)


@pytest.mark.parametrize(("noise", "tau"), [("gaussian", 0.005), ("logistic", 0.01)])
def test_the_analytical_weight_becomes_iwst_zero_as_the_temperature_falls(noise, tau):
    t = torch.linspace(-3, 3, 61, dtype=torch.float64)
    for x, weight in zip((1.0, 0.0), both(AnalyticalGumbelRao(tau, noise=noise), t), strict=True):
        torch.testing.assert_close(weight, iwst_weight(t, torch.full_like(t, x), 0.0, noise), rtol=2e-2, atol=0)
    for x, weight in zip((1.0, 0.0), both(AnalyticalGumbelRao(1.0, noise=noise), t), strict=True):
        assert ((weight / iwst_weight(t, torch.full_like(t, x), 0.0, noise)) - 1).abs().max() > 0.3


@every_noise
@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_only_the_normalized_weight_has_the_mean_that_a_linear_loss_needs(noise, tau):
    t = torch.linspace(-6, 6, 41, dtype=torch.float64)
    fires, expected = probability(t, noise), iwst_weight(t, torch.ones_like(t), 1.0, noise)
    means = []
    for normalize in (True, False):
        spiked, silent = both(AnalyticalGumbelRao(tau, normalize, noise), t)
        means.append(fires * spiked + probability(-t, noise) * silent)
    torch.testing.assert_close(means[0], expected, rtol=1e-9, atol=0)
    assert ((means[1] - expected) / expected).abs().max() > 0.02


@every_noise
def test_normalizing_rescales_both_weights_alike(noise):
    t = torch.linspace(-6, 6, 41, dtype=torch.float64)
    plain, normalized = (both(AnalyticalGumbelRao(0.7, normalize, noise), t) for normalize in (False, True))
    torch.testing.assert_close(normalized[0] / plain[0], normalized[1] / plain[1], rtol=1e-9, atol=0)


def relaxed_slopes(t: float, tau: float, noise: str, draws: int) -> tuple[Tensor, Tensor]:
    """Samples and pathwise slopes of the noise that made them, straight from the definition."""
    sample = torch.randn(draws, dtype=torch.float64)
    if noise == "logistic":
        sample = torch.rand(draws, dtype=torch.float64).logit()
    relaxed = ((t + sample) / tau).requires_grad_()
    (slope,) = torch.autograd.grad(probability(relaxed, noise).sum(), relaxed)
    return (t + sample > 0).double(), slope / tau


@every_noise
@pytest.mark.parametrize("t", [-1.5, 0.4])
def test_redrawn_noise_has_the_law_of_the_noise_that_made_the_sample(noise, t):
    draws, tau = 100_000, 0.5
    spikes, kept = relaxed_slopes(t, tau, noise, draws)
    at = torch.full((draws,), t, dtype=torch.float64)
    redrawn = GumbelStraightThrough(tau, noise).weight(at, spikes)
    for x, analytical in zip((1.0, 0.0), both(AnalyticalGumbelRao(tau, noise=noise), at[:1]), strict=True):
        one, other = kept[spikes == x], redrawn[spikes == x]
        for power in (1, 2):
            error = ((one**power).var() / len(one) + (other**power).var() / len(other)).sqrt()
            assert ((one**power).mean() - (other**power).mean()).abs() < 5 * error
        assert (other.mean() - analytical).abs() < 5 * (other.var() / len(other)).sqrt()
        assert (other.mean() - 0.5 * (one.mean() + analytical * 1.2)).abs() > 5 * (other.var() / len(other)).sqrt()


@every_noise
def test_gumbel_rao_averages_the_straight_through_weight(noise):
    t = torch.full((40_000,), 0.8, dtype=torch.float64)
    spikes = torch.zeros_like(t)
    one, ten = (GumbelRao(draws, 0.5, noise).weight(t, spikes) for draws in (1, 10))
    expected = AnalyticalGumbelRao(0.5, noise=noise).weight(t[:1], spikes[:1])
    for weight in (one, ten):
        assert (weight.mean() - expected).abs() < 5 * (weight.var() / len(weight)).sqrt()
    assert (one.var() / ten.var()).item() == pytest.approx(10, rel=0.1)


@every_noise
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kind",
    [
        lambda noise: AnalyticalGumbelRao(1.0, False, noise),
        lambda noise: AnalyticalGumbelRao(1.0, True, noise),
        lambda noise: AnalyticalGumbelRao(0.01, True, noise),
        lambda noise: AnalyticalGumbelRao(3.0, False, noise),
        lambda noise: GumbelRao(4, 0.5, noise),
        lambda noise: GumbelStraightThrough(0.1, noise),
    ],
)
def test_weights_are_finite_for_saturated_units(kind, noise, dtype):
    t = torch.tensor([-1e4, -40, -12, 0, 12, 40, 1e4], dtype=dtype).repeat(200)
    for weight in both(kind(noise), t):
        assert weight.dtype == dtype
        assert weight.isfinite().all()
        assert weight.min() >= 0


@every_noise
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_single_precision_agrees_with_double(noise, tau):
    t = torch.linspace(-7.9, 7.9, 2001)
    for one, other in zip(
        both(AnalyticalGumbelRao(tau, noise=noise), t),
        both(AnalyticalGumbelRao(tau, noise=noise), t.double()),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=0)


@every_noise
def test_draws_reach_where_the_sample_was_unlikely(noise):
    t = torch.full((2_000,), -6.0)
    expected = AnalyticalGumbelRao(1.0, noise=noise).weight(t[:1], torch.ones(1))
    weight = GumbelStraightThrough(1.0, noise).weight(t, torch.ones_like(t))
    assert (weight.mean() - expected).abs() < 5 * (weight.var() / len(weight)).sqrt()


@pytest.mark.parametrize("kind", [GumbelRao, GumbelStraightThrough])
def test_a_random_estimator_draws_in_the_forward_pass_only(kind):
    t = torch.zeros(50, requires_grad=True)
    spikes = noisy_spikes(t, kind(), torch.Generator().manual_seed(3))
    state = torch.get_rng_state()
    gradients = [torch.autograd.grad(spikes.sum(), t, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*gradients)
    assert gradients[0].unique().numel() > 10
    again = noisy_spikes(t, kind(), torch.Generator().manual_seed(3))
    assert torch.equal(again, spikes)
    assert torch.equal(torch.autograd.grad(again.sum(), t)[0], gradients[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AnalyticalGumbelRao(0.0), "argument `tau` to be a finite number larger than 0, but got 0.0"),
        (lambda: AnalyticalGumbelRao(noise="cauchy"), "argument `noise` to be one of .*, but got 'cauchy'"),
        (lambda: GumbelRao(0), "argument `draws` to be an integer of at least 1, but got 0"),
        (lambda: GumbelRao(tau=-1), "argument `tau`"),
        (lambda: GumbelStraightThrough(tau=math.inf), "argument `tau`"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
