"""Class-wise and smooth calibration errors against plain loops and quadrature of the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from lightning_snn.metrics import ClasswiseCalibrationError, SmoothCalibrationError
from lightning_snn.metrics.functional import (
    classwise_calibration_error,
    expected_calibration_error,
    smooth_calibration_error,
    smooth_gap,
)
from lightning_snn.metrics.functional.smooth_calibration import KERNELS


def drawn(number: int = 150, classes: int = 4, sharpness: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(number, classes, generator=generator, dtype=torch.float64)
    return (sharpness * logits).softmax(1), torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


# class-wise


@pytest.mark.parametrize("n_bins", [1, 2, 15])
def test_the_classwise_error_is_that_by_hand(n_bins):
    probabilities, targets = drawn()
    probabilities[0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    total = 0.0
    for column in range(4):
        for lower in range(n_bins):
            p, hits = probabilities[:, column].numpy(), targets.numpy() == column
            inside = np.minimum((p.astype(np.float32) * np.float32(n_bins)).astype(int), n_bins - 1) == lower
            total += abs(hits[inside].sum() - p[inside].sum()) / 150 / 4
    assert classwise_calibration_error(probabilities, targets, n_bins).item() == pytest.approx(total, rel=1e-12)


def test_the_classwise_error_is_the_mean_of_torchmetrics_binary_errors():
    probabilities, targets = drawn()
    each = [binary_calibration_error(probabilities[:, c], (targets == c).int(), n_bins=15) for c in range(4)]
    found = classwise_calibration_error(probabilities, targets).item()
    assert found == pytest.approx(torch.stack(each).mean().item(), abs=1e-7)
    assert abs(found - expected_calibration_error(probabilities, targets).item()) > 0.01, "another number than the ECE"


def test_a_class_that_never_occurs_counts_with_its_probability():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], dtype=torch.float64)
    assert classwise_calibration_error(probabilities, torch.tensor([0, 1])).item() == pytest.approx(
        (0 + 0.25 + 0.25) / 3
    )


def test_the_classwise_class_adds_batches_and_names_other_columns():
    probabilities, targets = drawn()
    metric = ClasswiseCalibrationError(4, n_bins=7)
    for part in torch.arange(150).split(64):
        metric.update(probabilities[part].float(), targets[part])
    expected = classwise_calibration_error(probabilities.float(), targets, 7)
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-12, atol=0)
    assert metric.bfloat16().probability.dtype == torch.float64
    with pytest.raises(ValueError, match="`probabilities` to have num_classes = 4 columns, but got 3"):
        metric.update(*drawn(classes=3))
    with pytest.raises(ValueError, match="`num_classes` to be an integer of at least 2, but got 1"):
        ClasswiseCalibrationError(1)


# smooth


def by_quadrature(confidence: np.ndarray, correct: np.ndarray, kernel: str) -> float:
    """Solve smECE(s) = s, with the definition integrated between its roots by Gauss-Legendre panels."""
    residuals = (correct - confidence) / len(confidence)
    clipped = np.clip(confidence, 1e-3, 1 - 1e-3)
    places = np.log(clipped / (1 - clipped)) / 4 if kernel == "logit" else confidence
    nodes, weights = np.polynomial.legendre.leggauss(16)

    def smoothed(t: np.ndarray, width: float) -> np.ndarray:
        images = [places] if kernel == "logit" else [2 * m + sign * places for m in (-1, 0, 1) for sign in (1, -1)]
        scale = width * math.sqrt(2 * math.pi)
        return sum(np.exp(-(((t[:, None] - image) / width) ** 2) / 2) @ residuals for image in images) / scale

    def error(width: float) -> float:
        low, high = (places.min() - 9 * width, places.max() + 9 * width) if kernel == "logit" else (0.0, 1.0)
        grid = np.linspace(low, high, int(20 * (high - low) / width) + 50)
        values = smoothed(grid, width)
        roots = [
            brentq(lambda t: smoothed(np.array([t]), width)[0], *grid[i : i + 2], xtol=1e-13)
            for i in np.flatnonzero(values[1:] * values[:-1] < 0)
        ]
        edges = np.unique([low, *roots, high, *np.arange(low, high, width)])
        half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
        panels = smoothed((middle + half * nodes).ravel(), width).reshape(-1, len(nodes))
        return np.abs((panels * half) @ weights).sum()

    return brentq(lambda width: error(width) - width, 0.02, 0.5, xtol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("seed", "number"), [(0, 30), pytest.param(1, 300, marks=pytest.mark.slow)])
def test_the_smooth_error_is_the_fixed_point_of_its_definition(kernel, seed, number):
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.3, 1, number)
    confidence[:2] = 1
    correct = generator.random(number) < confidence**2 + 0.3 * (confidence < 0.6)
    expected = by_quadrature(confidence, correct.astype(float), kernel)
    found = smooth_gap(torch.tensor(confidence), torch.tensor(correct), kernel).item()
    assert found == pytest.approx(expected, abs=1e-7)
    assert abs(correct.mean() - confidence.mean()) + 1e-3 < found, "the residuals change sign"


def test_the_kernels_give_different_numbers():
    errors = [smooth_calibration_error(*drawn(), kernel).item() for kernel in KERNELS]
    assert abs(errors[0] - errors[1]) > 1e-4


@pytest.mark.parametrize("kernel", KERNELS)
def test_residuals_of_one_sign_give_the_gap_of_confidence_and_accuracy(kernel):
    confidence = torch.tensor([0.9, 0.6, 0.99999, 1.0], dtype=torch.float64)
    expected = (1 - confidence).mean().item()
    assert smooth_gap(confidence, torch.ones(4).bool(), kernel).item() == pytest.approx(expected, rel=1e-12)
    assert smooth_gap(confidence[:1], torch.tensor([False]), kernel).item() == pytest.approx(0.9, rel=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_confidences_that_are_right_as_often_as_they_state_have_no_error(kernel):
    confidence = torch.full((5,), 0.8, dtype=torch.float64)
    assert smooth_gap(confidence, torch.arange(5) > 0, kernel).item() < 1e-12
    assert smooth_gap(confidence, torch.arange(5) > 1, kernel).item() == pytest.approx(0.2, rel=1e-12)
    assert smooth_gap(torch.ones(3), torch.ones(3).bool(), kernel).item() == 0


def test_small_changes_of_confidence_change_the_smooth_error_little_and_that_in_bins_much():
    edge = 1 - 1 / 15
    correct = torch.arange(200) % 2 == 0
    pushed = torch.where(correct, 1e-6, -1e-6).double()
    before, after = torch.full((200,), edge - 2e-6, dtype=torch.float64), edge + pushed
    smooth = abs(smooth_gap(before, correct) - smooth_gap(after, correct)).item()
    wide = [torch.stack([each, 1 - each], 1) for each in (before, after)]
    targets = (~correct).long()
    binned = abs(expected_calibration_error(wide[0], targets) - expected_calibration_error(wide[1], targets)).item()
    assert smooth < 1e-5
    assert binned > 0.05


def test_the_error_of_calibrated_confidences_shrinks_with_their_number():
    generator = torch.Generator().manual_seed(0)
    errors = []
    for number in (100, 5000):
        confidence = 0.4 + 0.6 * torch.rand(number, generator=generator, dtype=torch.float64)
        correct = torch.rand(number, generator=generator, dtype=torch.float64) < confidence
        errors.append(smooth_gap(confidence, correct).item())
    assert errors[1] < 0.02 < errors[0]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_smooth_class_scores_all_batches_together(kernel):
    probabilities, targets = drawn()
    metric = SmoothCalibrationError(kernel)
    batches = []
    for part in torch.arange(150).split(64):
        batches.append(metric(probabilities[part], targets[part]))
    assert metric.compute() == smooth_calibration_error(probabilities, targets, kernel)
    assert abs(metric.compute() - torch.stack(batches).mean()) > 1e-3
    order = torch.randperm(150)
    shuffled = smooth_calibration_error(probabilities[order], targets[order], kernel).item()
    assert shuffled == pytest.approx(metric.compute().item(), rel=1e-9)


@pytest.mark.parametrize("score", [classwise_calibration_error, smooth_calibration_error])
def test_empty_data_has_no_error_and_bad_data_is_named(score):
    assert math.isnan(score(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)))
    probabilities, targets = drawn(5)
    bad = probabilities.clone()
    bad[2, 1] = math.nan
    for arguments, name in (
        ((bad, targets), "probabilities"),
        ((probabilities[0], targets), "probabilities"),
        ((2 * probabilities, targets), "probabilities"),
        ((probabilities, targets.double()), "targets"),
        ((probabilities, targets[:4]), "targets"),
        ((probabilities, targets + 4), "targets"),
    ):
        with pytest.raises(ValueError, match=f"Expected argument `{name}` to"):
            score(*arguments)
    with pytest.raises(ValueError, match="Expected argument `kernel` to be one of 'reflected', 'logit'"):
        SmoothCalibrationError("gaussian")
    with pytest.raises(ValueError, match="Expected argument `n_bins` to be"):
        classwise_calibration_error(probabilities, targets, 0)
