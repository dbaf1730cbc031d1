"""Mixing blocks: against sampling, dense solves and enumerated messages."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_snn.functional.ep import (
    Message,
    Potential,
    bounded,
    conjugate_gradients,
    forward_moments,
    gaussian_sites,
    input_message,
    marginal_curvature,
    own_message,
    site_precision,
    spike_message,
    value_message,
)
from lightning_snn.functional.linear_maps import ConvolutionMap, DenseMap, LinearMap


def matrix_of(linear: LinearMap, x: Tensor, inputs: int) -> Tensor:
    """The inputs of every output unit of one row, `[M * positions, I]`: what one row of weights is multiplied by."""
    columns = [linear.apply(x, row[None]).flatten() for row in torch.eye(inputs, dtype=x.dtype)]
    return torch.stack(columns, 1)


def rows_of(values: Tensor) -> Tensor:
    """Values `[M, O, ...]` as `[O, M * positions]`."""
    return values.transpose(0, 1).flatten(1)


def test_forward_moments_are_those_of_sampled_weights_and_spikes():
    inputs, outputs, draws = 12, 3, 200_000
    mean, variance = torch.randn(outputs, inputs + 1) * 0.5, torch.rand(outputs, inputs + 1)
    p = torch.rand(2, inputs)
    potential = forward_moments(DenseMap(), p, p * (1 - p), mean, variance)
    for sample in range(2):
        spikes = torch.bernoulli(p[sample].expand(draws, -1))
        spikes = torch.cat([spikes, torch.ones(draws, 1)], 1)
        for o in range(outputs):
            u = (spikes * (mean[o] + variance[o].sqrt() * torch.randn(draws, inputs + 1))).sum(1)
            assert potential.mean[sample, o].item() == pytest.approx(u.mean().item(), abs=0.02 * u.std().item())
            assert potential.variance[sample, o].item() == pytest.approx(u.var().item(), rel=0.02)


def test_known_inputs_are_inputs_without_variance():
    x, mean, variance = torch.randn(4, 5), torch.randn(3, 6), torch.rand(3, 6)
    known = forward_moments(DenseMap(), x, None, mean, variance)
    noiseless = forward_moments(DenseMap(), x, torch.zeros_like(x), mean, variance)
    torch.testing.assert_close(known.mean, noiseless.mean)
    torch.testing.assert_close(known.variance, noiseless.variance)
    assert torch.equal(known.variance, known.weight_variance)


def test_score_is_taken_away_by_the_variance_of_weights_alone():
    p, score = torch.rand(4, 5), torch.randn(4, 3)
    mean, variance = torch.randn(3, 6), torch.rand(3, 6)
    plain = forward_moments(DenseMap(), p, p * (1 - p), mean, variance)
    corrected = forward_moments(DenseMap(), p, p * (1 - p), mean, variance, score)
    torch.testing.assert_close(corrected.mean, plain.mean - plain.weight_variance * score)
    assert (plain.variance > plain.weight_variance).all()


LINEAR_MAPS = {
    "dense": (DenseMap(), (30, 8), 9),
    "dense without bias": (DenseMap(bias=False), (30, 8), 8),
    "convolution": (ConvolutionMap(2, (3, 2), (2, 1), (1, 0)), (4, 2, 6, 5), 13),
}


def system(name: str) -> tuple[LinearMap, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A linear map, its inputs, site precisions, diagonal, right side, and the rows that solve the system."""
    linear, shape, inputs = LINEAR_MAPS[name]
    x = torch.rand(shape, dtype=torch.double)
    precision = torch.rand_like(linear.apply(x, torch.zeros(5, inputs, dtype=torch.double)))
    diagonal, right = torch.rand(5, inputs, dtype=torch.double) + 0.5, torch.randn(5, inputs, dtype=torch.double)
    columns = matrix_of(linear, x, inputs)
    matrices = torch.diag_embed(diagonal) + torch.einsum("op,pi,pj->oij", rows_of(precision), columns, columns)
    return linear, x, precision, diagonal, right, torch.linalg.solve(matrices, right)


@pytest.mark.parametrize("name", list(LINEAR_MAPS))
@pytest.mark.parametrize("started", [False, True])
def test_conjugate_gradients_solve_every_row(name, started):
    linear, x, precision, diagonal, right, solution = system(name)
    start = torch.randn_like(right) if started else None
    found = conjugate_gradients(linear, x, precision, diagonal, right, start, iterations=40, tolerance=1e-14)
    torch.testing.assert_close(found, solution, rtol=1e-9, atol=1e-10)
    one_step = conjugate_gradients(linear, x, precision, diagonal, right, start, iterations=1)
    assert not torch.allclose(one_step, solution, rtol=1e-2)


def test_preconditioner_changes_the_way_and_not_the_solution():
    linear, x, precision, diagonal, right, solution = system("dense")
    other = torch.rand_like(diagonal) + 0.5
    found = [
        conjugate_gradients(linear, x, precision, diagonal, right, None, iterations, 1e-14, other)
        for iterations in (2, 60)
    ]
    plain = conjugate_gradients(linear, x, precision, diagonal, right, None, 2, 1e-14)
    assert not torch.allclose(found[0], plain, rtol=1e-3)
    torch.testing.assert_close(found[1], solution, rtol=1e-9, atol=1e-10)


def test_rows_that_converge_exactly_and_rows_of_zeros_stay_finite():
    linear, x, precision, diagonal, right, _ = system("dense")
    right[0] = 0
    precision[:, 1] = 0  # one step of the preconditioner is exact
    precision[:, 2], right[2] = 0, 0
    found = conjugate_gradients(linear, x, precision, diagonal, right, iterations=60, tolerance=0.0)
    assert found.isfinite().all()
    assert torch.equal(found[0], torch.zeros_like(found[0]))
    assert torch.equal(found[2], torch.zeros_like(found[2]))
    torch.testing.assert_close(found[1], right[1] / diagonal[1])
    solved = conjugate_gradients(linear, x, precision, diagonal, found * 0, start=found * 0, iterations=5)
    assert torch.equal(solved, torch.zeros_like(found))


def test_starting_at_the_solution_stays_there():
    linear, x, precision, diagonal, right, solution = system("dense")
    found = conjugate_gradients(linear, x, precision, diagonal, right, solution, iterations=20)
    assert found.isfinite().all()
    torch.testing.assert_close(found, solution, rtol=1e-12, atol=1e-12)


def test_a_row_stops_at_the_tolerance_whatever_the_others_do():
    linear, x, precision, diagonal, right, solution = system("dense")
    together = conjugate_gradients(linear, x, precision, diagonal, right, iterations=30, tolerance=0.1)
    for row in range(len(right)):
        one = slice(row, row + 1)
        alone = conjugate_gradients(
            linear, x, precision[:, one], diagonal[one], right[one], iterations=30, tolerance=0.1
        )
        torch.testing.assert_close(together[one], alone)
    assert 1e-4 < (together - solution).norm() / solution.norm() < 0.2


def test_sites_of_a_convolution_are_those_of_its_patches():
    linear, shape, inputs = LINEAR_MAPS["convolution"]
    x = torch.rand(shape, dtype=torch.double)
    spike_variance = x * (1 - x)
    columns = matrix_of(linear, x, inputs)
    spread = matrix_of(linear, spike_variance, inputs)
    spread[:, -1] = 0  # the bias sees a constant
    mean, variance = torch.randn(2, inputs, dtype=torch.double), torch.rand(2, inputs, dtype=torch.double) + 0.1
    cavity = 1 / variance, mean / variance

    def solved(linear: LinearMap, x: Tensor, d: Tensor, answer) -> tuple[Potential, Tensor, Tensor]:
        potential = forward_moments(linear, x, d, mean, variance)
        message = answer(potential)
        return potential, *gaussian_sites(linear, x, d, potential, message, cavity, mean, 30, 1e-12)

    def soft(potential: Potential) -> Message:
        log_odds = torch.full_like(potential.mean, 1.5)
        return bounded(spike_message(potential.mean, potential.variance, log_odds, "probit"), potential.variance)

    tied = solved(linear, x, spike_variance, soft)
    dense = solved(DenseMap(bias=False), columns, spread, soft)
    for field in ("mean", "variance", "weight_variance"):
        torch.testing.assert_close(rows_of(getattr(tied[0], field)), rows_of(getattr(dense[0], field)))
    torch.testing.assert_close(tied[1], dense[1])
    torch.testing.assert_close(tied[2], dense[2])
    assert (tied[2] >= 0).all()


def test_correction_by_the_last_score_enters_the_right_side():
    x, mean = torch.rand(30, 6, dtype=torch.double), torch.randn(2, 6, dtype=torch.double)
    variance, score = torch.rand(2, 6, dtype=torch.double) + 0.1, torch.randn(30, 2, dtype=torch.double)
    cavity = 2 / variance, torch.randn(2, 6, dtype=torch.double)
    linear = DenseMap(bias=False)
    potential = forward_moments(linear, x, None, mean, variance, score)
    log_odds = torch.where(torch.rand(30, 2) < 0.5, math.inf, -math.inf).double()
    message = bounded(spike_message(potential.mean, potential.variance, log_odds, "probit"), potential.variance)
    sites = site_precision(potential, message)
    b = sites * potential.mean + message.score * (1 + potential.weight_variance * sites)
    matrices = torch.diag_embed(cavity[0]) + torch.einsum("no,ni,nj->oij", sites, x, x)
    expected = torch.linalg.solve(matrices, cavity[1] + b.T @ x)
    solved, added = gaussian_sites(linear, x, None, potential, message, cavity, mean, 30, 1e-14)
    torch.testing.assert_close(solved, expected)
    precisions = marginal_curvature(linear, x, potential, message.curvature)
    torch.testing.assert_close(added, precisions.T @ x.square())


@pytest.mark.parametrize("target", ["spike", "soft spike", "value"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_own_message_is_the_root_of_its_equation(target, share):
    uncorrected = torch.linspace(-4, 4, 33, dtype=torch.double)[:, None]
    variance = torch.full_like(uncorrected, 3.0)
    potential = Potential(uncorrected, variance, share * variance)

    def factor(potential: Potential) -> Message:
        if target == "value":
            return value_message(potential.mean, potential.variance, torch.ones_like(uncorrected), 0.01)
        log_odds = torch.full_like(uncorrected, math.inf if target == "spike" else 2.0)
        return spike_message(potential.mean, potential.variance, log_odds, "probit")

    def excess(score: Tensor) -> Tensor:
        corrected = Potential(uncorrected - potential.weight_variance * score, variance, potential.weight_variance)
        return score - factor(corrected).score

    low, high = torch.full_like(uncorrected, -60.0), torch.full_like(uncorrected, 60.0)
    for _ in range(70):
        middle = (low + high) / 2
        low, high = torch.where(excess(middle) > 0, low, middle), torch.where(excess(middle) > 0, middle, high)
    torch.testing.assert_close(own_message(potential, factor).score, low, rtol=1e-6, atol=1e-6)
    assert (factor(potential).score - low).abs().max() > 1e-3


def exact_ratio(x: Tensor, mean: Tensor, variance: Tensor, score: Tensor, curvature: Tensor, j: int) -> Tensor:
    """log Z with input j at 1 less that at 0, to second order of each output's log Z in mean and variance."""
    p = x[:, j : j + 1]
    step = []
    for spike in (1.0, 0.0):
        shift = (spike - p) * mean[:, j]
        widening = (spike**2 - p**2) * variance[:, j] - p * (1 - p) * (mean[:, j] ** 2 + variance[:, j])
        step.append(score * shift - 0.5 * curvature * shift**2 + 0.5 * (score**2 - curvature) * widening)
    return (step[0] - step[1]).sum(1)


def test_input_message_is_the_two_point_ratio_expanded():
    x = torch.rand(5, 7, dtype=torch.double)
    mean, variance = torch.randn(3, 8, dtype=torch.double), torch.rand(3, 8, dtype=torch.double)
    g, curvature = torch.randn(5, 3, dtype=torch.double), torch.rand(5, 3, dtype=torch.double)
    score, precision = input_message(DenseMap(), x, mean, variance, Message(g, curvature, g))
    log_odds = score + (x - 0.5) * precision
    for j in range(7):
        torch.testing.assert_close(log_odds[:, j], exact_ratio(x, mean, variance, g, curvature, j))


def test_log_odds_to_inputs_are_those_of_the_exact_two_point_ratio():
    inputs, samples = 100, 20
    x = torch.rand(samples, inputs, dtype=torch.double)
    mean, variance = torch.randn(1, inputs, dtype=torch.double) * 0.3, torch.rand(1, inputs, dtype=torch.double) * 0.1
    linear = DenseMap(bias=False)
    potential = forward_moments(linear, x, x * (1 - x), mean, variance)
    observed = torch.where(torch.rand(samples, 1) < 0.5, math.inf, -math.inf).double()
    message = spike_message(potential.mean, potential.variance, observed, "probit")
    score, curvature = input_message(linear, x, mean, variance, message)
    log_odds = score + (x - 0.5) * curvature
    exact = torch.empty_like(x)
    for j in range(inputs):
        ends = []
        for spike in (1.0, 0.0):
            fixed, spread = x.clone(), x * (1 - x)
            fixed[:, j], spread[:, j] = spike, 0
            at = forward_moments(linear, fixed, spread, mean, variance)
            ends.append(spike_message(at.mean, at.variance, observed, "probit").log_evidence[:, 0])
        exact[:, j] = ends[0] - ends[1]
    assert exact.abs().max() > 0.2
    assert (log_odds - exact).abs().max() < 0.05


def test_input_message_of_a_convolution_is_that_of_its_dense_matrix():
    linear, shape, inputs = LINEAR_MAPS["convolution"]
    x = torch.rand(shape, dtype=torch.double)
    mean, variance = torch.randn(3, inputs, dtype=torch.double), torch.rand(3, inputs, dtype=torch.double)

    def dense(weight: Tensor) -> Tensor:
        pixels = torch.eye(x[0].numel(), dtype=torch.double).reshape(-1, *x.shape[1:])
        return linear.apply(pixels, weight, constant=0.0).flatten(1).T

    g, curvature = torch.randn(2, *linear.apply(x, mean).shape, dtype=torch.double)
    ours = input_message(linear, x, mean, variance, Message(g, curvature, g))
    flat = Message(*(values.flatten(1) for values in (g, curvature, g)))
    # the square of a matrix of shared weights is the matrix of their squares: every entry is one weight or 0
    widening = (flat.score.square() - flat.curvature) @ dense(variance)
    torch.testing.assert_close(ours[0].flatten(1), flat.score @ dense(mean) + x.flatten(1) * widening)
    torch.testing.assert_close(ours[1].flatten(1), flat.curvature @ dense(mean.square()) - widening)


def test_nothing_of_the_size_of_samples_times_outputs_times_inputs_is_stored(memory):
    samples, outputs, inputs = 200, 100, 300
    p = torch.rand(samples, inputs)
    mean, variance = torch.randn(outputs, inputs + 1), torch.rand(outputs, inputs + 1) + 0.1
    linear, cavity = DenseMap(), (1 / variance, mean / variance)

    def batch() -> None:
        with torch.no_grad():
            potential = forward_moments(linear, p, p * (1 - p), mean, variance)
            message = spike_message(potential.mean, potential.variance, torch.ones_like(potential.mean), "probit")
            message = bounded(message, potential.variance)
            gaussian_sites(linear, p, p * (1 - p), potential, message, cavity, mean)
            input_message(linear, p, mean, variance, message)

    assert memory.peak_bytes(batch) < samples * outputs * inputs * 4 / 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sites_of_observed_values_are_exact_however_wide_the_potentials_are(dtype):
    wide = torch.logspace(-3, 6, 10, dtype=dtype)[:, None]
    noise, spikes = 0.01, 0.5
    for elsewhere in (0.0, spikes):
        potential = Potential(torch.zeros_like(wide), wide + elsewhere, wide)
        message = bounded(
            value_message(potential.mean, potential.variance, torch.ones_like(wide), noise), potential.variance
        )
        sites = site_precision(potential, message)
        expected = (potential.variance - wide + noise).reciprocal()
        torch.testing.assert_close(sites, expected, rtol=4 * torch.finfo(dtype).eps, atol=0)
        if elsewhere == 0:
            assert (sites * noise - 1).abs().max() < 4 * torch.finfo(dtype).eps
            # a bound of G as spikes have it would make the site too wide by V / (1000 noise)
            assert (sites * noise / (1000 * noise / wide)).max() > 1e4
    narrow = Potential(torch.zeros(1, 1, dtype=dtype), *torch.ones(2, 1, 1, dtype=dtype))
    observed = bounded(value_message(narrow.mean, narrow.variance, narrow.variance, noise), narrow.variance)
    assert observed.curvature.item() == pytest.approx(1 / 1.01, rel=1e-6)
    infinite = torch.full_like(narrow.mean, math.inf)
    spike = bounded(spike_message(narrow.mean - 40, narrow.variance, infinite, "heaviside"), narrow.variance)
    assert site_precision(narrow, spike).item() == pytest.approx(999, rel=1e-2)
