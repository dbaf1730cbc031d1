"""Gaussian activations: mean and variance as one value that plain layers can process."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_HANDLERS: dict[Callable[..., Any], Callable[..., Any]] = {}


class Moments:
    """A Gaussian activation: mean and variance of the same shape, with independent elements.

    Reshaping, sums, scaling and average pooling act on both. Any other operation raises a TypeError that names it,
    because a nonlinear function of a Gaussian is not Gaussian: put a spiking layer before it.

    Args:
        mean: mean.
        variance: variance, at least 0, of the same shape.

    Example:
        >>> doubled = 2 * Moments(torch.tensor([1.0]), torch.tensor([0.5]))
        >>> doubled.mean, doubled.variance
        (tensor([2.]), tensor([2.]))
    """

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        self.mean, self.variance = mean, variance

    def map(self, function: Callable[[Tensor], Tensor]) -> Moments:
        """Apply the same rearrangement of elements to mean and variance."""
        return Moments(function(self.mean), function(self.variance))

    @property
    def shape(self) -> torch.Size:
        """Shape of mean and variance."""
        return self.mean.shape

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the mean."""
        return self.mean.dtype

    @property
    def device(self) -> torch.device:
        """Device of the mean."""
        return self.mean.device

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self.mean.dim()

    def size(self, *args: Any) -> Any:
        """Return the shape, or the size of one dimension, as `Tensor.size` does."""
        return self.mean.size(*args)

    def __getattr__(self, name: str) -> Any:
        if name in _REARRANGEMENTS:
            return lambda *args, **kwargs: self.map(lambda x: getattr(x, name)(*args, **kwargs))
        raise AttributeError(
            f"A Gaussian activation has no `{name}`: only {', '.join(sorted(_REARRANGEMENTS))}, sums, scaling and "
            "average pooling act on its mean and variance. Put a spiking layer before this operation"
        )

    def __add__(self, other: Moments | Tensor | float) -> Moments:
        if isinstance(other, Moments):
            return Moments(self.mean + other.mean, self.variance + other.variance)
        mean = self.mean + other
        return Moments(mean, self.variance.expand_as(mean))

    __radd__ = __add__

    def __mul__(self, factor: Tensor | float) -> Moments:
        if isinstance(factor, Moments):
            raise TypeError(
                "Expected a tensor or a number as factor of a Gaussian activation, but got another one. "
                "Put a spiking layer before one of them"
            )
        return Moments(self.mean * factor, self.variance * factor**2)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Tensor | float) -> Moments:
        return self * (1 / divisor)

    def __neg__(self) -> Moments:
        return Moments(-self.mean, self.variance)

    def __sub__(self, other: Moments | Tensor | float) -> Moments:
        return self + -other

    def __rsub__(self, other: Tensor | float) -> Moments:
        return -self + other

    def __getitem__(self, index: Any) -> Moments:
        return self.map(lambda x: x[index])

    def __repr__(self) -> str:
        return f"Moments(shape={tuple(self.shape)})"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = _HANDLERS.get(func)
        if handler is None:
            name = getattr(func, "__name__", repr(func))
            raise TypeError(
                f"`{name}` of a Gaussian activation has no exact mean and variance. Put a spiking layer before it"
            )
        return handler(*args, **(kwargs or {}))


_REARRANGEMENTS = frozenset(
    {"flatten", "unflatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "to"}
)


def _handles(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            _HANDLERS[function] = handler
        return handler

    return register


for _function in (
    torch.flatten,
    torch.unflatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
):

    @_handles(_function)
    def _rearrange(x: Moments, *args: Any, _function: Callable[..., Tensor] = _function, **kwargs: Any) -> Moments:
        return x.map(lambda tensor: _function(tensor, *args, **kwargs))


@_handles(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def _add(a: Any, b: Any) -> Moments:
    return a + b if isinstance(a, Moments) else Moments.__add__(b, a)


@_handles(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def _multiply(a: Any, b: Any) -> Moments:
    return a * b if isinstance(a, Moments) else Moments.__mul__(b, a)


@_handles(torch.cat)
def _concatenate(parts: Any, dim: int = 0) -> Moments:
    if not all(isinstance(part, Moments) for part in parts):
        raise TypeError(
            "Expected Gaussian activations only in torch.cat, but got tensors too. Put a spiking layer before the "
            "Gaussian activations"
        )
    return Moments(torch.cat([p.mean for p in parts], dim), torch.cat([p.variance for p in parts], dim))


@_handles(F.avg_pool2d)
def _average_pool(
    x: Moments,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Moments:
    if ceil_mode or not count_include_pad or divisor_override is not None:
        raise TypeError(
            "Expected avg_pool2d of a Gaussian activation to have windows of one size, but got ceil_mode=True, "
            "count_include_pad=False or a divisor_override"
        )
    area = kernel_size**2 if isinstance(kernel_size, int) else math.prod(kernel_size)
    return Moments(
        F.avg_pool2d(x.mean, kernel_size, stride, padding),
        F.avg_pool2d(x.variance, kernel_size, stride, padding) / area,
    )


@_handles(F.adaptive_avg_pool2d)
def _global_average_pool(x: Moments, output_size: Any) -> Moments:
    if output_size not in (1, (1, 1), [1, 1]):
        raise TypeError(
            f"Expected adaptive_avg_pool2d of a Gaussian activation to have output size 1, but got {output_size}"
        )
    area = x.shape[-1] * x.shape[-2]
    return Moments(F.adaptive_avg_pool2d(x.mean, 1), F.adaptive_avg_pool2d(x.variance, 1) / area)
