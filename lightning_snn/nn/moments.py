"""Mean and variance traveling through a network as one value, so that plain layers need not know about them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_HANDLERS: dict[Callable[..., Any], Callable[..., Any]] = {}


class Moments:
    """A Gaussian activation: mean and variance of the same shape, elements taken as independent.

    What is linear acts on both: reshaping, sums, scaling, average pooling. Anything else raises a TypeError that
    names the operation, because a nonlinearity of a Gaussian has no exact mean and variance: put a spiking layer
    before it.

    Args:
        mean, variance: tensors of one shape; variance at least 0.
    """

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        self.mean, self.variance = mean, variance

    def map(self, function: Callable[[Tensor], Tensor]) -> Moments:
        """The same rearrangement applied to mean and variance."""
        return Moments(function(self.mean), function(self.variance))

    @property
    def shape(self) -> torch.Size:
        return self.mean.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.mean.dtype

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def dim(self) -> int:
        return self.mean.dim()

    def size(self, *args: Any) -> Any:
        return self.mean.size(*args)

    def __getattr__(self, name: str) -> Any:
        if name in _REARRANGEMENTS:
            return lambda *args, **kwargs: self.map(lambda x: getattr(x, name)(*args, **kwargs))
        raise AttributeError(
            f"A Gaussian activation has no exact `{name}`: only {', '.join(sorted(_REARRANGEMENTS))}, sums, scaling "
            "and average pooling act on its mean and variance. Put a spiking layer before this operation"
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
                "The product of two Gaussian activations is not Gaussian: put a spiking layer before one of them"
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
                f"`{name}` of a Gaussian activation has no exact mean and variance: put a spiking layer before it"
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
    return a + b if isinstance(a, Moments) else b + a


@_handles(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def _multiply(a: Any, b: Any) -> Moments:
    return a * b if isinstance(a, Moments) else b * a


@_handles(torch.cat)
def _concatenate(parts: Any, dim: int = 0) -> Moments:
    if not all(isinstance(part, Moments) for part in parts):
        raise TypeError("torch.cat of Gaussian activations and tensors: put a spiking layer before the Gaussian ones")
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
            "avg_pool2d of a Gaussian activation needs windows of one size: no ceil_mode, count_include_pad=True"
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
            f"adaptive_avg_pool2d of a Gaussian activation is exact for output size 1 only, but got {output_size}"
        )
    area = x.shape[-1] * x.shape[-2]
    return Moments(F.adaptive_avg_pool2d(x.mean, 1), F.adaptive_avg_pool2d(x.variance, 1) / area)
