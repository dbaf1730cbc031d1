r"""Uniform quantization with straight-through gradients, for quantization-aware training.

A number in [low, high] is rounded to the nearest of 2^b quantization levels, which include both ends:

.. math:: q = \mathrm{round}\Big(\frac{\min(\max(x, l), h) - l}{h - l} (2^b - 1)\Big), \quad
    \hat x = l + \frac{h - l}{2^b - 1} q, \quad \partial \hat x / \partial x = 1[l \le x \le h].

The straight-through estimator treats the staircase as the clipped identity, so it is not the derivative of the forward
pass (Bengio, Leonard & Courville 2013, arXiv 1308.3432). Levels need not include 0: a weight of 0 may become nonzero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_snn.checks import check_between, check_integer
from lightning_snn.functional.scalars import value_like

MAX_BITS = 16


class IntegerWeights(NamedTuple):
    """Quantized weights as integers with scale and offset: ``weight = offset + scale * codes``.

    Attributes:
        codes: integers from 0 to 2^b - 1, of the weight's shape, int32.
        scale: distance between two levels, at least 0, of the weight's dtype: a scalar, or one value per channel if
            each channel has its own range, in a shape that broadcasts, such as `[O, 1, 1, 1]`.
        offset: lowest level, of the dtype and shape of `scale`.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """Return `value` bit for bit in the forward pass, and pass its gradient to `source` in the backward pass.

    Args:
        value: value to return; it may be infinite or nan.
        source: tensor that receives the gradient, finite, of the same shape.

    Returns:
        `value` with the gradient of `source`.

    Example:
        >>> x = torch.tensor([0.4, 1.6], requires_grad=True)
        >>> straight_through(x.round(), x).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """
    return value.detach() + (source - source.detach())


def check_bits(name: str, bits: int) -> None:
    """Raise a ValueError unless `bits` is an integer from 1 to 16; with more bits, float32 cannot separate levels."""
    check_integer(name, bits)
    check_between(name, bits, 1, MAX_BITS)


def quantize(x: Tensor, bits: int, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Round `x` to the nearest of 2^bits levels from `low` to `high`.

    The gradient is 1 within the range, which includes both ends, and 0 outside. Both ends are exact, and quantizing
    twice gives the same result as quantizing once.

    Args:
        x: tensor to quantize, any shape.
        bits: number of bits, 1 to 16.
        low: lowest level, a number or a tensor that broadcasts to `x`; receives no gradient.
        high: highest level, at least `low`, a number or a tensor that broadcasts to `x`; receives no gradient.

    Returns:
        quantized values, of the shape and dtype of `x`.

    Raises:
        ValueError: if `bits` is outside its range.

    Example:
        >>> quantize(torch.tensor([-2.0, 0.2, 0.9]), bits=1, low=0.0, high=1.0)
        tensor([0., 0., 1.])
    """
    check_bits("bits", bits)
    return quantize_to_steps(x, 2**bits - 1, low, high)


def quantize_to_steps(x: Tensor, steps: int, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Round `x` to the nearest of ``steps + 1`` levels, whose distances are equal, from `low` to `high`.

    The gradient is that of `quantize`.

    Args:
        x: tensor to quantize, any shape.
        steps: number of distances between the levels, from 1 to 2^16 - 1.
        low: lowest level, as in `quantize`.
        high: highest level, as in `quantize`.

    Returns:
        quantized values, of the shape and dtype of `x`.

    Raises:
        ValueError: if `steps` is outside its range.

    Example:
        >>> quantize_to_steps(torch.tensor([-2.0, 0.4, 0.9]), steps=2, low=0.0, high=1.0)
        tensor([0.0000, 0.5000, 1.0000])
    """
    check_integer("steps", steps)
    check_between("steps", steps, 1, 2**MAX_BITS - 1)
    low, high = (value_like(end, x).detach() for end in (low, high))
    clipped = torch.clamp(x, low, high)
    levels = _levels(_codes(clipped.detach(), steps, low, high), steps, low, high)
    return straight_through(levels.to(x.dtype), clipped)


def weight_range(
    weight: Tensor, percentile: float = 100.0, channel_dimension: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest weight after outliers are dropped.

    Of n weights, ``floor(n (1 - percentile / 100) / 2)`` are dropped at each end. Both ends are weights and not
    interpolated, so clipped weights have exactly the range that they were clipped to.

    Args:
        weight: weights of a layer, any shape, not empty.
        percentile: percentage of the weights to keep, larger than 50 and at most 100.
        channel_dimension: dimension of the channels, if each channel has its own range; n is then the number of weights
            per channel. None computes one range of all weights.

    Returns:
        low and high without a gradient: scalars, or one value per channel in a shape that broadcasts to `weight`.

    Raises:
        ValueError: if `percentile` or `channel_dimension` is outside its range.

    Example:
        >>> weight_range(torch.tensor([-9.0, -1.0, 0.0, 1.0, 2.0, 9.0]), percentile=60)
        (tensor(-1.), tensor(2.))
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
    # 100 - 99.9 is not exactly 0.1, which must not change the number of weights dropped
    dropped = int(size * (100 - percentile) / 200 + 1e-9)
    if dropped == 0:
        low, high = values.aminmax(dim=-1)
    else:
        low, high = (values.kthvalue(place, dim=-1).values for place in (dropped + 1, size - dropped))
    return low.view(shape), high.view(shape)


def check_percentile(name: str, percentile: float) -> None:
    """Raise a ValueError unless `percentile` is in (50, 100]."""
    check_between(name, percentile, 50, 100)
    if percentile == 50:
        raise ValueError(f"Expected argument `{name}` to be larger than 50, but got {percentile!r}")


def quantize_weight(
    weight: Tensor, bits: int, percentile: float = 100.0, channel_dimension: int | None = None
) -> Tensor:
    """Quantize the weights of a layer over their range, with outliers clipped; see `quantize` and `weight_range`.

    Args:
        weight: weights of a layer, any shape, not empty.
        bits: number of bits, 1 to 16.
        percentile: percentage of the weights that set the range, larger than 50 and at most 100.
        channel_dimension: dimension of the channels, if each channel has its own range; None uses one range.

    Returns:
        quantized weights of the same shape and dtype. The gradient is 1 for weights within the range and 0 for
        outliers.

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
    """Quantize the weights of a layer as `quantize_weight` does, to integers with scale and offset.

    Arguments and errors are those of `quantize_weight`; weights that are NaN or infinite are an error, too.

    Example:
        >>> integer_weights(torch.tensor([-1.0, -0.4, 0.1, 2.0]), 2)
        IntegerWeights(codes=tensor([0, 1, 1, 3], dtype=torch.int32), scale=tensor(1.), offset=tensor(-1.))
    """
    check_bits("bits", bits)
    low, high = weight_range(weight, percentile, channel_dimension)
    codes = _codes(torch.clamp(weight.detach(), low, high), 2**bits - 1, low, high)
    if not codes.isfinite().all():
        raise ValueError(
            f"Expected argument `weight` to hold finite numbers, but got {(~weight.isfinite()).sum()} that are not"
        )
    return IntegerWeights(codes.to(torch.int32), (high - low) / (2**bits - 1), low)


def _codes(clipped: Tensor, steps: int, low: Tensor, high: Tensor) -> Tensor:
    # half precision cannot represent all integers up to 2^16
    low, high, clipped = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (low, high, clipped))
    span = high - low
    # equal weights are at the lowest level
    codes: Tensor = (clipped - low) / torch.where(span > 0, span, 1) * steps
    return codes.round()


def _levels(codes: Tensor, steps: int, low: Tensor, high: Tensor) -> Tensor:
    low, high = low.to(codes.dtype), high.to(codes.dtype)
    # low + (high - low) may differ from high in the last bit; NaN stays NaN
    return torch.where(codes >= steps, high, low + (high - low) * codes / steps)
