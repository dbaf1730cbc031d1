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
