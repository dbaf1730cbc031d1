"""Gain and noise of almost linear responses, and the accuracy that noise leaves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_snn.functional.linear_response import accuracy_under_noise, gain_and_noise


@pytest.mark.parametrize("window", [0.1, 1.0, 4.0])
def test_gain_and_noise_of_clipped_exponentials_are_their_integrals(window: float):
    step = 1e-4
    x = torch.arange(step / 2, 60, step, dtype=torch.float64)
    gain, noise = gain_and_noise(x, x.clamp(max=window), torch.exp(-x))
    power, product = 2.0, 2 - math.exp(-window) * (window + 2)
    clipped = 2 * (1 - math.exp(-window) * (1 + window))
    assert gain.item() == pytest.approx(product / power, rel=1e-7)
    assert noise.item() == pytest.approx(clipped * power / product**2 - 1, rel=1e-6)


def test_noise_is_uncorrelated_with_the_signal():
    x = torch.randn(1000, dtype=torch.float64)
    response = x + 0.3 * x.square()
    gain, noise = gain_and_noise(x, response)
    rest = response - gain * x
    assert (rest * x).mean().abs() < 1e-12
    torch.testing.assert_close(noise, rest.square().mean() / (gain * x).square().mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("factor", [0.01, -3.0])
def test_a_gain_alone_is_no_noise(factor: float):
    x = torch.randn(50, dtype=torch.float64)
    gain, noise = gain_and_noise(x, factor * x)
    assert gain.item() == pytest.approx(factor, rel=1e-12)
    assert abs(noise.item()) < 1e-12


def test_counts_repeat_numbers():
    x, counts = torch.rand(9, dtype=torch.float64), torch.arange(9, dtype=torch.float64)
    repeated = x.repeat_interleave(counts.long())
    for found, expected in zip(
        gain_and_noise(x, x.sqrt(), counts), gain_and_noise(repeated, repeated.sqrt()), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def integrated_accuracy(logits: Tensor, labels: Tensor, deviation: float) -> float:
    """The same integral on a grid, in numpy."""
    t = np.linspace(-12, 12, 4001)
    density = np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        product = density.copy()
        for other, value in enumerate(row):
            if other != label:
                z = t + (row[label] - value) / deviation
                product *= np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in z])
        total += np.trapezoid(product, t)
    return total / len(logits)


@pytest.mark.parametrize("noise", [1e-3, 0.1, 3.0])
def test_accuracy_under_noise_is_its_integral(noise: float):
    logits, labels = 3 * torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 5
    deviation = math.sqrt(noise * logits.square().mean().item())
    expected = integrated_accuracy(logits, labels, deviation)
    assert accuracy_under_noise(logits, labels, noise).item() == pytest.approx(expected, abs=2e-7)


def test_accuracy_under_noise_is_that_of_drawn_noise():
    logits, labels = torch.randn(40, 10, dtype=torch.float64), torch.arange(40) % 10
    drawn = logits + (0.5 * logits.square().mean()).sqrt() * torch.randn(4000, 40, 10, dtype=torch.float64)
    expected = (drawn.argmax(2) == labels).double().mean().item()
    assert accuracy_under_noise(logits, labels, 0.5).item() == pytest.approx(expected, abs=4 * 0.5 / 400)


def test_without_noise_accuracy_is_that_of_the_logits_and_with_much_noise_chance():
    logits, labels = torch.randn(30, 4), torch.arange(30) % 4
    assert accuracy_under_noise(logits, labels, 0.0) == (logits.argmax(1) == labels).double().mean()
    assert accuracy_under_noise(logits, labels, 1e8).item() == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(
    ("logits", "labels", "noise", "message"),
    [
        (torch.zeros(3), torch.zeros(3), 0.1, r"shapes \(N, C\)"),
        (torch.zeros(3, 2), torch.zeros(2), 0.1, r"shapes \(N, C\)"),
        (torch.zeros(0, 2), torch.zeros(0), 0.1, r"shapes \(N, C\)"),
        (torch.zeros(3, 2), torch.zeros(3), -0.1, "`noise`"),
        (torch.zeros(3, 2), torch.zeros(3), float("nan"), "`noise`"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(logits: Tensor, labels: Tensor, noise: float, message: str):
    with pytest.raises(ValueError, match=message):
        accuracy_under_noise(logits, labels.long(), noise)
