from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_snn.functional.quantization import (
    integer_weights,
    quantize,
    quantize_to_steps,
    quantize_weight,
    straight_through,
    weight_range,
)

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def weights(seed: int = 0, shape: tuple[int, ...] = (40, 5, 3), dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3 + 0.1).to(dtype)


def nearest_level(x: float, bits: int, low: float, high: float) -> float:
    """The nearest of the levels, by comparing with all of them in exact arithmetic."""
    start, end, highest = Fraction(low), Fraction(high), 2**bits - 1
    levels = [start + (end - start) * code / highest for code in range(highest + 1)]
    return float(min(levels, key=lambda level: abs(level - Fraction(x))))


def test_rounding_is_exact_and_has_the_gradient_of_the_identity():
    x = torch.tensor([-2.5, -0.5, 0.49999, 0.5, 1.5, 1e9 + 0.3, -0.0], dtype=torch.float64, requires_grad=True)
    rounded = straight_through(x.round(), x)
    assert rounded.tolist() == [-2, 0, 0, 0, 2, 1e9, 0]  # halves to even
    (rounded * torch.arange(7)).sum().backward()
    assert torch.equal(x.grad, torch.arange(7, dtype=torch.float64))


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_levels_of_steps_have_equal_distances_and_those_of_bits_are_a_case(steps: int):
    x = weights(1, (60,)) * 3
    low, high = -0.7, 0.95
    levels = low + (high - low) * np.arange(steps + 1) / steps
    expected = [levels[np.abs(levels - value).argmin()] for value in x.tolist()]
    np.testing.assert_allclose(quantize_to_steps(x, steps, low, high).numpy(), expected, rtol=1e-14, atol=1e-15)
    assert torch.equal(quantize_to_steps(x, 2**3 - 1, low, high), quantize(x, 3, low, high))
    for wrong in (0, 2.0, 2**16):
        with pytest.raises(ValueError, match="Expected argument `steps` to be"):
            quantize_to_steps(x, wrong, low, high)


def test_straight_through_keeps_the_value_to_the_last_bit():
    source = torch.full((3,), 1e20, dtype=torch.float64, requires_grad=True)
    value = torch.tensor([0.1, math.inf, -1e-300], dtype=torch.float64)
    assert torch.equal(straight_through(value, source), value)
    # what is usually written loses it
    assert not torch.equal(source + (value - source).detach(), value)


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_values_go_to_the_nearest_level(bits: int):
    x = weights(1, (60,)) * 3
    low, high = -0.7, 0.95
    expected = [nearest_level(value, bits, low, high) for value in x.tolist()]
    found = quantize(x, bits, low, high)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-15, atol=1e-16)
    assert len(found.unique()) <= 2**bits
    inside = (x >= low) & (x <= high)
    step = (high - low) / (2**bits - 1)
    assert (found - x).abs()[inside].max() <= step / 2 + 1e-15
    assert (found - x).abs()[inside].max() > step / 4  # or nothing was rounded


@pytest.mark.parametrize("bits", [1, 4, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_ends_are_levels_to_the_last_bit(bits: int, dtype: torch.dtype):
    for seed in range(20):
        x = weights(seed, dtype=dtype)
        found = quantize(x, bits, x.min(), x.max())
        assert found.dtype == dtype
        assert (found.min(), found.max()) == (x.min(), x.max())


def test_one_bit_leaves_the_two_ends():
    assert set(quantize(weights(), 1, -0.25, 0.5).unique().tolist()) == {-0.25, 0.5}


@pytest.mark.parametrize("percentile", [100.0, 99.0, 90.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantizing_weights_twice_is_quantizing_once(percentile: float, dtype: torch.dtype):
    for bits in (1, 2, 3, 4, 6) + ((8, 12, 16) if dtype.itemsize > 2 else ()):
        for seed in range(5):
            x = weights(seed, dtype=dtype)
            once = quantize_weight(x, bits, percentile)
            assert not torch.equal(once, x)
            assert torch.equal(quantize_weight(once, bits, percentile), once)


def test_with_a_range_between_weights_levels_would_move():
    def interpolated(x: Tensor) -> Tensor:
        return quantize(x, 4, *torch.quantile(x, torch.tensor([0.005, 0.995], dtype=x.dtype)))

    once = interpolated(weights(shape=(150,)))
    assert not torch.equal(interpolated(once), once)


def test_the_gradient_is_one_within_the_range_and_zero_outside():
    x = torch.tensor([-2.0, -1.0, -0.3, 0.1, 1.0, 1.1], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([3.0, 5.0, 7.0, 11.0, 13.0, 17.0], dtype=torch.float64)
    quantize(x, 3, -1.0, 1.0).backward(upstream)
    assert x.grad.tolist() == [0, 5, 7, 11, 13, 0]


def test_ends_receive_no_gradient():
    low, high = (torch.tensor(value, requires_grad=True) for value in (-0.1, 0.1))
    x = weights(dtype=torch.float32).requires_grad_()
    quantize(x, 3, low, high).sum().backward()
    assert low.grad is None
    assert high.grad is None
    assert 0 < x.grad.sum() < x.numel()


def test_levels_of_a_window_include_silence_and_follow_the_formula():
    window = torch.tensor(3.7, dtype=torch.float64)
    times = torch.linspace(0, 3.7, 101, dtype=torch.float64)
    expected = window * (times / window * 15).round() / 15
    assert torch.equal(quantize(times, 4, 0.0, window), torch.where(expected > window, window, expected))
    assert quantize(window, 4, 0.0, window) == window


def test_the_range_drops_as_many_weights_at_either_end():
    x = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).double().view(10, 100)
    assert weight_range(x) == (0, 999)
    assert weight_range(x, 99.9) == (0, 999)  # half a weight an end
    assert weight_range(x, 99.8) == (1, 998)
    assert weight_range(x, 90.0) == (50, 949)
    expected = np.quantile(x.numpy(), [0.05, 0.95])
    np.testing.assert_allclose(weight_range(x, 90.0), expected, atol=1)


def test_an_outlier_widens_the_levels_of_all_unless_it_is_clipped():
    x = weights(3, (1000,))
    x[0] = 50.0
    others = x[1:]
    coarse, fine = (quantize_weight(x, 4, percentile)[1:] for percentile in (100.0, 99.0))
    assert (coarse - others).abs().mean() > 10 * (fine - others).abs().mean()
    assert quantize_weight(x, 4)[0] == 50
    assert quantize_weight(x, 4, 99.0)[0] == weight_range(x, 99.0)[1] < 1.5


def test_equal_weights_stay_as_they_are():
    x = torch.full((3, 4), 0.3, requires_grad=True)
    found = quantize_weight(x, 4)
    assert torch.equal(found, x)
    found.sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 4))


@pytest.mark.parametrize("percentile", [100.0, 98.0])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_integers_give_the_quantized_weights_back(bits: int, percentile: float):
    x = weights()
    codes, scale, offset = integer_weights(x, bits, percentile)
    assert codes.dtype == torch.int32
    assert (codes.min(), codes.max()) == (0, 2**bits - 1)
    torch.testing.assert_close(offset + scale * codes, quantize_weight(x, bits, percentile), rtol=0, atol=1e-15)
    assert len(quantize_weight(x, bits, percentile).unique()) == len(codes.unique())


@pytest.mark.parametrize("percentile", [100.0, 90.0])
@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_channels_are_quantized_as_if_each_were_a_layer(dimension: int, percentile: float):
    x = weights() * torch.linspace(0.1, 5, weights().shape[dimension]).double().view(
        [-1 if each == dimension else 1 for each in range(3)]
    )
    expected = [quantize_weight(channel, 3, percentile) for channel in x.unbind(dimension)]
    found = quantize_weight(x, 3, percentile, dimension)
    assert torch.equal(found, torch.stack(expected, dimension))
    assert not torch.allclose(quantize_weight(x, 3, percentile), found)
    codes, scale, offset = integer_weights(x, 3, percentile, dimension)
    assert scale.numel() == offset.numel() == x.shape[dimension]
    torch.testing.assert_close(offset + scale * codes, found, rtol=0, atol=1e-14)


def test_the_gradient_of_channels_is_zero_for_the_outliers_of_each():
    x = weights(shape=(3, 100)).requires_grad_()
    quantize_weight(x, 3, 90.0, 0).sum().backward()
    assert x.grad.sum(1).tolist() == [90, 90, 90]


def test_shape_and_device_follow_the_input():
    x = torch.empty(2, 3, 4, device="meta")
    found = quantize(x, 4, 0.0, 1.0)
    assert (found.shape, found.device, found.dtype) == (x.shape, x.device, x.dtype)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: quantize(x, 0, 0.0, 1.0), "`bits` to be an integer of at least 1, but got 0"),
        (lambda x: quantize(x, 17, 0.0, 1.0), "`bits` to be a number from 1 to 16, but got 17"),
        (lambda x: quantize_weight(x, 2.5), "`bits` to be an integer of at least 1, but got 2.5"),  # type: ignore[arg-type]
        (lambda x: quantize_weight(x, 4, 101), "`percentile` to be a number from 50 to 100, but got 101"),
        (lambda x: quantize_weight(x, 4, 50), "`percentile` to be larger than 50, but got 50"),
        (lambda x: quantize_weight(x, 4, 100.0, 3), "`channel_dimension` to be a number from 0 to 2, but got 3"),
        (lambda x: quantize_weight(x, 4, 100.0, -1), "`channel_dimension` to be an integer of at least 0, but got -1"),
        (lambda x: integer_weights(x, 20), "`bits` to be a number from 1 to 16, but got 20"),
    ],
)
def test_bad_arguments_are_refused(call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call(weights())


def test_nan_is_no_level():
    bad = weights().flatten()
    bad[3] = math.nan
    found = quantize(bad, 3, -1.0, 1.0)
    assert torch.equal(found.isnan(), bad.isnan())
    assert torch.equal(found[4:], quantize(bad[4:], 3, -1.0, 1.0))
    assert quantize_weight(bad, 3).isnan().all()
    assert quantize_weight(bad, 3, percentile=90)[3].isnan()


@pytest.mark.parametrize(("value", "percentile"), [(math.nan, 100), (math.nan, 90), (math.inf, 100)])
def test_weights_that_are_no_numbers_have_no_integers(value: float, percentile: float):
    bad = weights().flatten()
    bad[3] = value
    with pytest.raises(ValueError, match="`weight` to hold finite numbers, but got 1 that are not"):
        integer_weights(bad, 3, percentile)
