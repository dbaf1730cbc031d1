"""Out-of-distribution detection and generalized risk against enumeration, torchmetrics and scipy; and bad inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from lightning_snn.metrics import (
    AreaUnderGeneralizedRiskCoverage,
    OutOfDistributionAUPR,
    OutOfDistributionFPR,
)
from lightning_snn.metrics.functional import (
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    ood_aupr,
    ood_auroc,
    ood_fpr,
)

POSITIVE = ("out", "in")


def drawn(levels: int, inside: int = 90, outside: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Uncertainties of two groups that overlap; few levels give ties."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(levels, (inside,), generator=generator).double() / levels
    high = torch.randint(levels, (outside,), generator=generator).double() / levels
    return low, high.sqrt()


def by_thresholds(inside: Tensor, outside: Tensor, positive: str) -> list[tuple[float, float, float]]:
    """Return recall, false positive rate and precision at each threshold, by counting."""
    sign = 1 if positive == "out" else -1
    found, other = (sign * outside, sign * inside) if positive == "out" else (sign * inside, sign * outside)
    rows = []
    for threshold in sorted({*found.tolist(), *other.tolist()}, reverse=True):
        true = sum(value >= threshold for value in found.tolist())
        false = sum(value >= threshold for value in other.tolist())
        rows.append((true / len(found), false / len(other), true / (true + false)))
    return rows


@pytest.mark.parametrize("positive", POSITIVE)
@pytest.mark.parametrize("levels", [4, 10**6])
@pytest.mark.parametrize("recall", [0.05, 0.5, 0.95, 0.999])
def test_false_positive_rate_is_that_of_the_first_threshold_that_reaches_the_recall(levels, recall, positive):
    groups = drawn(levels)
    expected = next(false for true, false, _ in by_thresholds(*groups, positive) if true >= recall)
    assert ood_fpr(*groups, recall, positive).item() == expected


@pytest.mark.parametrize("positive", POSITIVE)
@pytest.mark.parametrize("levels", [4, 10**6])
def test_average_precision_is_that_by_counting_and_of_torchmetrics(levels, positive):
    inside, outside = drawn(levels)
    area, before = 0.0, 0.0
    for recall, _, precision in by_thresholds(inside, outside, positive):
        area, before = area + (recall - before) * precision, recall
    found = ood_aupr(inside, outside, positive).item()
    assert found == pytest.approx(area, rel=1e-12)
    scores = torch.cat([inside, outside]) if positive == "out" else 1 - torch.cat([inside, outside])
    labels = (torch.arange(150) >= 90).int() if positive == "out" else (torch.arange(150) < 90).int()
    assert found == pytest.approx(binary_average_precision(scores, labels).item(), abs=1e-6)


def test_the_two_directions_are_different_numbers_and_swap_with_the_groups():
    inside, outside = drawn(10**6)
    assert ood_fpr(inside, outside) == ood_fpr(-outside, -inside, positive="in")
    assert ood_aupr(inside, outside) == ood_aupr(-outside, -inside, "in")
    assert abs(ood_fpr(inside, outside) - ood_fpr(inside, outside, positive="in")) > 0.01
    assert abs(ood_aupr(inside, outside) - ood_aupr(inside, outside, "in")) > 0.01


def test_detection_spans_from_perfect_over_ties_to_none():
    low, high = torch.rand(50), 2 + torch.rand(60)
    for positive in POSITIVE:
        assert (ood_fpr(low, high, positive=positive), ood_aupr(low, high, positive)) == (0, 1)
        assert ood_fpr(high, low, positive=positive) == 1
        same = torch.zeros(50), torch.zeros(60)
        assert ood_fpr(*same, positive=positive) == 1
        share = 60 / 110 if positive == "out" else 50 / 110
        assert ood_aupr(*same, positive).item() == pytest.approx(share, rel=1e-15)


def test_one_input_of_each_kind_and_infinite_uncertainties_are_ranked():
    one, infinite = torch.tensor([0.5]), torch.tensor([math.inf])
    for positive in POSITIVE:
        assert (ood_fpr(one, infinite, positive=positive), ood_aupr(one, infinite, positive)) == (0, 1)
        assert (ood_fpr(infinite, one, positive=positive), ood_aupr(infinite, one, positive)) == (1, 0.5)


@pytest.mark.parametrize("number", [20, 40, 60, 100, 140, 1000])
def test_a_recall_that_is_reached_exactly_needs_no_further_input(number):
    """0.95 of these numbers is an integer, whichever way the product rounds."""
    outside, inside = torch.arange(number).double(), torch.arange(number).double() - 0.5
    missed = number // 20
    assert ood_fpr(inside, outside).item() == (number - missed - 1) / number


def test_the_order_dtype_and_scale_of_the_inputs_do_not_matter():
    inside, outside = drawn(5)
    shuffled = inside[torch.randperm(90)], outside[torch.randperm(60)]
    for positive in POSITIVE:
        assert ood_fpr(*shuffled, positive=positive) == ood_fpr(inside, outside, positive=positive)
        torch.testing.assert_close(
            ood_aupr(*shuffled, positive), ood_aupr(inside, outside, positive), rtol=1e-14, atol=0
        )
        scaled = inside.mul(30).exp(), outside.mul(30).exp()
        assert ood_aupr(*scaled, positive) == ood_aupr(inside, outside, positive)
        integers = (inside * 1000).round().int(), (outside * 1000).round().int()
        assert ood_fpr(*integers, positive=positive) == ood_fpr(inside, outside, positive=positive)
        assert ood_aupr(inside.float(), outside, positive).dtype == torch.float64


@pytest.mark.parametrize("bad", [torch.rand(0), torch.rand(2, 2), torch.tensor([math.nan]), [0.1]])
@pytest.mark.parametrize("score", [ood_fpr, ood_aupr])
def test_detection_refuses_what_it_cannot_rank(score, bad):
    for name, pair in (("uncertainty_in", (bad, torch.rand(3))), ("uncertainty_out", (torch.rand(3), bad))):
        with pytest.raises(ValueError, match=f"Expected argument `{name}` to"):
            score(*pair)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: OutOfDistributionFPR(recall=1), "recall"),
        (lambda: OutOfDistributionFPR(recall=95), "recall"),
        (lambda: OutOfDistributionFPR(positive="both"), "positive"),
        (lambda: OutOfDistributionAUPR(positive=1), "positive"),
        (lambda: ood_fpr(torch.rand(2), torch.rand(2), recall=0), "recall"),
        (lambda: ood_aupr(torch.rand(2), torch.rand(2), "outside"), "positive"),
    ],
)
def test_arguments_out_of_range_are_named(build, name):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be"):
        build()


# generalized risk


def ranked(number: int, levels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    uncertainty = torch.randint(levels, (number,), generator=generator).double() / levels
    return uncertainty, torch.rand(number, generator=generator) < uncertainty


def test_generalized_risk_is_integrated_from_no_to_all_answers():
    uncertainty, errors = ranked(57, levels=10**6)
    wrong = errors.numpy()[np.argsort(uncertainty.numpy())]
    share = np.concatenate([[0], np.cumsum(wrong)]) / 57
    expected = np.trapezoid(share, np.arange(58) / 57)
    assert area_under_generalized_risk_coverage(uncertainty, errors).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("levels", [5, 10**6])
def test_generalized_risk_follows_from_accuracy_and_the_detection_of_errors(levels):
    uncertainty, errors = ranked(400, levels)
    right = 1 - errors.double().mean().item()
    wrong_ones, right_ones = uncertainty[errors].numpy(), uncertainty[~errors].numpy()
    detection = mannwhitneyu(wrong_ones, right_ones).statistic / (len(wrong_ones) * len(right_ones))
    expected = (1 - detection) * right * (1 - right) + (1 - right) ** 2 / 2
    found = area_under_generalized_risk_coverage(uncertainty, errors).item()
    assert found == pytest.approx(expected, rel=1e-12)
    assert abs(found - area_under_risk_coverage(uncertainty, errors).item()) > 0.01, "the AURC is another number"


def test_generalized_risk_of_special_cases():
    constant = torch.zeros(8)
    wrong = torch.arange(8) < 2
    assert area_under_generalized_risk_coverage(constant, wrong).item() == pytest.approx(2 / 8 / 2)
    assert area_under_generalized_risk_coverage(torch.ones(1), torch.tensor([True])).item() == 0.5
    assert area_under_generalized_risk_coverage(torch.rand(9), torch.zeros(9)).item() == 0
    with pytest.raises(ValueError, match="`uncertainty` .* at least 1"):
        area_under_generalized_risk_coverage(torch.rand(0), torch.rand(0))
    with pytest.raises(ValueError, match="`errors` .* smallest value -1"):
        area_under_generalized_risk_coverage(torch.rand(2), torch.tensor([0.0, -1.0]))


# classes


def test_the_classes_score_all_batches_together():
    uncertainty, wrong = ranked(120, levels=11)
    groups = uncertainty[~wrong], uncertainty[wrong]
    metrics = {
        AreaUnderGeneralizedRiskCoverage(): area_under_generalized_risk_coverage(uncertainty, wrong),
        **{OutOfDistributionFPR(0.8, each): ood_fpr(*groups, 0.8, each) for each in POSITIVE},
        **{OutOfDistributionAUPR(each): ood_aupr(*groups, each) for each in POSITIVE},
    }
    for metric, expected in metrics.items():
        for batch in torch.arange(120).split(50):
            metric.update(uncertainty[batch], wrong[batch])
        torch.testing.assert_close(metric.compute(), expected, rtol=1e-14, atol=0)


def test_a_missing_kind_of_input_is_named_by_the_classes():
    for metric in (OutOfDistributionFPR(), OutOfDistributionAUPR()):
        metric.update(torch.rand(3), torch.ones(3).bool())
        with pytest.raises(ValueError, match="`uncertainty_in` .* N of at least 1"):
            metric.compute()
        with pytest.raises(ValueError, match="`uncertainty` and `outside` to have the same shape"):
            metric.update(torch.rand(3), torch.ones(2).bool())


def test_the_scores_of_groups_that_do_not_differ_are_those_of_chance():
    """Negative control: the same distribution has no detection."""
    inside, outside = torch.rand(4000, dtype=torch.float64), torch.rand(4000, dtype=torch.float64)
    assert ood_auroc(inside, outside).item() == pytest.approx(0.5, abs=0.04)
    assert ood_fpr(inside, outside).item() == pytest.approx(0.95, abs=0.02)
    assert ood_aupr(inside, outside).item() == pytest.approx(0.5, abs=0.04)
