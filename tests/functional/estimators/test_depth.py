"""Variance of IW-ST gradients by depth against quadrature, drawn networks and enumeration; the best lambda."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from lightning_snn.functional import IWST, best_lambda, gradient_statistics, variance_factor
from lightning_snn.functional.estimators import bias_difference, layer_factors, slope_chi_squared
from tests.support.scripts import load_script

SCALES = (0.35, 0.7, 1.4)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script(Path(__file__).parents[3] / "benchmarks" / "estimators.py")


def density(t: float) -> float:
    return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)


def probability(t: float) -> float:
    return math.erfc(-t / math.sqrt(2)) / 2


def quadrature(function: Callable[[float], float], g: float) -> float:
    """Return the mean of a function under N(0, g^2)."""
    edge = 12 * min(g, 3.0)
    value, _ = quad(lambda t: function(t) * density(t / g) / g, -edge, edge, points=[0], epsabs=0, epsrel=1e-12)
    return value


@pytest.mark.parametrize("g", [0.01, *SCALES, 5.6, 50.0])
def test_chi_squared_of_normal_pre_activations_equals_adaptive_quadrature(g):
    weighted = quadrature(lambda t: density(t) ** 2 / (4 * probability(t) * probability(-t)), g)
    expected = weighted / quadrature(lambda t: density(t) ** 2, g) - 1
    assert slope_chi_squared(g) == pytest.approx(expected, rel=1e-9 if g < 0.1 else 1e-12)


@pytest.mark.parametrize("g", SCALES)
@pytest.mark.parametrize("lam", [1.0, 0.5, 0.0])
def test_the_factor_is_the_ratio_of_moments_of_the_weights_layer_by_layer(g, lam):
    """By quadrature over t and the sum over both samples, without the formula of the family."""

    def second_moment(t: float) -> float:
        probabilities = probability(t), probability(-t)
        return sum(p * (density(t) * (lam + (1 - lam) / (2 * p))) ** 2 for p in probabilities)

    first = quadrature(second_moment, g) / quadrature(lambda t: density(t) ** 2, g)
    deeper = quadrature(second_moment, g) / quadrature(density, g) ** 2
    for layers in (1, 2, 8):
        expected = first * deeper ** (layers - 1)
        assert variance_factor(g, lam, layers) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("g", "chi", "factors", "eight"),
    [
        (0.35, 0.069, (1.006, 1.023, 1.075), (1.04, 1.19, 1.78)),
        (0.7, 0.204, (1.059, 1.113, 1.275), (1.49, 2.22, 6.60)),
        (1.4, 0.404, (1.334, 1.469, 1.873), (7.54, 16.3, 114.0)),
    ],
)
def test_factors_are_those_of_the_recorded_table(g, chi, factors, eight):
    assert round(slope_chi_squared(g), 3) == chi
    for lam, layer, network in zip((1.0, 0.5, 0.0), factors, eight, strict=True):
        assert round(variance_factor(g, lam, 2) / variance_factor(g, lam, 1), 3) == layer
        assert variance_factor(g, lam, 8) == pytest.approx(network, rel=5e-3)


def test_layers_of_different_scale_multiply():
    r = (1 + 1.4**2) / math.sqrt(1 + 2 * 1.4**2)
    expected = (1 + slope_chi_squared(0.35)) * (1 + slope_chi_squared(1.4)) * r
    assert variance_factor([0.35, 1.4], lam=0.0) == pytest.approx(expected, rel=1e-14)
    assert variance_factor([0.7] * 5, 0.25, 5) == variance_factor(0.7, 0.25, 5)
    assert variance_factor([1.4, 0.35], lam=0.0) != pytest.approx(expected, rel=1e-2)
    assert variance_factor(0.0, lam=0.0, layers=9) == 1.0


def test_one_layer_with_a_linear_loss_and_lambda_one_has_no_variance():
    assert variance_factor(1.4, lam=1.0, layers=1) == 1.0
    t = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    slopes = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)
    for lam, exact in ((1.0, True), (0.5, False)):
        found = gradient_statistics(lambda spike, inputs: slopes @ spike(inputs["t"]), {"t": t}, IWST(lam))
        assert (found.relative_deviation() < 1e-7) is exact


def test_two_layers_have_variance_even_with_lambda_one(benchmark):
    assert variance_factor(1.4, lam=1.0, layers=2) > 1.3
    assert benchmark.measured_factors(2, 1.4, (1.0,), units=64, nets=4, draws=512)[0] > 1.15


def test_factors_of_drawn_networks_are_the_predicted_ones(benchmark):
    lams = (1.0, 0.5, 0.0)
    measured = benchmark.measured_factors(4, 0.7, lams, units=128, draws=512)
    predicted = [variance_factor(0.7, lam, 4) for lam in lams]
    assert measured == pytest.approx(np.array(predicted), rel=0.1)
    # without the spread of the slopes the prediction fails
    assert abs(measured[0] - 1) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("g", [0.35, 0.7])
@pytest.mark.parametrize("layers", [2, 8, 12])
def test_factors_of_sixteen_drawn_networks_are_within_ten_percent_to_twelve_layers(benchmark, g, layers):
    lams = (1.0, 0.5, 0.0)
    predicted = [variance_factor(g, lam, layers) for lam in lams]
    assert benchmark.measured_factors(layers, g, lams) == pytest.approx(np.array(predicted), rel=0.1)


def test_the_best_lambda_has_the_smallest_error_of_the_mean():
    beta, difference = 0.02, 0.6
    grid = np.linspace(0, 1, 10_001)
    for batch in (1, 16, 128, 1024):
        error = grid**2 * beta + (1 - grid) ** 2 * difference / batch
        assert best_lambda(beta, difference, batch) == pytest.approx(grid[error.argmin()], abs=1e-4)
    assert best_lambda(0.0, 0.6, 16) == best_lambda(0.0, 0.0, 16) == 1.0
    batches = torch.tensor([30.0, 1e9])
    torch.testing.assert_close(best_lambda(beta, difference, batches), torch.tensor([0.5, 3e-8]))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_error_at_the_predicted_lambda_is_near_the_smallest_enumerated_one(benchmark, depth):
    """g = 0.7, three units per layer, on a grid of eighths."""
    lams = [step / 8 for step in range(9)]
    bias, variance = benchmark.squared_errors(depth, 3, 0.7, lams, nets=20 if depth < 4 else 10, seed=0)
    beta, difference = bias[-1] - bias[0], variance[0] - variance[-1]
    predicted = {batch: best_lambda(max(beta, 0.0), difference, batch) for batch in (1, 16, 128, 1024)}
    for batch, lam in predicted.items():
        error = bias + variance / batch
        assert np.interp(lam, lams, error) < 1.1 * error.min()
    one = bias + variance
    assert one[0] > 1.5 * one.min() or depth == 1  # lambda = 0 is far from the best for one sample
    assert predicted[1] > predicted[16] > predicted[128] > predicted[1024]
    assert predicted[16] > 0.6 or depth == 1


@pytest.mark.slow
def test_the_estimate_of_the_bias_is_near_the_enumerated_one(benchmark):
    for units in (2, 4):
        for g in (0.35, 0.7, 1.4):
            bias, _ = benchmark.squared_errors(1, units, g, (0.0, 1.0), nets=60, seed=0)
            fitted = bias_difference(torch.tensor(g * g), torch.tensor(units))
            assert 1 / 1.6 < fitted.item() / (bias[1] - bias[0]) < 1.6


def test_layer_factors_are_tensors_of_the_given_dtype():
    one = torch.tensor([0.2, 0.1], dtype=torch.float64)
    found = layer_factors(one, 1 + one, 0.5)
    torch.testing.assert_close(found, torch.tensor([1.05, 1.025 * 1.1], dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1,), "argument `g` to be a finite number of at least 0"),
        ((float("nan"),), "argument `g` to be a finite number of at least 0"),
        (([],), "argument `g` to be a number or to hold one number for each of the layers, but got 0 numbers"),
        (([0.7, 0.7], 0.5, 3), "one number for each of the layers, but got 2 numbers with layers=3"),
        ((0.7, 1.5), "argument `lam` to be a number from 0 to 1, but got 1.5"),
        ((0.7, 0.5, 0), "argument `layers` to be an integer of at least 1, but got 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        variance_factor(*arguments)
