"""Noise of short windows along a network, and the windows with the least of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_snn.methods.ttfs.clipping import LayerPotentials, optimized_windows, sequential_noise, windows_of_steps


def exponential(scale: float, *sources: int) -> LayerPotentials:
    values = scale * torch.linspace(0.005, 12, 1200, dtype=torch.float64)
    return LayerPotentials(values, torch.exp(-values / scale), sources)


def ratio(values: np.ndarray, counts: np.ndarray, response: np.ndarray) -> tuple[float, float]:
    power, product = (counts * values**2).sum(), (counts * values * response).sum()
    return product / power, (counts * response**2).sum() * power / product**2 - 1


CHAIN = [exponential(1.0), exponential(0.5, 0), exponential(3.0, 1)]
FREE = torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize("steps", [None, 6])
def test_noise_is_that_of_windows_divided_by_the_gains_before(steps: int | None):
    windows = torch.tensor([1.5, 0.6, 2.0], dtype=torch.float64)
    gains, noise = sequential_noise(CHAIN, windows, steps)
    before = 1.0
    for layer, window, gain, found in zip(CHAIN, windows.tolist(), gains.tolist(), noise.tolist(), strict=True):
        values, counts, effective = layer.values.numpy(), layer.counts.numpy(), window / before
        response = np.minimum(values, effective)
        if steps is not None:
            response = np.round(response / effective * steps) * effective / steps
        expected = ratio(values, counts, response)
        assert (gain, found) == (pytest.approx(expected[0], rel=1e-12), pytest.approx(expected[1], rel=1e-9))
        before *= gain
    # the control of the benchmark: windows as they are
    alone = sequential_noise(CHAIN, windows, steps, sequential=False)[1]
    assert alone[0] == noise[0]
    assert (alone[1:] > 1.2 * noise[1:]).all()


def test_branches_scale_a_layer_by_the_mean_of_their_gains():
    layers = [exponential(1.0), exponential(1.0), exponential(1.0, 0, 1)]
    windows = torch.tensor([1.0, 20.0, 1.0], dtype=torch.float64)
    gains, noise = sequential_noise(layers, windows)
    wider = torch.tensor([1.0, 20.0, 1.0 / (0.5 + 0.5 * gains[0].item())], dtype=torch.float64)
    torch.testing.assert_close(noise[2], sequential_noise(layers, wider, sequential=False)[1][2], rtol=1e-12, atol=0)


def marginals(windows: Tensor) -> Tensor:
    windows = windows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sequential_noise(CHAIN, windows)[1].sum(), windows)
    return gradient


@pytest.mark.parametrize("factor", [2.0, 5.0, 10.0])
def test_optimized_windows_have_equal_marginal_noise_and_the_same_sum(factor: float):
    start = torch.stack([layer.values.max() for layer in CHAIN]) / factor
    found = optimized_windows(CHAIN, start, FREE)
    torch.testing.assert_close(found.sum(), start.sum(), rtol=1e-12, atol=0)
    gradient = marginals(found)
    torch.testing.assert_close(gradient, gradient.mean().expand(3), rtol=1e-2, atol=1e-9)
    # those of equal fractions of the largest activations differ
    start_gradient = marginals(start)
    assert start_gradient.max() - start_gradient.min() > 0.3 * start_gradient.mean().abs()


def test_marginal_noise_counts_what_a_gain_changes_in_later_layers():
    windows, step = torch.tensor([1.5, 0.6, 2.0], dtype=torch.float64), 1e-5
    for place in range(3):
        moved = [windows.clone(), windows.clone()]
        moved[0][place] -= step
        moved[1][place] += step
        below, above = (sequential_noise(CHAIN, each)[1].sum() for each in moved)
        assert marginals(windows)[place].item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-3)


def test_optimized_windows_are_the_best_of_a_grid():
    pair = CHAIN[:2]
    start = torch.tensor([1.0, 2.0], dtype=torch.float64)
    found = optimized_windows(pair, start, FREE[:2])
    grid = [torch.tensor([first, 3.0 - first], dtype=torch.float64) for first in np.linspace(0.3, 2.7, 481)]
    best = min(sequential_noise(pair, each)[1].sum().item() for each in grid)
    noise = sequential_noise(pair, found)[1].sum().item()
    assert noise <= best * (1 + 1e-6)
    assert noise < 0.95 * sequential_noise(pair, start)[1].sum().item()


def test_fixed_windows_stay_and_windows_without_noise_are_kept():
    windows = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
    found = optimized_windows(CHAIN, windows, torch.tensor([False, True, True]))
    assert found[0] == 1
    assert found[1:].sum().item() == pytest.approx(3.0, rel=1e-12)
    long = torch.stack([layer.values.max() for layer in CHAIN])
    assert torch.equal(optimized_windows(CHAIN, long, FREE), long)


@pytest.mark.parametrize("steps", [2, 8, 32])
def test_windows_of_steps_trade_clipping_for_rounding(steps: int):
    longest = torch.stack([layer.values.max() for layer in CHAIN])
    found = windows_of_steps(CHAIN, longest, FREE, steps)
    assert (found <= longest).all()
    noise = sequential_noise(CHAIN, found, steps)[1]
    values, counts = CHAIN[0].values.numpy(), CHAIN[0].counts.numpy()
    grid = longest[0].item() * 2.0 ** -(np.arange(64) / 8)
    ratios = [ratio(values, counts, np.round(np.minimum(values, w) / w * steps) * w / steps)[1] for w in grid]
    assert found[0].item() == pytest.approx(grid[int(np.argmin(ratios))], rel=1e-12)
    assert noise.sum() < 0.8 * sequential_noise(CHAIN, longest, steps)[1].sum()


def test_a_layer_that_rounding_silences_leaves_no_signal():
    layer = exponential(1.0)
    windows = torch.tensor([100.0, 1.0], dtype=torch.float64)
    gains, noise = sequential_noise([layer, layer._replace(sources=(0,))], windows, steps=2)
    assert gains.tolist() == [0, 0]
    assert noise.tolist() == [torch.inf, torch.inf]


def test_rounding_noise_approaches_that_of_uniform_errors():
    layer, steps = CHAIN[0], 64
    window = layer.values.max()
    (noise,) = sequential_noise([layer], window[None], steps)[1]
    power = (layer.counts * layer.values.square()).sum() / layer.counts.sum()
    assert noise.item() == pytest.approx((window**2 / (12 * steps**2 * power)).item(), rel=0.05)
