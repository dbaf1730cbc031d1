r"""Uniform quantization that trains: the rounded value forwards, a straight-through gradient backwards.

A number in [low, high] is put on the nearest of 2^b levels, both ends included:

.. math:: q = \mathrm{round}\Big(\frac{\min(\max(x, l), h) - l}{h - l} (2^b - 1)\Big), \quad
    \hat x = l + \frac{h - l}{2^b - 1} q, \quad \partial \hat x / \partial x = 1[l \le x \le h].

The straight-through estimator is the derivative of no function: it takes the staircase for the clipped line beneath it
(Bengio, Leonard & Courville 2013, arXiv 1308.3432). Levels need not include 0: a weight of 0 may become another number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_snn.checks import check_between, check_integer

MAX_BITS = 16


class IntegerWeights(NamedTuple):
    """Weights as hardware stores them: ``weight = offset + scale * codes``.

    Attributes:
        codes: integers from 0 to 2^b - 1, of the weight's shape, int32.
        scale: distance of two levels, at least 0, of the weight's dtype: a scalar, or where every channel has its own
            range one a channel, in a shape that broadcasts, such as `[O, 1, 1, 1]`.
        offset: the lowest level, of dtype and shape of `scale`.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """`value` forwards, to the last bit; the gradient goes to `source` as if they were equal.

    Args:
        value: what comes out; finite or not.
        source: what receives the gradient, finite, of the same shape.
    """
    return value.detach() + (source - source.detach())


def round_straight_through(x: Tensor) -> Tensor:
    """The nearest integers (halves to even), with the gradient of the identity."""
    return straight_through(x.round(), x)


def check_bits(name: str, bits: int) -> None:
    """Refuse anything but a number of bits from 1 to 16; beyond, float32 has too few digits between levels."""
    check_integer(name, bits)
    check_between(name, bits, 1, MAX_BITS)


def quantize(x: Tensor, bits: int, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Put `x` on 2^bits levels from `low` to `high`; the gradient is 1 within the range, ends included, and 0 outside.

    Both ends are met to the last bit, and levels stay where they are: quantizing twice is quantizing once.

    Args:
        x: what to quantize, any shape.
        bits: 1 to 16.
        low: the lowest level, a number or a tensor that broadcasts; it receives no gradient.
        high: the highest level, at least `low`.

    Returns:
        the levels, of the shape and dtype of `x`.

    Raises:
        ValueError: if `bits` is outside its range.
    """
    check_bits("bits", bits)
    low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device).detach() for end in (low, high))
    clipped = torch.clamp(x, low, high)
    levels = _levels(_codes(clipped.detach(), bits, low, high), bits, low, high)
    return straight_through(levels.to(x.dtype), clipped)


def weight_range(
    weight: Tensor, percentile: float = 100.0, channel_dimension: int | None = None
) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight once outliers are dropped.

    Of n weights ``floor(n (1 - percentile / 100) / 2)`` are dropped at either end. The ends are weights themselves and
    not interpolated, so that clipped weights have the range that they were clipped to.

    Args:
        weight: the weights of a layer, any shape, not empty.
        percentile: percentage of the weights that stay, larger than 50 and at most 100.
        channel_dimension: of the weight, along which every channel has a range of its own, n being its number of
            weights; None takes all weights together.

    Returns:
        low and high without a gradient: scalars, or one a channel, in a shape that broadcasts with `weight`.

    Raises:
        ValueError: if `percentile` or `channel_dimension` is outside its range.
    """
    check_percentile("percentile", percentile)
    if channel_dimension is None:
        values, shape = weight.detach().flatten(), []
    else:
        check_integer("channel_dimension", channel_dimension, 0)
        check_between("channel_dimension", channel_dimension, 0, weight.dim() - 1)
        values = weight.detach().movedim(channel_dimension, 0).flatten(1)
        shape = [-1 if dimension == channel_dimension else 1 for dimension in range(weight.dim())]
    size = values.shape[-1]
    # 100 - 99.9 is not 0.1, and one weight of a thousand must not depend on that
    dropped = int(size * (100 - percentile) / 200 + 1e-9)
    if dropped == 0:
        low, high = values.aminmax(dim=-1)
    else:
        low, high = (values.kthvalue(place, dim=-1).values for place in (dropped + 1, size - dropped))
    return low.view(shape), high.view(shape)


def check_percentile(name: str, percentile: float) -> None:
    """Refuse percentages of weights that are not within (50, 100]."""
    check_between(name, percentile, 50, 100)
    if percentile == 50:
        raise ValueError(f"Expected argument `{name}` to be larger than 50, but got {percentile!r}")


def quantize_weight(
    weight: Tensor, bits: int, percentile: float = 100.0, channel_dimension: int | None = None
) -> Tensor:
    """The weights of a layer on 2^bits levels over their range, outliers clipped; see `quantize`, `weight_range`.

    Args:
        weight: the weights of a layer, any shape, not empty.
        bits: 1 to 16.
        percentile: percentage of the weights that set the range, larger than 50 and at most 100.
        channel_dimension: of the weight, along which every channel has a range of its own; None is one range for all.

    Returns:
        weights of the same shape and dtype; the gradient is 1 for those within the range and 0 for outliers.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> quantize_weight(torch.tensor([-1.0, -0.4, 0.1, 2.0]), 2)
        tensor([-1.,  0.,  0.,  2.])
    """
    return quantize(weight, bits, *weight_range(weight, percentile, channel_dimension))


def integer_weights(
    weight: Tensor, bits: int, percentile: float = 100.0, channel_dimension: int | None = None
) -> IntegerWeights:
    """The weights that `quantize_weight` uses, as integers with a scale and an offset.

    Args and errors are those of `quantize_weight`.
    """
    check_bits("bits", bits)
    low, high = weight_range(weight, percentile, channel_dimension)
    codes = _codes(torch.clamp(weight.detach(), low, high), bits, low, high)
    return IntegerWeights(codes.to(torch.int32), (high - low) / (2**bits - 1), low)


def _codes(clipped: Tensor, bits: int, low: Tensor, high: Tensor) -> Tensor:
    # half precision cannot count to 2^16
    low, high, clipped = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (low, high, clipped))
    span = high - low
    # weights that are all equal are the lowest level
    return ((clipped - low) / torch.where(span > 0, span, 1) * (2**bits - 1)).round()


def _levels(codes: Tensor, bits: int, low: Tensor, high: Tensor) -> Tensor:
    highest = 2**bits - 1
    low, high = low.to(codes.dtype), high.to(codes.dtype)
    # low + (high - low) may differ from high in the last digit
    return torch.where(codes < highest, low + (high - low) * codes / highest, high)
