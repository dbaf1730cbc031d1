"""Calibration errors and mean entropies against numpy by hand, over batches and processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_snn.metrics import (
    AdaptiveCalibrationError,
    ExpectedCalibrationError,
    MutualInformation,
    PredictiveEntropy,
)
from lightning_snn.metrics.functional import adaptive_calibration_error, expected_calibration_error
from tests.support.processes import on_two_processes


def drawn(number: int = 203, classes: int = 6, sharpness: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    logits = torch.randn(number, classes, generator=generator, dtype=torch.float64)
    return (sharpness * logits).softmax(1), torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def with_full_confidence() -> tuple[Tensor, Tensor]:
    """Probabilities `[N, C]` and classes `[N]`: 40 with confidence 1, half of them wrong, and 40 of 0.95, all right."""
    probabilities, targets = drawn(sharpness=2.0)
    certain = torch.eye(6, dtype=torch.float64)[torch.arange(40) % 6]
    half_right = (torch.arange(40) + torch.arange(40) % 2) % 6
    nearly = torch.full((40, 6), 0.01, dtype=torch.float64)
    nearly[:, 0] = 0.95
    right = torch.zeros(40, dtype=torch.long)
    return torch.cat([probabilities, certain, nearly]), torch.cat([targets, half_right, right])


def equal_width_by_hand(probabilities: Tensor, targets: Tensor, n_bins: int) -> float:
    """Compare accuracy and confidence in each bin, one sample at a time in float64; confidence 1 is in the last bin."""
    p, y = probabilities.double().numpy(), targets.numpy()
    gaps = np.zeros(n_bins)
    for row, label in zip(p, y, strict=True):
        index = min(int(np.floor(row.max() * n_bins)), n_bins - 1)
        gaps[index] += float(row.argmax() == label) - row.max()
    return float(np.abs(gaps).sum() / len(y))


def by_hand(probabilities: Tensor, targets: Tensor, n_bins: int) -> float:
    """Sort, cut, and compare each bin's accuracy with its confidence; confidences are all different."""
    p, y = probabilities.numpy(), targets.numpy()
    order = np.argsort(p.max(1))
    total = 0.0
    for part in np.array_split(order, n_bins):
        if len(part):
            accuracy = np.mean(p[part].argmax(1) == y[part])
            total += len(part) / len(y) * abs(accuracy - p[part].max(1).mean())
    return total


@pytest.mark.parametrize("n_bins", [1, 2, 15, 203])
@pytest.mark.parametrize("data", [drawn, with_full_confidence])
def test_the_expected_error_is_that_by_hand(n_bins: int, data: Callable[[], tuple[Tensor, Tensor]]):
    probabilities, targets = data()
    expected = equal_width_by_hand(probabilities, targets, n_bins)
    assert expected_calibration_error(probabilities, targets, n_bins).item() == pytest.approx(expected, abs=1e-12)
    metric = ExpectedCalibrationError(n_bins)
    for part in torch.arange(len(targets)).split([60, 100, len(targets) - 160]):
        metric.update(probabilities[part], targets[part])
    assert metric.compute().item() == pytest.approx(expected, abs=1e-12)
    assert expected > 0.01


def test_a_bin_of_their_own_for_full_confidences_would_give_another_error():
    probabilities, targets = with_full_confidence()
    assert (probabilities.max(1).values == 1).sum() == 40
    theirs = multiclass_calibration_error(probabilities, targets, num_classes=6, n_bins=15, norm="l1").item()
    assert theirs - equal_width_by_hand(probabilities, targets, 15) > 0.01


@pytest.mark.parametrize("n_bins", [1, 2, 15, 203, 500])
def test_the_adaptive_error_is_that_by_hand(n_bins: int):
    probabilities, targets = drawn()
    expected = by_hand(probabilities, targets, n_bins)
    assert adaptive_calibration_error(probabilities, targets, n_bins).item() == pytest.approx(expected, abs=1e-12)
    assert expected > 0.05


def test_one_bin_is_the_gap_of_accuracy_and_confidence_and_equal_width_agrees():
    probabilities, targets = drawn()
    gap = abs((probabilities.argmax(1) == targets).double().mean() - probabilities.max(1).values.mean())
    for error in (adaptive_calibration_error, expected_calibration_error):
        assert error(probabilities, targets, 1).item() == pytest.approx(gap.item(), abs=1e-12)
    wide = expected_calibration_error(probabilities, targets, 15)
    assert adaptive_calibration_error(probabilities, targets, 15).item() != pytest.approx(wide.item(), rel=1e-3)


def test_bins_of_equal_size_see_errors_that_cancel_in_one_of_equal_width():
    # nearly sure of all: too sure of the first half and not sure enough of the other, both above 14/15
    confidence = torch.cat([torch.full((100,), 0.94), torch.full((100,), 0.96)]).double()
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    targets = torch.cat([torch.arange(100) < 10, torch.zeros(100, dtype=torch.bool)]).long()
    assert expected_calibration_error(probabilities, targets).item() < 1e-7  # rounding of 0.94
    assert adaptive_calibration_error(probabilities, targets, 2).item() == pytest.approx(0.04, abs=1e-7)


def test_the_order_of_samples_of_equal_confidence_never_matters():
    low = torch.arange(200) % 2 == 0
    confidence = torch.where(low, 0.6, 0.9).double()
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    targets = torch.randint(2, (200,), generator=torch.Generator().manual_seed(0))
    found = adaptive_calibration_error(probabilities, targets)
    for _ in range(3):
        order = torch.randperm(200)
        again = adaptive_calibration_error(probabilities[order], targets[order])
        torch.testing.assert_close(again, found, rtol=1e-12, atol=0)
    # with two bins these are the two groups
    right = (targets == 0).double()
    expected = ((right[low].mean() - 0.6).abs() + (right[~low].mean() - 0.9).abs()) / 2
    assert adaptive_calibration_error(probabilities, targets, 2).item() == pytest.approx(expected.item(), abs=1e-7)


def test_no_sample_has_no_error():
    assert adaptive_calibration_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).isnan()
    assert expected_calibration_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).isnan()
    assert ExpectedCalibrationError().compute().isnan()
    with pytest.raises(ValueError, match="`n_bins` to be an integer of at least 1, but got 2.5"):
        ExpectedCalibrationError(n_bins=2.5)
    with pytest.raises(ValueError, match="`probabilities` to sum to 1"):
        ExpectedCalibrationError().update(torch.full((2, 3), 0.5), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="`n_bins` to be an integer of at least 1, but got 0"):
        adaptive_calibration_error(*drawn(), n_bins=0)
    with pytest.raises(ValueError, match="`n_bins` to be an integer of at least 1, but got 2.5"):
        AdaptiveCalibrationError(n_bins=2.5)
    with pytest.raises(ValueError, match="`probabilities` to sum to 1"):
        AdaptiveCalibrationError().update(torch.full((2, 3), 0.5), torch.tensor([0, 1]))


def predictions() -> tuple[Tensor, Tensor, Tensor]:
    """Samples `[K, N, C]`, their mean and classes."""
    generator = torch.Generator().manual_seed(0)
    samples = (2 * torch.randn(4, 101, 5, generator=generator, dtype=torch.float64)).softmax(-1)
    return samples, samples.mean(0), torch.arange(101) % 5


def expected_of_all() -> dict[str, float]:
    samples, mean, targets = predictions()
    divergences = [entropy(sample, mean.numpy(), axis=-1) for sample in samples.numpy()]
    return {
        "calibration": by_hand(mean, targets, 7),
        "equal_width": equal_width_by_hand(mean, targets, 7),
        "entropy": float(entropy(mean.numpy(), axis=-1).mean()),
        "information": float(np.mean(divergences)),
    }


def update_all(metrics: dict[str, Any], part: slice | Tensor) -> None:
    samples, mean, targets = predictions()
    for name in ("calibration", "equal_width"):
        metrics[name].update(mean[part], targets[part])
    metrics["entropy"].update(mean[part])
    metrics["information"].update(samples[:, part])


def new_metrics() -> dict[str, Any]:
    return {
        "calibration": AdaptiveCalibrationError(n_bins=7),
        "equal_width": ExpectedCalibrationError(n_bins=7),
        "entropy": PredictiveEntropy(),
        "information": MutualInformation(),
    }


def test_batches_of_unequal_size_give_the_scores_of_all_samples():
    metrics = new_metrics()
    for part in torch.arange(101).split([60, 40, 1]):
        update_all(metrics, part)
    first = new_metrics()
    update_all(first, slice(60))
    for name, value in expected_of_all().items():
        assert metrics[name].compute().item() == pytest.approx(value, abs=1e-12), name
        assert first[name].compute().item() != pytest.approx(value, abs=1e-4), name
        metrics[name].reset()
    update_all(metrics, slice(60))
    for name, metric in metrics.items():
        assert metric.compute() == first[name].compute()


def _on_one_process(rank: int) -> dict[str, Tensor]:
    metrics = new_metrics()
    update_all(metrics, slice(0, 70) if rank == 0 else slice(70, 101))
    return {name: metric.compute() for name, metric in metrics.items()}


def test_two_processes_with_unequal_shares_get_the_scores_of_all_samples(tmp_path: Path):
    for found in on_two_processes(_on_one_process, tmp_path):
        for name, value in expected_of_all().items():
            assert found[name].item() == pytest.approx(value, abs=1e-12), name


def test_sums_stay_wide_when_a_module_that_holds_them_is_cast():
    held = torch.nn.ModuleList([PredictiveEntropy()]).to(torch.bfloat16)
    samples = torch.full((3, 2), 0.5, dtype=torch.bfloat16)
    for _ in range(1000):
        held[0].update(samples)
    assert held[0].compute().item() == pytest.approx(np.log(2), abs=1e-6)


def test_the_expected_error_stays_wide_when_a_module_that_holds_it_is_cast():
    held = torch.nn.ModuleList([ExpectedCalibrationError()]).to(torch.bfloat16)
    held[0].set_dtype(torch.float16)
    probabilities, targets = torch.tensor([[0.75, 0.25]]).expand(3, 2), torch.tensor([0, 0, 1])
    for _ in range(1000):
        held[0].update(probabilities, targets)
    assert held[0].compute().item() == pytest.approx(0.75 - 2 / 3, abs=1e-12)
    held.double()
    assert held[0].correct.dtype == held[0].count.dtype == torch.int64


def test_entropies_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"`probabilities` to be of shape \(N, C\), but got \(2, 3, 4\)"):
        PredictiveEntropy().update(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"`samples` to be of shape \(K, N, C\), but got \(3, 4\)"):
        MutualInformation().update(torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(AdaptiveCalibrationError, by_hand), (ExpectedCalibrationError, equal_width_by_hand)],
)
def test_they_live_in_a_collection_and_are_copied(kind: type[Metric], expected: Callable[..., float]):
    _, mean, targets = predictions()
    collection = MetricCollection({"a": kind(n_bins=7), "b": kind(n_bins=3)})
    collection.update(mean, targets)
    found = copy.deepcopy(collection).compute()
    assert found["a"].item() == pytest.approx(expected(mean, targets, 7), abs=1e-12)
    assert found["b"].item() == pytest.approx(expected(mean, targets, 3), abs=1e-12)
    assert found["a"] != found["b"]
