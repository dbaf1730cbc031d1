"""Conformal prediction sets against enumeration and scipy, their guarantee, and bad inputs."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.stats import betabinom
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_snn.metrics import ConformalThreshold, SetCoverage, SetSize
from lightning_snn.metrics.functional import (
    conformal_scores,
    conformal_threshold,
    coverage_interval,
    prediction_sets,
    set_coverage,
    set_size,
    true_class_scores,
)

SCORES = ("lac", "aps", "raps")
CLASSES = 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(number: int, seed: int = 0, sharpness: float = 2.0, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Probabilities of an overconfident predictor and the classes, which a shift makes more random."""
    generator = seeded(seed)
    logits = torch.randn(number, CLASSES, generator=generator, dtype=torch.float64)
    truth = ((1 - shift) * 1.5 * logits).softmax(1)
    return (sharpness * logits).softmax(1), torch.multinomial(truth, 1, generator=generator)[:, 0]


def scores_by_hand(row: list[float], score: str, u: float, penalty: float, free: int) -> list[float]:
    order = sorted(range(len(row)), key=lambda c: (-row[c], c))
    found = [0.0] * len(row)
    for rank, c in enumerate(order, start=1):
        adaptive = sum(row[j] for j in order[: rank - 1]) + u * row[c]
        found[c] = 1 - row[c] if score == "lac" else adaptive
        if score == "raps":
            found[c] += penalty * max(0, rank - free)
    return found


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("randomized", [False, True])
def test_scores_are_those_by_hand(score, randomized):
    probabilities, _ = drawn(20)
    probabilities[0] = 1 / CLASSES  # ties
    probabilities[1] = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0, 0.0])
    found = conformal_scores(probabilities, score, seeded(3) if randomized else None, penalty=0.2, free_classes=2)
    shares = torch.rand(20, generator=seeded(3), dtype=torch.float64).tolist() if randomized else [1.0] * 20
    for row, u, scores in zip(probabilities.tolist(), shares, found.tolist(), strict=True):
        assert scores == pytest.approx(scores_by_hand(row, score, u, 0.2, 2), abs=1e-14)


@pytest.mark.parametrize("score", SCORES)
def test_scores_after_each_time_step_share_their_random_numbers(score):
    steps = torch.stack([drawn(20, sharpness=sharpness)[0] for sharpness in (0.5, 2.0)])
    found = conformal_scores(steps, score, seeded(1))
    for step, scores in zip(steps, found, strict=True):
        torch.testing.assert_close(scores, conformal_scores(step, score, seeded(1)), rtol=0, atol=0)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.29, 0.3, 0.7])
@pytest.mark.parametrize("number", [1, 2, 9, 19, 99, 100])
def test_the_threshold_is_the_ordered_score_of_the_formula_without_rounding(number, alpha):
    scores = torch.rand(number, generator=seeded(number), dtype=torch.float64)
    rank = math.ceil((number + 1) * (1 - Fraction(str(alpha))))
    expected = sorted(scores.tolist())[rank - 1] if rank <= number else math.inf
    assert conformal_threshold(scores, alpha).item() == expected
    both = conformal_threshold(torch.stack([scores, 2 * scores]), alpha)
    assert both.tolist() == [expected, 2 * expected]


def test_the_threshold_is_not_the_plain_quantile():
    scores = torch.arange(1, 10).double()
    assert conformal_threshold(scores, 0.1).item() == 9 > torch.quantile(scores, 0.9)


def test_sets_are_the_classes_up_to_the_threshold():
    scores = torch.tensor([[0.1, 0.5, 0.9], [0.6, 0.7, 0.9]])
    sets = prediction_sets(scores, torch.tensor(0.5))
    assert sets.tolist() == [[True, True, False], [False, False, False]]
    assert prediction_sets(scores, math.inf).all()
    over_time = prediction_sets(torch.stack([scores, scores]), torch.tensor([0.5, 0.65]))
    assert over_time.sum(-1).tolist() == [[2, 0], [2, 1]]
    targets = torch.tensor([1, 0])
    assert set_coverage(over_time, targets).tolist() == [0.5, 1.0]
    assert set_size(over_time).tolist() == [1.0, 1.5]
    assert (set_coverage(sets, targets), set_size(sets)) == (0.5, 1.0)


@pytest.mark.parametrize("score", SCORES)
def test_coverage_of_exchangeable_data_is_the_chosen_one_and_of_other_data_is_not(score):
    """The coverage over splits is 1 - l / (n + 1) with l = floor((n + 1) alpha); the band is that of 30 splits."""
    alpha, calibration, test, splits = 0.13, 40, 40, 30
    found: dict[float, list[float]] = {0.0: [], 0.9: []}
    for seed in range(splits):
        generator = seeded(seed)
        held_out, targets = drawn(calibration, seed=2 * seed)
        scores = conformal_scores(held_out, score, generator)
        threshold = conformal_threshold(true_class_scores(scores, targets), alpha)
        for shift, coverages in found.items():
            probabilities, true = drawn(test, seed=2 * seed + 1, shift=shift)
            sets = prediction_sets(conformal_scores(probabilities, score, generator), threshold)
            coverages.append(set_coverage(sets, true).item())
    missed = math.floor((calibration + 1) * alpha)
    exact = betabinom(test, calibration + 1 - missed, missed)
    error = exact.std() / test / math.sqrt(splits)
    expected = exact.mean() / test
    assert expected == pytest.approx(1 - missed / (calibration + 1))
    assert abs(np.mean(found[0.0]) - expected) < 3 * error
    assert np.mean(found[0.9]) < expected - 10 * error, "calibration data of another distribution"
    low, high = coverage_interval(calibration, test, alpha, level=0.999)
    assert all(low <= coverage <= high for coverage in found[0.0])


def test_sets_without_random_numbers_cover_more():
    probabilities, targets = drawn(400)
    sizes = []
    for make in (lambda: None, seeded):
        scores = conformal_scores(probabilities, "aps", make())
        threshold = conformal_threshold(true_class_scores(scores, targets), 0.1)
        fresh, true = drawn(400, seed=1)
        sets = prediction_sets(conformal_scores(fresh, "aps", make()), threshold)
        assert set_coverage(sets, true) > 0.85
        sizes.append(set_size(sets).item())
    assert sizes[0] > sizes[1] + 0.1


def test_the_penalty_makes_the_largest_sets_smaller():
    probabilities, targets = drawn(400, sharpness=1.0)
    largest = {}
    for penalty in (0.0, 1.0):
        scores = conformal_scores(probabilities, "raps", seeded(), penalty, free_classes=2)
        threshold = conformal_threshold(true_class_scores(scores, targets), 0.3)
        largest[penalty] = prediction_sets(scores, threshold).sum(1).max()
    assert largest[1.0] < largest[0.0]
    adaptive = conformal_scores(probabilities, "aps", seeded())
    assert torch.equal(adaptive, conformal_scores(probabilities, "raps", seeded(), penalty=0.0))


@pytest.mark.parametrize(("calibration", "test", "alpha", "level"), [(1000, 1000, 0.1, 0.95), (37, 11, 0.29, 0.5)])
def test_the_interval_of_the_coverage_is_that_of_scipys_beta_binomial(calibration, test, alpha, level):
    missed = math.floor((calibration + 1) * alpha)
    exact = betabinom(test, calibration + 1 - missed, missed)
    expected = [exact.ppf((1 - level) / 2) / test, exact.ppf((1 + level) / 2) / test]
    assert list(coverage_interval(calibration, test, alpha, level)) == pytest.approx(expected, rel=1e-12)
    assert coverage_interval(calibration=8, test=5, alpha=0.1) == (1.0, 1.0)


# classes


@pytest.mark.parametrize("score", SCORES)
def test_the_classes_calibrate_and_score_all_batches_together(score):
    steps = torch.stack([drawn(70, sharpness=sharpness)[0] for sharpness in (0.5, 2.0)])
    targets = drawn(70)[1]
    threshold, coverage, size = ConformalThreshold(0.2, score), SetCoverage(steps=2), SetSize(steps=2)
    for part in torch.arange(70).split(32):
        threshold.update(steps[:, part], targets[part])
    limit = threshold.compute()
    scores = conformal_scores(steps, score)
    torch.testing.assert_close(limit, conformal_threshold(true_class_scores(scores, targets), 0.2), rtol=0, atol=0)
    assert limit.shape == (2,)
    sets = prediction_sets(scores, limit)
    for part in torch.arange(70).split(32):
        coverage.update(sets[:, part], targets[part])
        size.update(sets[:, part])
    torch.testing.assert_close(coverage.compute(), set_coverage(sets, targets), rtol=1e-15, atol=0)
    torch.testing.assert_close(size.compute(), set_size(sets), rtol=1e-15, atol=0)
    copied = pickle.loads(pickle.dumps(threshold))
    assert torch.equal(copied.compute(), limit)


def test_thresholds_in_a_collection_keep_scores_apart_that_begin_alike():
    metrics = MetricCollection(
        {"aps": ConformalThreshold(0.3, "aps"), "raps": ConformalThreshold(0.3, "raps", penalty=1.0, free_classes=1)}
    )
    sure = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    metrics.update(sure, torch.tensor([0, 1]))
    for _ in range(4):
        metrics.update(sure, torch.tensor([1, 0]))
    found = metrics.compute()
    assert found["raps"] == found["aps"] + 1


# bad inputs


def test_no_sample_has_no_threshold_and_no_coverage():
    empty, classes = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    assert conformal_scores(empty, "aps", seeded()).shape == (0, 3)
    with pytest.raises(ValueError, match="`scores` to hold at least one score"):
        conformal_threshold(true_class_scores(conformal_scores(empty), classes))
    sets = torch.zeros(0, 3, dtype=torch.bool)
    assert math.isnan(set_coverage(sets, classes))
    assert math.isnan(set_size(sets))
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(ValueError, match="at least one"):
        ConformalThreshold().compute()


ROWS, LABELS = drawn(5)
SETS = torch.ones(5, CLASSES, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: conformal_scores(ROWS[0]), "probabilities"),
        (lambda: conformal_scores(ROWS * math.nan), "probabilities"),
        (lambda: conformal_scores(ROWS.log()), "probabilities"),
        (lambda: conformal_scores([[0.5, 0.5]]), "probabilities"),
        (lambda: conformal_scores(ROWS, "thr"), "score"),
        (lambda: conformal_scores(ROWS, "raps", penalty=-1), "penalty"),
        (lambda: conformal_scores(ROWS, "raps", penalty=math.nan), "penalty"),
        (lambda: conformal_scores(ROWS, "raps", free_classes=0.5), "free_classes"),
        (lambda: true_class_scores(ROWS, LABELS[:3]), "targets"),
        (lambda: true_class_scores(ROWS, LABELS - 6), "targets"),
        (lambda: true_class_scores(ROWS, LABELS.double()), "targets"),
        (lambda: true_class_scores(ROWS[0], LABELS), "scores"),
        (lambda: conformal_threshold(torch.tensor([0.1, math.nan])), "scores"),
        (lambda: conformal_threshold(torch.rand(2, 2, 2)), "scores"),
        (lambda: conformal_threshold(torch.rand(5), alpha=0), "alpha"),
        (lambda: conformal_threshold(torch.rand(5), alpha=10), "alpha"),
        (lambda: prediction_sets(ROWS, math.nan), "threshold"),
        (lambda: prediction_sets(ROWS, torch.rand(5)), "threshold"),
        (lambda: set_coverage(ROWS, LABELS), "sets"),
        (lambda: set_coverage(SETS, LABELS + 6), "targets"),
        (lambda: set_size(SETS[0]), "sets"),
        (lambda: SetSize().update(torch.stack([SETS, SETS])), "sets"),
        (lambda: SetSize(steps=3).update(torch.stack([SETS, SETS])), "sets"),
        (lambda: SetCoverage(steps=3).update(SETS, LABELS), "sets"),
        (lambda: SetCoverage(steps=0), "steps"),
        (lambda: ConformalThreshold(alpha=1), "alpha"),
        (lambda: ConformalThreshold(score="conformal"), "score"),
        (lambda: coverage_interval(0, 5), "calibration"),
        (lambda: coverage_interval(5, 0), "test"),
        (lambda: coverage_interval(5, 5, level=95), "level"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to"):
        call()
