"""The functional metrics against independent references, and what they refuse."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from scipy.special import xlogy
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_snn.metrics.functional import (
    brier_score,
    negative_log_likelihood,
    reliability_bins,
    scores,
    within_pair_accuracy,
)

PAIRS = [(1, 2), (5, 3)]


def samples(number: int = 300, classes: int = 7, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    probabilities = (sharpness * torch.randn(number, classes, generator=generator)).softmax(dim=1)
    return probabilities, torch.randint(classes, (number,), generator=generator)


def expected_calibration_error(probabilities: Tensor, targets: Tensor, n_bins: int) -> float:
    confidence, accuracy, count = reliability_bins(probabilities, targets, n_bins)
    return float((count * (accuracy - confidence).abs()).nansum() / count.sum())


def test_negative_log_likelihood_equals_scipys_cross_entropy_with_the_one_hot_truth():
    probabilities, targets = samples()
    truth = np.eye(7)[targets.numpy()]
    reference = -xlogy(truth, probabilities.double().numpy()).sum(axis=1)
    torch.testing.assert_close(
        negative_log_likelihood(probabilities, targets, reduction="none"),
        torch.tensor(reference),
        rtol=1e-12,
        atol=1e-12,
    )
    assert negative_log_likelihood(probabilities, targets).item() == pytest.approx(reference.mean(), rel=1e-12)
    assert negative_log_likelihood(probabilities, targets.roll(1)).item() != pytest.approx(reference.mean(), rel=1e-3)


def test_negative_log_likelihood_of_a_uniform_prediction_is_the_log_of_the_number_of_classes():
    assert negative_log_likelihood(torch.full((4, 8), 1 / 8), torch.arange(4)).item() == pytest.approx(math.log(8))


def test_an_outcome_that_was_called_impossible_makes_the_negative_log_likelihood_infinite():
    probabilities = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert negative_log_likelihood(probabilities, torch.tensor([1, 0])).item() == math.inf
    assert negative_log_likelihood(probabilities, torch.tensor([0, 0])).item() == pytest.approx(math.log(2) / 2)


def test_brier_score_equals_a_loop_over_samples_and_classes():
    probabilities, targets = samples()
    total = 0.0
    for row, target in zip(probabilities.tolist(), targets.tolist(), strict=True):
        for label, probability in enumerate(row):
            total += (probability - (1.0 if label == target else 0.0)) ** 2
    assert brier_score(probabilities, targets).item() == pytest.approx(total / len(targets), rel=1e-12)


def test_brier_score_runs_from_zero_for_certain_and_right_to_two_for_certain_and_wrong():
    certain = torch.eye(3)
    assert brier_score(certain, torch.tensor([0, 1, 2])).item() == 0.0
    assert brier_score(certain, torch.tensor([1, 2, 0])).item() == 2.0


def test_within_pair_accuracy_equals_a_loop_over_samples_and_pairs():
    probabilities, targets = samples()
    correct = []
    for row, target in zip(probabilities.tolist(), targets.tolist(), strict=True):
        for pair in PAIRS:
            if target in pair:
                correct.append(max(pair, key=lambda label: row[label]) == target)
    assert 0 < len(correct) < len(targets)
    assert within_pair_accuracy(probabilities, targets, PAIRS).item() == pytest.approx(np.mean(correct), rel=1e-12)
    each = within_pair_accuracy(probabilities, targets, PAIRS, reduction="none")
    assert each.tolist() == [float(value) for value in correct]


def test_within_pair_accuracy_ignores_the_classes_outside_of_the_pair():
    probabilities = torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.1, 0.6]])
    targets = torch.tensor([1, 0])
    assert probabilities.argmax(dim=1).eq(targets).sum() == 0
    assert within_pair_accuracy(probabilities, targets, [(0, 1)]).item() == 1.0


def test_a_model_that_cannot_tell_a_pair_apart_is_right_half_of_the_time():
    probabilities = torch.full((10, 3), 1 / 3)
    targets = torch.tensor([0, 1] * 5)
    assert within_pair_accuracy(probabilities, targets, [(0, 1)]).item() == 0.5
    each = within_pair_accuracy(probabilities, targets, [(1, 0)], reduction="none")
    assert each.tolist() == [0.0, 1.0] * 5


def test_within_pair_accuracy_without_a_sample_of_a_pair_is_nan():
    probabilities, _ = samples(5)
    assert within_pair_accuracy(probabilities, torch.zeros(5, dtype=torch.long), PAIRS).isnan()


@pytest.mark.parametrize("n_bins", [1, 2, 10, 15, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reliability_bins_give_the_calibration_error_of_torchmetrics(n_bins, dtype):
    probabilities, targets = samples(1000)
    probabilities = probabilities.to(dtype)
    assert probabilities.float().max() < 1
    reference = multiclass_calibration_error(probabilities, targets, num_classes=7, n_bins=n_bins, norm="l1").item()
    assert reference > 0.1
    assert expected_calibration_error(probabilities, targets, n_bins) == pytest.approx(reference, abs=1e-6)


def test_reliability_bins_give_the_calibration_error_of_torchmetrics_for_confidences_on_the_edges():
    confidence = torch.arange(10, 20).repeat_interleave(3) / 20
    probabilities = torch.stack([confidence, 1 - confidence], dim=1)
    targets = torch.tensor([0, 1, 0] * 10)
    for n_bins in (5, 10, 20):
        reference = multiclass_calibration_error(probabilities, targets, num_classes=2, n_bins=n_bins, norm="l1").item()
        assert expected_calibration_error(probabilities, targets, n_bins) == pytest.approx(reference, abs=1e-6)


def test_reliability_bins_equal_a_loop_over_bins():
    probabilities, targets = samples(400)
    table, truth = probabilities.double().numpy(), targets.numpy()
    highest, right = table.max(axis=1), table.argmax(axis=1) == truth
    confidence, accuracy, count = reliability_bins(probabilities, targets, 8)
    for b in range(8):
        inside = (highest >= b / 8) & (highest < (b + 1) / 8)
        assert count[b].item() == inside.sum()
        if inside.any():
            assert confidence[b].item() == pytest.approx(highest[inside].mean(), rel=1e-12)
            assert accuracy[b].item() == pytest.approx(right[inside].mean(), rel=1e-12)
        else:
            assert confidence[b].isnan()
            assert accuracy[b].isnan()
    assert count[0] == 0, "the largest of 7 probabilities is above 1/8"


def test_full_confidence_belongs_to_the_last_bin_and_can_only_lower_the_error_of_torchmetrics():
    probabilities = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.95, 0.05], [0.95, 0.05]])
    targets = torch.tensor([0, 1, 0, 0])
    _, _, count = reliability_bins(probabilities, targets, 10)
    assert count.tolist() == [0] * 9 + [4]
    ours = expected_calibration_error(probabilities, targets, 10)
    assert ours == pytest.approx(abs(3 / 4 - 3.9 / 4))
    theirs = multiclass_calibration_error(probabilities, targets, num_classes=2, n_bins=10, norm="l1").item()
    assert theirs == pytest.approx((2 * 0.5 + 2 * 0.05) / 4)
    assert ours < theirs


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "metric",
    [
        negative_log_likelihood,
        brier_score,
        lambda p, y: within_pair_accuracy(p, y, PAIRS),
        lambda p, y: reliability_bins(p, y)[0],
    ],
    ids=["negative_log_likelihood", "brier_score", "within_pair_accuracy", "reliability_bins"],
)
def test_the_score_of_another_dtype_is_the_float64_score_of_the_same_numbers(metric, dtype):
    probabilities, targets = samples()
    probabilities = probabilities.to(dtype)
    result = metric(probabilities, targets)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, metric(probabilities.double(), targets), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("metric", [negative_log_likelihood, brier_score])
def test_the_gradient_of_a_differentiable_score_is_right(metric):
    probabilities = samples(6)[0].double().requires_grad_()
    targets = torch.arange(6)
    assert torch.autograd.gradcheck(lambda p: metric(p, targets), probabilities, eps=1e-7)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_targets_may_have_any_integer_dtype(dtype):
    probabilities, targets = samples()
    for metric in (negative_log_likelihood, brier_score, lambda p, y: within_pair_accuracy(p, y, PAIRS)):
        assert metric(probabilities, targets.to(dtype)) == metric(probabilities, targets)


GOOD = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        (GOOD.log(), LABELS, r"`probabilities` to hold values within \[0, 1\], but got values from -1.38629 to"),
        (GOOD * math.nan, LABELS, r"`probabilities` to hold values within \[0, 1\], but got values from nan"),
        (torch.tensor([[0.2, 0.9], [0.5, 0.5]]), LABELS, "`probabilities` to sum to 1 .* differs from 1 by 0.1"),
        (GOOD[0], LABELS, r"`probabilities` to be a floating-point tensor of shape \(N, C\), but got .* shape \(2,\)"),
        (GOOD.long(), LABELS, "`probabilities` to be a floating-point tensor .* dtype torch.int64"),
        (GOOD.tolist(), LABELS, "`probabilities` to be a floating-point tensor .* but got list"),
        (GOOD[:, :1], LABELS, "`probabilities` to have at least 2 columns, but got 1"),
        (GOOD, torch.tensor([0, 2]), "`targets` to hold classes from 0 to 1, but got values from 0 to 2"),
        (GOOD, torch.tensor([-1, 0]), "`targets` to hold classes from 0 to 1, but got values from -1 to 0"),
        (GOOD, torch.tensor([0]), "`targets` to hold one class for each of the 2 rows of `probabilities`, but got 1"),
        (GOOD, LABELS.float(), r"`targets` to be an integer tensor of shape \(N,\), but got .* dtype torch.float32"),
        (GOOD, LABELS.bool(), r"`targets` to be an integer tensor of shape \(N,\), but got .* dtype torch.bool"),
        (GOOD, torch.eye(2).long(), r"`targets` to be an integer tensor of shape \(N,\), but got .* shape \(2, 2\)"),
    ],
)
@pytest.mark.parametrize(
    "metric",
    [negative_log_likelihood, brier_score, lambda p, y: within_pair_accuracy(p, y, [(0, 1)]), reliability_bins],
    ids=["negative_log_likelihood", "brier_score", "within_pair_accuracy", "reliability_bins"],
)
def test_what_is_no_prediction_is_refused_by_name(metric, probabilities, targets, message):
    with pytest.raises(ValueError, match="Expected argument " + message):
        metric(probabilities, targets)


@pytest.mark.parametrize(
    "pairs", [[], [(1, 1)], [(0, 1), (1, 2)], [(0, 1, 2)], [(-1, 0)], [(0.0, 1.0)], [0, 1], 3, ["ab"], [([0], [1])]]
)
def test_what_is_no_list_of_disjoint_pairs_is_refused(pairs):
    with pytest.raises(ValueError, match="Expected argument `pairs` to be disjoint pairs"):
        within_pair_accuracy(*samples(), pairs)


def test_a_pair_of_a_class_that_the_probabilities_lack_is_refused():
    with pytest.raises(ValueError, match="Expected argument `pairs` to name classes below 7"):
        within_pair_accuracy(*samples(), [(6, 7)])


@pytest.mark.parametrize("n_bins", [0, -3, 2.0, True, "15"])
def test_a_number_of_bins_that_is_no_positive_integer_is_refused(n_bins):
    with pytest.raises(ValueError, match="Expected argument `n_bins` to be an integer of at least 1, but got"):
        reliability_bins(*samples(), n_bins)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match=r"Expected argument `reduction` to be one of 'mean', 'none', but got 'sum'"):
        brier_score(*samples(), reduction="sum")


def test_the_examples_in_the_docstrings_are_right():
    result = doctest.testmod(scores)
    assert result.attempted >= 3
    assert result.failed == 0
