"""Scores of uncertainty against independent references: scipy, torchmetrics, plain loops; and what they refuse."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy, mannwhitneyu
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

import lightning_snn.functional.entropy as entropy_module
from lightning_snn.metrics import AreaUnderRiskCoverage, OutOfDistributionAUROC
from lightning_snn.metrics import uncertainty as uncertainty_module
from lightning_snn.metrics.functional import (
    area_under_risk_coverage,
    expected_entropy,
    mutual_information,
    ood_auroc,
    predictive_entropy,
    risk_coverage,
)
from lightning_snn.metrics.functional import calibration as calibration_module
from lightning_snn.metrics.functional import ranking as ranking_module


def drawn(*shape: int, seed: int = 0, sharpness: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(-1)


def ranked(number: int, levels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Uncertainties with ties, and errors that grow with them."""
    generator = torch.Generator().manual_seed(seed)
    uncertainty = torch.randint(levels, (number,), generator=generator).double() / levels
    return uncertainty, torch.rand(number, generator=generator) < uncertainty


# entropies


@pytest.mark.parametrize("shape", [(5,), (7, 5), (3, 7, 5)])
def test_predictive_entropy_is_scipys(shape):
    probabilities = drawn(*shape)
    expected = torch.as_tensor(entropy(probabilities.numpy(), axis=-1))
    torch.testing.assert_close(predictive_entropy(probabilities), expected, rtol=1e-13, atol=1e-13)


def test_zero_probabilities_have_no_entropy_and_give_no_nan():
    assert predictive_entropy(torch.tensor([[1.0, 0.0, 0.0]])).tolist() == [0.0]
    assert predictive_entropy(torch.tensor([0.5, 0.5, 0.0])).item() == pytest.approx(math.log(2))
    assert mutual_information(torch.eye(3)[:, None]).item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("shape", [(16, 9, 5), (4, 6, 9, 5)])
def test_mutual_information_is_the_mean_divergence_of_the_samples_from_their_mean(shape):
    samples = drawn(*shape)
    mean = samples.numpy().mean(0)
    divergences = [entropy(sample, mean, axis=-1) for sample in samples.numpy()]
    expected = torch.as_tensor(np.mean(divergences, axis=0))
    torch.testing.assert_close(mutual_information(samples), expected, rtol=1e-12, atol=1e-13)
    assert expected.min() > 0.01


def test_the_two_parts_of_the_uncertainty_add_up():
    samples = drawn(8, 20, 4)
    total = predictive_entropy(samples.mean(0))
    torch.testing.assert_close(expected_entropy(samples) + mutual_information(samples), total, rtol=1e-13, atol=0)


def test_mutual_information_is_zero_for_samples_that_agree_and_not_for_others():
    sample = drawn(1, 20, 4)
    assert mutual_information(sample).tolist() == [0] * 20
    assert mutual_information(sample.expand(4, -1, -1)).abs().max() < 1e-14
    assert mutual_information(drawn(2, 20, 4)).min() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_takes_mutual_information_at_most_a_millionth_below_zero(dtype):
    base = torch.randn(2000, 10, dtype=dtype) * 5
    samples = (base + 1e-5 * torch.randn(16, 2000, 10, dtype=dtype)).softmax(-1)
    assert mutual_information(samples).min() >= -1e-6


def test_narrow_probabilities_are_widened_before_entropies_are_summed():
    samples = drawn(8, 50, 10).bfloat16()
    assert predictive_entropy(samples[0]).dtype == torch.float32
    information = mutual_information(samples)
    assert information.dtype == torch.float32
    torch.testing.assert_close(information, mutual_information(samples.double()).float(), rtol=1e-4, atol=1e-6)


def test_samples_without_an_axis_of_samples_are_refused():
    for quantity in (expected_entropy, mutual_information):
        for shape in ((5,), (0, 3, 5)):
            with pytest.raises(ValueError, match=r"Expected argument `samples` to be of shape \[K, ..., C\]"):
                quantity(torch.zeros(shape))


# risk and coverage


def test_risk_is_the_mean_error_of_the_samples_answered():
    generator = torch.Generator().manual_seed(1)
    uncertainty = torch.rand(50, generator=generator, dtype=torch.float64)
    errors = torch.rand(50, generator=generator, dtype=torch.float64)
    coverage, risk = risk_coverage(uncertainty, errors)
    for k in range(1, 51):
        threshold = sorted(uncertainty.tolist())[k - 1]
        assert coverage[k - 1].item() == k / 50
        assert risk[k - 1].item() == pytest.approx(errors[uncertainty <= threshold].mean().item(), rel=1e-12)


def test_ties_are_broken_as_at_random():
    uncertainty = torch.tensor([0.2, 0.1, 0.2, 0.2, 0.7])
    errors = torch.tensor([1.0, 0.0, 0.0, 3.0, 1.0], dtype=torch.float64)
    risks = []
    for order in itertools.permutations([0, 2, 3]):
        errors_in_order = errors[[1, *order, 4]]
        risks.append(errors_in_order.cumsum(0) / torch.arange(1, 6))
    torch.testing.assert_close(
        risk_coverage(uncertainty, errors)[1], torch.stack(risks).mean(0), rtol=1e-14, atol=1e-15
    )


def test_the_order_of_the_samples_never_matters():
    uncertainty, errors = ranked(200, levels=7)
    order = torch.randperm(200)
    for one, other in zip(
        risk_coverage(uncertainty, errors), risk_coverage(uncertainty[order], errors[order]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=0)


def test_the_area_falls_when_certainty_tells_right_from_wrong():
    uncertainty, errors = ranked(2000, levels=500)
    useful = area_under_risk_coverage(uncertainty, errors).item()
    rate = errors.double().mean().item()
    assert area_under_risk_coverage(torch.zeros(2000), errors).item() == pytest.approx(rate)
    assert useful < 0.75 * rate < rate < area_under_risk_coverage(-uncertainty, errors).item()


def test_the_area_of_errors_that_are_all_foreseen_has_a_closed_form():
    errors = ranked(2000, levels=500)[1]
    right = 2000 - int(errors.sum())
    expected = sum(max(0, k - right) / k for k in range(1, 2001)) / 2000
    assert area_under_risk_coverage(errors.double(), errors).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("uncertainty", "errors", "message"),
    [
        (torch.rand(3, 2), torch.rand(3), r"`uncertainty` to be a tensor of shape \(N,\) .* \(3, 2\)"),
        (torch.rand(0), torch.rand(0), "`uncertainty` .* N of at least 1"),
        (torch.tensor([0.1, math.nan]), torch.rand(2), "`uncertainty` to hold numbers, but got 1 nan"),
        (torch.rand(3), torch.rand(2), "`errors` to hold one number of at least 0 for each of the 3"),
        (torch.rand(2), torch.tensor([0.5, -1.0]), "`errors` .* smallest value -1"),
        ([0.1, 0.2], torch.rand(2), "`uncertainty` .* but got list"),
    ],
)
def test_risk_refuses_what_it_cannot_rank(uncertainty, errors, message):
    with pytest.raises(ValueError, match=message):
        risk_coverage(uncertainty, errors)


# out of distribution


@pytest.mark.parametrize("levels", [5, 10**6])
def test_ood_auroc_is_that_of_torchmetrics_and_the_rank_statistic_of_scipy(levels):
    inside, outside = ranked(300, levels, seed=1)[0], (ranked(170, levels, seed=2)[0] * 1.2).clamp(max=1)
    outside = torch.where(torch.arange(170) < 60, inside[:170], outside)  # ties between the two
    found = ood_auroc(inside, outside).item()
    scores = torch.cat([inside, outside])
    labels = torch.cat([torch.zeros(300), torch.ones(170)]).int()
    assert found == pytest.approx(binary_auroc(scores, labels).item(), rel=1e-5)
    assert found == pytest.approx(mannwhitneyu(outside.numpy(), inside.numpy()).statistic / (300 * 170), rel=1e-12)
    assert 0.5 < found < 0.9


def test_ood_auroc_is_the_share_of_pairs_in_the_right_order():
    inside, outside = torch.tensor([0.0, 1.0, 1.0, 5.0]), torch.tensor([1.0, 7.0, 0.5])
    pairs = [(1.0 if o > i else 0.5 if o == i else 0.0) for o in outside.tolist() for i in inside.tolist()]
    assert ood_auroc(inside, outside).item() == sum(pairs) / 12
    assert ood_auroc(outside, inside).item() == (12 - sum(pairs)) / 12


def test_ood_auroc_spans_from_zero_over_chance_to_one():
    low, high = torch.rand(50), 2 + torch.rand(60)
    assert ood_auroc(low, high).item() == 1
    assert ood_auroc(high, low).item() == 0
    assert ood_auroc(torch.zeros(50), torch.zeros(60)).item() == 0.5
    assert ood_auroc(low, torch.full((60,), math.inf)).item() == 1


def test_only_the_ranks_count_for_ood_auroc():
    inside, outside = torch.rand(100).double(), torch.rand(80).double() + 0.3
    assert ood_auroc(inside, outside).item() == ood_auroc(inside.mul(30).exp(), outside.mul(30).exp()).item()


@pytest.mark.parametrize("bad", [torch.rand(0), torch.rand(2, 2), torch.tensor([math.nan]), [0.1]])
def test_ood_auroc_refuses_what_it_cannot_rank(bad):
    for name, pair in (("uncertainty_in", (bad, torch.rand(3))), ("uncertainty_out", (torch.rand(3), bad))):
        with pytest.raises(ValueError, match=f"Expected argument `{name}` to"):
            ood_auroc(*pair)


# classes


def test_the_classes_score_all_batches_together():
    uncertainty, wrong = ranked(120, levels=11)
    risk, auroc = AreaUnderRiskCoverage(), OutOfDistributionAUROC()
    for batch in torch.arange(120).split(50):
        risk.update(uncertainty[batch], wrong[batch])
        auroc.update(uncertainty[batch], wrong[batch])
    assert risk.compute() == area_under_risk_coverage(uncertainty, wrong)
    assert auroc.compute() == ood_auroc(uncertainty[~wrong], uncertainty[wrong])
    batches = [area_under_risk_coverage(uncertainty[b], wrong[b]) for b in torch.arange(120).split(50)]
    assert risk.compute() != torch.stack(batches).mean()
    risk.reset()
    risk.update(uncertainty[:5], wrong[:5])
    assert risk.compute() == area_under_risk_coverage(uncertainty[:5], wrong[:5])


def test_the_classes_refuse_batches_of_the_wrong_kind_and_no_batch():
    with pytest.raises(ValueError, match="`uncertainty` and `errors` to have the same shape"):
        AreaUnderRiskCoverage().update(torch.rand(3), torch.rand(3, 1))
    with pytest.raises(ValueError, match=r"`outside` to be of dtype torch.bool, but got torch.float32"):
        OutOfDistributionAUROC().update(torch.rand(3), torch.rand(3))
    for metric in (AreaUnderRiskCoverage(), OutOfDistributionAUROC()):
        with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(ValueError, match="at least 1"):
            metric.compute()


@pytest.mark.parametrize("module", [entropy_module, calibration_module, ranking_module, uncertainty_module])
def test_the_examples_of_the_docstrings_hold(module):
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried > 0
