"""Posteriors of one layer after expectation propagation on one batch: against exact ones and importance sampling."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_snn.functional.ep import (
    Message,
    Potential,
    bounded,
    forward_moments,
    gaussian_sites,
    spike_message,
    value_message,
)
from lightning_snn.functional.linear_maps import DenseMap
from tests.functional.ep_joint import joint_cavity, joint_posterior


def answer(potential: Potential, y: Tensor, noise: float | None) -> Message:
    """Return the messages of values y with Gaussian noise or, without noise, of spikes with log-odds y."""
    if noise is None:
        message = spike_message(potential.mean, potential.variance, y, "probit")
    else:
        message = value_message(potential.mean, potential.variance, y, noise)
    return bounded(message, potential.variance)


def local_gaussian(
    x: Tensor, y: Tensor, noise: float | None, prior: tuple[Tensor, Tensor], iterations: int, solver: int, **options
) -> tuple[Tensor, Tensor]:
    """Means and precisions by the factorized block."""
    linear = DenseMap(bias=False)
    precision, precision_mean = prior
    mean, score = precision_mean / precision, None
    for _ in range(iterations):
        potential = forward_moments(linear, x, None, mean, 1 / precision, score)
        message = answer(potential, y, noise)
        mean, added = gaussian_sites(linear, x, None, potential, message, prior, mean, solver, 1e-14, **options)
        precision, score = prior[0] + added, message.score
    return mean, precision


def local_joint(
    x: Tensor, y: Tensor, noise: float | None, prior: tuple[Tensor, Tensor], iterations: int
) -> tuple[Tensor, Tensor]:
    """Means and marginal precisions by the block with full covariances."""
    potential = forward_moments(DenseMap(bias=False), x, None, prior[1] / prior[0], 1 / prior[0])
    for _ in range(iterations):
        message = answer(potential, y, noise)
        mean, covariance = joint_posterior(x, potential, message, prior)
        potential = joint_cavity(x, potential, message, mean, covariance)
    return mean, 1 / covariance.diagonal(dim1=1, dim2=2)


def test_mean_of_a_gaussian_layer_is_the_ridge_solution():
    x, y = torch.randn(60, 20, dtype=torch.double), torch.randn(60, 3, dtype=torch.double)
    prior = torch.full((3, 20), 2.0, dtype=torch.double), torch.randn(3, 20, dtype=torch.double)
    mean, precision = local_gaussian(x, y, 0.3, prior, iterations=200, solver=30)
    exact = torch.diag(prior[0][0]) + x.T @ x / 0.3
    torch.testing.assert_close(mean, torch.linalg.solve(exact, prior[1].T + x.T @ y / 0.3).T, rtol=1e-8, atol=1e-8)
    # variances are approximate: neither the marginal's nor far from it
    ratio = 1 / (precision * torch.linalg.inv(exact).diag())
    assert ((ratio > 0.5) & (ratio < 1.5)).all()
    assert ((ratio - 1).abs() > 0.01).any()


def test_conditional_variances_are_exact_for_orthogonal_inputs():
    x = torch.linalg.qr(torch.randn(60, 20, dtype=torch.double))[0] * 3
    y = torch.randn(60, 2, dtype=torch.double)
    prior = torch.full((2, 20), 2.0, dtype=torch.double), torch.zeros(2, 20, dtype=torch.double)
    _, precision = local_gaussian(x, y, 0.3, prior, 50, 30, variance="conditional")
    torch.testing.assert_close(precision, torch.full_like(precision, 2 + 9 / 0.3), rtol=1e-9, atol=0)
    _, marginal = local_gaussian(x, y, 0.3, prior, 50, 30)
    assert (marginal < precision).all()


@pytest.mark.parametrize("samples", [1, 5, 40])
@pytest.mark.parametrize("noise", [0.09, 2.0])
def test_a_layer_of_one_weight_has_the_exact_posterior(samples, noise):
    x, y = torch.randn(samples, 1, dtype=torch.double), torch.randn(samples, 1, dtype=torch.double)
    prior = torch.full((1, 1), 2.0, dtype=torch.double), torch.full((1, 1), 1.4, dtype=torch.double)
    mean, precision = local_gaussian(x, y, noise, prior, iterations=60, solver=5)
    exact = 2.0 + x.square().sum() / noise
    torch.testing.assert_close(precision[0, 0], exact, rtol=1e-9, atol=0)
    torch.testing.assert_close(mean[0, 0], (1.4 + (x * y).sum() / noise) / exact, rtol=1e-9, atol=1e-12)


def test_the_variance_of_one_weight_and_one_value_is_that_of_the_formula():
    one = torch.ones(1, 1, dtype=torch.double)
    mean, precision = local_gaussian(one, 1.5 * one, 0.09, (2 * one, 0 * one), iterations=60, solver=5)
    assert mean.item() == pytest.approx(75 / 59, rel=1e-12)
    assert 1 / precision.item() == pytest.approx(4.5 / 59, rel=1e-9)


@pytest.mark.parametrize("inputs", [2, 3, 10, 50])
@pytest.mark.parametrize("noise", [0.09, 2.0])
def test_variances_are_the_exact_ones_if_one_value_is_all_that_is_known(inputs, noise):
    x, prior_variance = torch.ones(1, inputs, dtype=torch.double), 0.5
    prior = torch.full((1, inputs), 1 / prior_variance, dtype=torch.double), torch.zeros(1, inputs, dtype=torch.double)
    _, precision = local_gaussian(x, x[:, :1], noise, prior, iterations=200, solver=5)
    exact = prior_variance - prior_variance**2 / (inputs * prior_variance + noise)
    torch.testing.assert_close(1 / precision, torch.full_like(precision, exact), rtol=1e-9, atol=0)

    # what curvature alone, which sees the variance of all weights and of this sample, would miss
    added, wanted = 0.0, 1 / exact - 1 / prior_variance
    for _ in range(200):
        variance = inputs / (1 / prior_variance + added)
        added = 1 / (variance + noise)
    share = variance / (variance + noise)
    assert 1 - added / wanted == pytest.approx(share * (1 - share) / inputs, rel=3 / inputs)


def factorized_posterior(x: Tensor, noise: float, prior: float, iterations: int = 4000) -> Tensor:
    """Variances of independent weights with a site for each sample and weight, every cavity taken for itself."""
    squared, sites = x.square(), torch.zeros_like(x)
    for _ in range(iterations):
        cavities = 1 / (prior + sites.sum(0) - sites)  # [samples, inputs]
        others = (squared * cavities).sum(1, keepdim=True) - squared * cavities
        sites = sites + 0.3 * (squared / (noise + others) - sites)
    return 1 / (prior + sites.sum(0))


@pytest.mark.parametrize(
    ("samples", "inputs", "tolerance"),
    [(10, 2, 0.08), (25, 5, 0.02), (50, 10, 0.01), (15, 30, 0.005), (150, 30, 0.002)],
)
def test_variances_are_those_of_sites_for_each_sample_and_weight(samples, inputs, tolerance):
    x = torch.randn(samples, inputs, dtype=torch.double)
    prior = torch.full((1, inputs), 2.0, dtype=torch.double), torch.zeros(1, inputs, dtype=torch.double)
    _, precision = local_gaussian(x, x[:, :1], 0.3, prior, iterations=200, solver=5)
    expected = factorized_posterior(x, 0.3, 2.0)
    assert (1 / (precision * expected)).log().mean().abs() < tolerance

    # without the correction the variance of the weight itself, and of this sample, remain in its curvature
    plain = prior[0][0]
    for _ in range(400):
        curvature = 1 / (x.square() @ (1 / plain) + 0.3)
        plain = 0.5 * plain + 0.5 * (prior[0][0] + x.square().T @ curvature)
    excess = (1 / (plain * expected)).log().mean()
    assert excess > 2 * (1 / (precision * expected)).log().mean().abs()


def test_joint_posterior_of_a_gaussian_layer_is_exact_after_one_iteration():
    x, y = torch.randn(60, 20, dtype=torch.double), torch.randn(60, 3, dtype=torch.double)
    prior = torch.full((3, 20), 2.0, dtype=torch.double), torch.randn(3, 20, dtype=torch.double)
    exact = torch.linalg.inv(torch.diag(prior[0][0]) + x.T @ x / 0.3)
    for iterations in (1, 5):
        mean, precision = local_joint(x, y, 0.3, prior, iterations)
        torch.testing.assert_close(mean, (exact @ (prior[1].T + x.T @ y / 0.3)).T, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(1 / precision, exact.diag().expand(3, -1), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("samples", "dimensions"), [(30, 3), (100, 4)])
def test_posterior_of_a_probit_layer_is_that_of_importance_sampling(samples, dimensions):
    x = torch.randn(samples, dimensions, dtype=torch.double)
    scale = math.sqrt(8 / math.pi)
    p = torch.special.ndtr(x @ torch.randn(dimensions, dtype=torch.double) / scale)
    spikes = torch.rand(samples, dtype=torch.double) < p
    draws = torch.randn(400_000, dimensions)
    signed = (torch.where(spikes, 1.0, -1.0)[:, None] * x).float()
    # log_ndtr is slow; the probabilities themselves do not underflow here
    log_likelihood = (0.5 * torch.erfc(draws @ signed.T * (-math.sqrt(0.5) / scale))).log().sum(1).double()
    weights = F.softmax(log_likelihood, 0)[:, None]
    assert 1 / weights.square().sum() > 500
    exact = (weights * draws).sum(0)
    deviation = (weights * (draws - exact).square()).sum(0).sqrt()

    prior = torch.ones(1, dimensions, dtype=torch.double), torch.zeros(1, dimensions, dtype=torch.double)
    log_odds = torch.where(spikes, math.inf, -math.inf).double()[:, None]
    for mean, precision in (
        local_gaussian(x, log_odds, None, prior, iterations=50, solver=20),
        local_joint(x, log_odds, None, prior, iterations=20),
    ):
        assert ((mean[0] - exact).abs() / deviation).max() < 0.15
        ratio = precision[0].rsqrt() / deviation
        assert ((ratio > 0.9) & (ratio < 1.1)).all()


def test_repeated_iterations_settle():
    x = (torch.rand(60, 12) < 0.4).double()
    log_odds = torch.where(torch.rand(60, 2) < 0.5, math.inf, -math.inf).double()
    prior = torch.full((2, 12), 10.0, dtype=torch.double), torch.zeros(2, 12, dtype=torch.double)
    runs = [local_gaussian(x, log_odds, None, prior, iterations, solver=20) for iterations in (1, 20, 40)]
    apart = [((runs[2][0] - mean) * runs[2][1].sqrt()).abs().max() for mean, _ in runs[:2]]
    assert apart[0] > 1e-3
    assert apart[1] < 1e-5
