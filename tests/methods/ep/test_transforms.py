"""Layers between neurons and weights, in both directions, against enumeration of all spikes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from lightning_snn.methods.ep.transforms import (
    AnySpike,
    AveragePool,
    Feedback,
    Reshape,
    Signal,
    Transform,
    transform_of,
)

POOLS = {
    "windows side by side": (nn.MaxPool2d(2), (2, 4)),
    "overlapping": (nn.MaxPool2d(2, stride=1), (3, 3)),
    "padded": (nn.MaxPool2d(2, padding=1), (2, 4)),
    "overlapping and padded": (nn.MaxPool2d(3, stride=2, padding=1), (3, 3)),
    "oblong": (nn.MaxPool2d((1, 3), stride=(1, 1), padding=(0, 1)), (2, 4)),
}
AVERAGES = {
    "windows side by side": (nn.AvgPool2d(2), (4, 6)),
    "overlapping": (nn.AvgPool2d(3, stride=1), (4, 5)),
    "padded": (nn.AvgPool2d((2, 3), stride=2, padding=1), (4, 5)),
    "all": (nn.AdaptiveAvgPool2d(1), (4, 5)),
}


def spikes(size: tuple[int, int]) -> Signal:
    p = torch.rand(2, 3, *size, dtype=torch.float64)
    return Signal(p, p * (1 - p))


def patterns(p: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every pattern of spikes of one channel `[H, W]`, with its probability."""
    for bits in product((0.0, 1.0), repeat=p.numel()):
        pattern = p.new_tensor(bits).view_as(p)
        yield pattern, torch.where(pattern > 0, p, 1 - p).prod()


def stage(module: nn.Module) -> Transform:
    made = transform_of(module)
    assert made is not None
    return made


@pytest.mark.parametrize("name", POOLS)
def test_a_window_spikes_as_often_as_the_largest_of_all_patterns(name):
    pool, size = POOLS[name]
    p = torch.rand(size, dtype=torch.float64)
    expected = sum(weight * pool(pattern[None])[0] for pattern, weight in patterns(p))
    signal = AnySpike(pool).forward(Signal(p[None, None], (p * (1 - p))[None, None]))
    torch.testing.assert_close(signal.mean[0, 0], expected)
    assert signal.variance is not None
    torch.testing.assert_close(signal.variance[0, 0], expected * (1 - expected))


@pytest.mark.parametrize("name", POOLS)
def test_messages_to_members_equal_the_sum_over_all_patterns_of_the_others(name):
    pool, size = POOLS[name]
    p = torch.rand(size, dtype=torch.float64)
    windows = pool(p[None])[0].shape
    log_odds = 3 * torch.randn(windows, dtype=torch.float64)
    # evidence of each window alone, given each value of each member
    given = torch.zeros(2, *windows, *size, dtype=torch.float64)
    for pattern, weight in patterns(p):
        evidence = torch.where(pool(pattern[None])[0] > 0, log_odds.exp(), 1.0)[..., None, None]
        for value in (0, 1):
            own = torch.where(pattern == value, weight / torch.where(pattern > 0, p, 1 - p), 0.0)
            given[value] += evidence * own
    expected = (given[1] / given[0]).log().sum((0, 1))
    signal = Signal(p[None, None], (p * (1 - p))[None, None])
    back = AnySpike(pool).backward(signal, Feedback(log_odds[None, None], torch.zeros(1, 1, *windows).double()))
    torch.testing.assert_close(back.score[0, 0], expected, rtol=1e-9, atol=1e-12)
    assert back.curvature.abs().max() == 0
    assert expected.abs().max() > 0.1


def test_a_window_is_asked_for_its_log_odds_at_its_own_probability():
    signal = spikes((4, 4))
    pool = AnySpike(nn.MaxPool2d(2))
    score, curvature = torch.randn(2, 3, 2, 2).double(), torch.rand(2, 3, 2, 2).double()
    p = pool.forward(signal).mean
    one = pool.backward(signal, Feedback(score, curvature)).score
    other = pool.backward(signal, Feedback(score + (p - 0.5) * curvature, torch.zeros_like(score))).score
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_with_certain_members_stay_finite(dtype):
    p = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5, 1e-30]], dtype=dtype).view(1, 1, 2, 4)
    signal = Signal(p, p * (1 - p))
    pool = AnySpike(nn.MaxPool2d(2))
    for log_odds in (-1e3, -5.0, 0.0, 5.0, 1e3):
        back = pool.backward(signal, Feedback(torch.full((1, 1, 1, 2), log_odds, dtype=dtype), torch.zeros(1, 1, 1, 2)))
        assert back.score.isfinite().all()
    moved = pool.forward(signal)
    assert ((moved.mean >= 0) & (moved.mean <= 1)).all()
    # where another member spikes for certain, nothing is to be learned of the rest
    assert pool.backward(signal, Feedback(torch.full((1, 1, 1, 2), 9.0, dtype=dtype), torch.zeros(1, 1, 1, 2))).score[
        0, 0, 0, 2
    ].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", POOLS)
def test_given_inputs_are_pooled_by_their_largest_value(name):
    pool, size = POOLS[name]
    x = torch.randn(2, 3, *size)
    signal = AnySpike(pool).forward(Signal(x, None))
    assert torch.equal(signal.mean, pool(x))
    assert signal.variance is None
    assert AnySpike(pool).propagate_variance(Signal(x, None), x).abs().max() == 0


@pytest.mark.parametrize("name", POOLS)
def test_uncertainty_of_members_spreads_by_the_slope_of_the_window(name):
    pool, size = POOLS[name]
    signal, step = spikes(size), 1e-6
    made = AnySpike(pool)
    part = 1e-3 * torch.rand_like(signal.mean)
    expected = torch.zeros_like(made.forward(signal).mean)
    for row, column in product(range(size[0]), range(size[1])):
        ends = []
        for sign in (1, -1):
            p = signal.mean.clone()
            p[..., row, column] += sign * step
            ends.append(made.forward(Signal(p, p)).mean)
        expected += ((ends[0] - ends[1]) / (2 * step)) ** 2 * part[..., row, column, None, None]
    torch.testing.assert_close(made.propagate_variance(signal, part), expected, rtol=1e-6, atol=1e-12)


def test_the_part_that_spreads_is_never_more_than_the_variance():
    signal = spikes((4, 4))
    assert signal.variance is not None
    made = AnySpike(nn.MaxPool2d(2))
    whole = made.forward(signal).variance
    assert whole is not None
    assert (made.propagate_variance(signal, 100 * signal.variance) <= whole * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", AVERAGES)
def test_moments_of_an_average_are_those_of_all_patterns(name):
    pool, _ = AVERAGES[name]
    p = torch.rand(2, 4, dtype=torch.float64) if name != "overlapping" else torch.rand(3, 3, dtype=torch.float64)
    seen = [(pool(pattern[None])[0], weight) for pattern, weight in patterns(p)]
    mean = sum(weight * value for value, weight in seen)
    variance = sum(weight * (value - mean) ** 2 for value, weight in seen)
    signal = AveragePool(pool).forward(Signal(p[None, None], (p * (1 - p))[None, None]))
    torch.testing.assert_close(signal.mean[0, 0], mean)
    torch.testing.assert_close(signal.variance[0, 0], variance)


@pytest.mark.parametrize("name", AVERAGES)
def test_members_of_an_average_receive_the_exact_ratio_of_their_two_values(name):
    pool, size = AVERAGES[name]
    signal, made = spikes(size), AveragePool(pool)
    mean = made.forward(signal).mean
    score, curvature = torch.randn_like(mean), torch.rand_like(mean)
    back = made.backward(signal, Feedback(score, curvature))
    found = back.score + (signal.mean - 0.5) * back.curvature
    for row, column in product(range(size[0]), range(size[1])):
        evidence = []
        for value in (1.0, 0.0):
            v = signal.mean.clone()
            v[..., row, column] = value
            shift = pool(v) - mean
            evidence.append((score * shift - 0.5 * curvature * shift**2).sum((-1, -2)))
        torch.testing.assert_close(found[..., row, column], evidence[0] - evidence[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", AVERAGES)
def test_a_part_of_the_variance_spreads_as_the_variance_does(name):
    pool, size = AVERAGES[name]
    signal, made = spikes(size), AveragePool(pool)
    assert signal.variance is not None
    assert torch.equal(made.propagate_variance(signal, signal.variance), made.forward(signal).variance)
    assert made.forward(Signal(signal.mean, None)).variance is None


@pytest.mark.parametrize("module", [nn.Flatten(), nn.Unflatten(1, (3, 1)), nn.Identity()])
def test_rearranging_goes_there_and_back(module):
    signal, made = spikes((2, 4)), Reshape(module)
    assert signal.variance is not None
    moved = made.forward(signal)
    assert torch.equal(moved.mean, module(signal.mean))
    assert torch.equal(moved.variance, made.propagate_variance(signal, signal.variance))
    back = made.backward(signal, Feedback(moved.mean, moved.variance))
    assert torch.equal(back.score, signal.mean)
    assert torch.equal(back.curvature, signal.variance)


def test_stages_know_whether_spikes_stay_spikes():
    assert stage(nn.Flatten()).keeps_spikes
    assert stage(nn.MaxPool2d(2)).keeps_spikes
    assert not stage(nn.AvgPool2d(2)).keeps_spikes
    assert transform_of(nn.ReLU()) is None
