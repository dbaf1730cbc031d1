"""The temperature against scipy's minimum of the likelihood."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor

from lightning_snn.functional import temperature as temperature_module
from lightning_snn.functional.temperature import HIGHEST, LOWEST, fit_temperature, tempered


def drawn(sharpness: float, number: int = 400, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits that are `sharpness` times those that the classes are drawn from."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(number, classes, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return sharpness * logits, targets


def likelihood(temperature: float, logits: Tensor, targets: Tensor) -> float:
    logarithms = log_softmax(logits.numpy() / temperature, axis=1)
    return -logarithms[np.arange(len(targets)), targets.numpy()].mean()


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0])
def test_the_temperature_is_that_of_the_smallest_negative_log_likelihood(sharpness: float):
    logits, targets = drawn(sharpness)
    found = fit_temperature(logits, targets).item()
    best = minimize_scalar(likelihood, (0.5 * sharpness, 2 * sharpness), args=(logits, targets), tol=1e-12)
    assert likelihood(found, logits, targets) <= best.fun + 1e-14
    assert found == pytest.approx(best.x, rel=1e-6)
    assert found == pytest.approx(sharpness, rel=0.15)


def test_the_derivative_is_zero_there():
    logits, targets = drawn(3.0)
    temperature = fit_temperature(logits, targets).requires_grad_()
    (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits / temperature, targets), temperature)
    assert abs(slope.item()) < 1e-13
    (elsewhere,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(logits / (1.01 * temperature), targets), temperature
    )
    assert abs(elsewhere.item()) > 1e-4


def test_logits_and_log_probabilities_have_one_temperature():
    logits, targets = drawn(3.0)
    of_logits = fit_temperature(logits + 100 * torch.rand(len(logits), 1), targets)
    assert of_logits.item() == pytest.approx(fit_temperature(logits.log_softmax(1), targets).item(), rel=1e-9)
    torch.testing.assert_close(tempered(logits, 2.5), tempered(logits.log_softmax(1), 2.5))
    torch.testing.assert_close(tempered(logits, 1.0), logits.softmax(1))


def test_likelihoods_without_a_minimum_end_the_range():
    logits, _ = drawn(1.0)
    assert fit_temperature(logits, logits.argmax(1)).item() == pytest.approx(LOWEST, rel=1e-12)
    assert fit_temperature(logits, logits.argmin(1)).item() == pytest.approx(HIGHEST, rel=1e-12)


def test_probabilities_of_zero_count_only_where_they_are_of_the_true_class():
    logits, targets = drawn(3.0)
    other = torch.cat([logits, torch.full((len(logits), 1), -math.inf)], 1)
    assert fit_temperature(other, targets).item() == pytest.approx(fit_temperature(logits, targets).item(), rel=1e-12)
    assert math.isnan(fit_temperature(other, targets.where(torch.arange(len(targets)) > 0, 5)).item())
    assert math.isnan(fit_temperature(logits[:0], targets[:0]).item())


def test_the_examples_of_the_docstrings_hold():
    failed, tried = doctest.testmod(temperature_module)
    assert failed == 0
    assert tried > 0
