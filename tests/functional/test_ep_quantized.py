"""Quantized weights: against enumeration and against the update of two levels written out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.ep import (
    Message,
    bounded,
    conjugate_gradients,
    forward_moments,
    quantized_moments,
    quantized_sites,
    site_precision,
    site_sums,
    spike_message,
)
from lightning_snn.functional.linear_maps import DenseMap


def enumerated(
    log_prior: Tensor, levels: Tensor, precision: Tensor, precision_mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and Cov(w, w^2) / (2 Var w) by their definitions."""
    mass = (log_prior + precision_mean[..., None] * levels - 0.5 * precision[..., None] * levels**2).exp()
    mass = mass / mass.sum(-1, keepdim=True)
    mean, square, cube = ((mass * levels**power).sum(-1) for power in (1, 2, 3))
    variance = square - mean**2
    return mean, variance, (cube - mean * square) / (2 * variance)


@pytest.mark.parametrize("levels", [(-1.0, 1.0), (0.0, 0.6), (-1.0, 0.0, 1.0), (-2.0, -0.5, 0.1, 3.0)])
@pytest.mark.parametrize("own_priors", [False, True])
def test_moments_of_levels_are_those_of_enumeration(levels, own_priors):
    values = torch.tensor(levels, dtype=torch.double)
    precision, precision_mean = torch.randn(2, 5, 4, dtype=torch.double)
    log_prior = torch.randn((5, 4, len(levels)) if own_priors else (len(levels),), dtype=torch.double)
    moments = quantized_moments(log_prior, values, precision, precision_mean)
    for ours, expected in zip(moments, enumerated(log_prior, values, precision, precision_mean), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_levels_have_the_tanh_of_their_field_and_their_midpoint(dtype):
    levels = torch.tensor([0.0, 0.6], dtype=dtype)
    precision, precision_mean = torch.randn(2, 50, 40, dtype=dtype) * 10
    mean, variance, center = quantized_moments(torch.zeros(2, dtype=dtype), levels, precision, precision_mean)
    slope = torch.tanh(0.3 * (precision_mean - 0.3 * precision))
    torch.testing.assert_close(mean, 0.3 + 0.3 * slope)
    torch.testing.assert_close(variance, 0.09 * (1 - slope**2), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(center, torch.full_like(center, 0.3))


@pytest.mark.parametrize("levels", [(-1.0, 1.0), (-1.0, 0.0, 1.0)])
def test_weights_that_are_certain_stay_finite(levels):
    values = torch.tensor(levels)
    precision_mean = torch.tensor([[-1e5, -300.0, 300.0, 1e5]])
    mean, variance, center = quantized_moments(
        torch.zeros(len(levels)), values, torch.zeros_like(precision_mean), precision_mean
    )
    assert mean.tolist() == [[-1, -1, 1, 1]]
    assert (variance > 0).all()
    assert variance.reciprocal().isfinite().all()
    assert (center.abs() < 1).all()


def test_site_sums_are_derivatives_of_the_log_evidence():
    """By finite differences of one weight at a time, where the log evidence is a function of mean and variance."""
    p = torch.rand(6, 4, dtype=torch.double)
    spike_variance = p * (1 - p)
    mean = torch.randn(1, 5, dtype=torch.double)
    known = torch.full_like(mean, 1e-12)
    linear = DenseMap()
    log_odds = torch.full((6, 1), 1.5, dtype=torch.double)

    def message(weights: Tensor) -> Message:
        potential = forward_moments(linear, p, spike_variance, weights, known)
        return spike_message(potential.mean, potential.variance, log_odds, "probit")

    _, first = site_sums(linear, p, spike_variance, mean, message(mean))
    for i in range(5):
        step = torch.zeros_like(mean)
        step[0, i] = 1e-5
        slope = (message(mean + step).log_evidence - message(mean - step).log_evidence).sum() / 2e-5
        assert first[0, i].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-8)


def test_known_inputs_have_sums_without_variance():
    x, mean = torch.rand(6, 4), torch.randn(3, 5)
    message = Message(*torch.randn(3, 6, 3))
    for known, noiseless in zip(
        site_sums(DenseMap(), x, None, mean, message),
        site_sums(DenseMap(), x, torch.zeros_like(x), mean, message),
        strict=True,
    ):
        torch.testing.assert_close(known, noiseless)


@pytest.mark.parametrize(("offset", "amplitude"), [(0.0, 0.7), (0.4, 0.4)])
def test_step_of_two_levels_is_the_one_written_in_their_field(offset, amplitude):
    """The update of ``w = offset + amplitude tau``, tau -1 or 1, in the log-odds ``2 amplitude field``."""
    levels = torch.tensor([offset - amplitude, offset + amplitude], dtype=torch.double)
    linear, damping, clip = DenseMap(bias=False), 0.3, 1.0
    p = torch.rand(25, 6, dtype=torch.double)
    spike_variance = p * (1 - p)
    precision, cavity_precision = torch.rand(2, 3, 6, dtype=torch.double)
    precision_mean, cavity_mean = torch.randn(2, 3, 6, dtype=torch.double)
    field, cavity_field = precision_mean - offset * precision, cavity_mean - offset * cavity_precision

    mean = offset + amplitude * torch.tanh(amplitude * field)
    variance = amplitude**2 * (1 - torch.tanh(amplitude * field) ** 2)
    potential = forward_moments(linear, p, spike_variance, mean, variance)
    log_odds = torch.where(torch.rand(25, 3) < 0.5, math.inf, -math.inf).double()
    message = bounded(spike_message(potential.mean, potential.variance, log_odds, "probit"), potential.variance)
    g, curvature = message[:2]
    second = curvature.T @ (p * p + spike_variance) - (g * g).T @ spike_variance
    first = g.T @ p + mean * ((g * g - curvature).T @ spike_variance)
    r = cavity_field + first + (mean - offset) * second - field
    diagonal = torch.maximum(1 / variance - second, 0.1 / variance)
    sites = site_precision(potential, message)
    dm = conjugate_gradients(linear, p, sites, diagonal, r, iterations=8, tolerance=1e-12)
    answer = r - ((p @ dm.T) * sites).T @ p + second * dm
    assert (answer.abs() > clip / amplitude).any()
    expected = field + damping * answer.clamp(-clip / amplitude, clip / amplitude)

    moments = quantized_moments(torch.zeros(2, dtype=torch.double), levels, precision, precision_mean)
    new_precision, new_mean = quantized_sites(
        linear,
        p,
        spike_variance,
        potential,
        message,
        (cavity_precision, cavity_mean),
        (precision, precision_mean),
        moments,
        damping,
        clip / amplitude,
        iterations=8,
        tolerance=1e-12,
    )
    torch.testing.assert_close(new_mean - offset * new_precision, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(new_precision, precision + damping * (cavity_precision + second - precision))


def test_gaussian_column_takes_a_newton_step_of_its_own():
    """A column whose o is its mean, as of a bias, lands on the exact posterior mean in one undamped step."""
    linear = DenseMap()
    x = torch.zeros(8, 2, dtype=torch.double)  # only the bias has an input
    mean = torch.tensor([[0.3, -0.3, 0.5]], dtype=torch.double)
    variance = torch.tensor([[0.9, 0.9, 0.25]], dtype=torch.double)
    g, curvature = torch.randn(8, 1, dtype=torch.double), torch.full((8, 1), 0.2, dtype=torch.double)
    potential = forward_moments(linear, x, None, mean, variance, g)
    message = bounded(Message(g, curvature, g), potential.variance)
    # the present precision is that of cavity and batch and the score that of the last iteration, as at a fixed point
    cavity = 1 / variance, mean / variance
    cavity[0][0, -1] -= message.curvature.sum()
    limit = torch.tensor([[1.0, 1.0, math.inf]], dtype=torch.double)
    new = quantized_sites(
        linear,
        x,
        None,
        potential,
        message,
        cavity,
        (1 / variance, mean / variance),
        (mean, variance, torch.tensor([[0.0, 0.0, 0.5]], dtype=torch.double)),
        1.0,
        limit,
        iterations=10,
        tolerance=1e-14,
    )
    sites = site_precision(potential, message)
    pulled = (sites * potential.mean + g * (1 + potential.weight_variance * sites)).sum()
    exact = (cavity[1][0, -1] + pulled) / (cavity[0][0, -1] + sites.sum())
    diagonal = max(1 / variance[0, -1] - message.curvature.sum(), 0.1 / variance[0, -1])
    assert diagonal.item() == pytest.approx(cavity[0][0, -1].item())
    torch.testing.assert_close((new[1] / new[0])[0, -1], exact)


def enumerated_means(x: Tensor, spikes: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Posterior means under a uniform prior, over all states of the weights."""
    states = torch.tensor(list(itertools.product(levels, repeat=x.shape[1])), dtype=x.dtype)
    signed = torch.where(spikes, 1.0, -1.0)[:, None] * x
    log_likelihood = torch.special.log_ndtr(states @ signed.T / math.sqrt(8 / math.pi)).sum(1)
    return log_likelihood.softmax(0) @ states


def local_levels(x: Tensor, spikes: Tensor, levels: tuple[float, ...], iterations: int, damping: float) -> Tensor:
    """Means of one neuron's weights after expectation propagation on one batch, from a uniform prior."""
    linear, values = DenseMap(bias=False), torch.tensor(levels, dtype=x.dtype)
    log_odds = torch.where(spikes, math.inf, -math.inf).to(x.dtype)[:, None]
    cavity = torch.zeros(1, x.shape[1], dtype=x.dtype), torch.zeros(1, x.shape[1], dtype=x.dtype)
    natural, score = cavity, None
    limit = 2 / (levels[-1] - levels[0])
    for _ in range(iterations):
        moments = quantized_moments(torch.zeros_like(values), values, *natural)
        potential = forward_moments(linear, x, None, moments[0], moments[1], score)
        message = bounded(spike_message(potential.mean, potential.variance, log_odds, "probit"), potential.variance)
        natural = quantized_sites(
            linear, x, None, potential, message, cavity, natural, moments, damping, limit, tolerance=1e-10
        )
        score = message.score
    return quantized_moments(torch.zeros_like(values), values, *natural)[0][0]


@pytest.mark.parametrize("samples", [10, 20, 60])
@pytest.mark.parametrize("levels", [(-1.0, 1.0), (-1.0, 0.0, 1.0)])
def test_means_of_discrete_weights_are_near_those_of_enumeration(samples, levels):
    errors, sizes = [], []
    for seed in range(10):
        torch.manual_seed(seed)
        inputs = 8 if len(levels) == 2 else 6
        x = (torch.rand(samples, inputs) < 0.5).double()
        truth = torch.tensor(levels, dtype=torch.double)[torch.randint(len(levels), (inputs,))]
        spikes = torch.rand(samples) < torch.special.ndtr(x @ truth / math.sqrt(8 / math.pi))
        means = local_levels(x, spikes, levels, iterations=60, damping=0.3)
        assert (means.abs() <= 1 + 1e-9).all()
        exact = enumerated_means(x, spikes, levels)
        errors.append((means - exact).abs().mean())
        sizes.append(exact.abs().mean())
    assert torch.stack(errors).mean() < 0.15
    assert torch.stack(sizes).mean() > 0.2
