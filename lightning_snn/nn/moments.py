"""Gaussian activations: expectation and variance as one value that plain layers can process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Dimensions = int | tuple[int, ...] | list[int] | None

_HANDLERS: dict[Callable[..., Any], Callable[..., Any]] = {}


class Moments:
    """A Gaussian activation: expectation and variance of the same shape, with independent elements.

    Reshaping, sums, means, scaling, matrix products with known matrices and average pooling act on both, exactly. Any
    other operation raises a TypeError that names it, because a nonlinear function of a Gaussian is not Gaussian: put a
    spiking layer before it.

    Args:
        expectation: expected values.
        variance: variances, at least 0, of the same shape.

    Example:
        >>> doubled = 2 * Moments(torch.tensor([1.0]), torch.tensor([0.5]))
        >>> doubled.expectation, doubled.variance
        (tensor([2.]), tensor([2.]))
        >>> Moments(torch.tensor([1.0, 3.0]), torch.ones(2)).mean().variance
        tensor(0.5000)
    """

    def __init__(self, expectation: Tensor, variance: Tensor) -> None:
        self.expectation, self.variance = expectation, variance

    def map(self, function: Callable[[Tensor], Tensor]) -> Moments:
        """Apply the same rearrangement of elements to expectation and variance."""
        return Moments(function(self.expectation), function(self.variance))

    @property
    def shape(self) -> torch.Size:
        """Shape of expectation and variance."""
        return self.expectation.shape

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the expectation."""
        return self.expectation.dtype

    @property
    def device(self) -> torch.device:
        """Device of the expectation."""
        return self.expectation.device

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self.expectation.dim()

    def size(self, *args: Any) -> Any:
        """Return the shape, or the size of one dimension, as `Tensor.size` does."""
        return self.expectation.size(*args)

    def __len__(self) -> int:
        return len(self.expectation)

    def mean(self, dim: Dimensions = None, keepdim: bool = False) -> Moments:
        """Return the mean over dimensions, all of them if `dim` is None, whose variance is that over the count."""
        total = self.sum(dim, keepdim)
        return total / (self.expectation.numel() // max(total.expectation.numel(), 1))

    def sum(self, dim: Dimensions = None, keepdim: bool = False) -> Moments:
        """Return the sum over dimensions, all of them if `dim` is None; variances add."""
        dims = tuple(range(self.dim())) if dim is None else dim
        return self.map(lambda x: x.sum(dims, keepdim))

    def matmul(self, other: Tensor) -> Moments:
        """Return the matrix product with a known matrix; the elements of a result are treated as independent."""
        return _product(self, other)

    def __getattr__(self, name: str) -> Any:
        if name in _REARRANGEMENTS:
            return lambda *args, **kwargs: self.map(lambda x: getattr(x, name)(*args, **kwargs))
        if name in _SPLITS:
            return lambda *args, **kwargs: _parts(getattr(Tensor, name), self, *args, **kwargs)
        raise AttributeError(
            f"A Gaussian activation has no `{name}`: only {', '.join(sorted(_REARRANGEMENTS | _SPLITS))}, sums, means, "
            "scaling, matrix products and average pooling act on its expectation and variance. Put a spiking layer "
            "before this operation"
        )

    def __add__(self, other: Moments | Tensor | float) -> Moments:
        if other is self:
            return 2 * self  # not a sum of independent values
        if isinstance(other, Moments):
            return Moments(self.expectation + other.expectation, self.variance + other.variance)
        mean = self.expectation + other
        return Moments(mean, self.variance.expand_as(mean))

    __radd__ = __add__

    def __mul__(self, factor: Tensor | float) -> Moments:
        if isinstance(factor, Moments):
            raise TypeError(
                "Expected a tensor or a number as factor of a Gaussian activation, but got another one. "
                "Put a spiking layer before one of them"
            )
        return Moments(self.expectation * factor, self.variance * factor**2)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Tensor | float) -> Moments:
        return self * (1 / divisor)

    def __neg__(self) -> Moments:
        return Moments(-self.expectation, self.variance)

    def __sub__(self, other: Moments | Tensor | float) -> Moments:
        return 0 * self if other is self else self + -other

    def __rsub__(self, other: Tensor | float) -> Moments:
        return -self + other

    def __matmul__(self, other: Tensor) -> Moments:
        return _product(self, other)

    def __rmatmul__(self, other: Tensor) -> Moments:
        return _product(other, self)

    def __iter__(self) -> Iterator[Moments]:
        return iter(self.unbind(0))

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
                f"`{name}` of a Gaussian activation has no exact expectation and variance. Put a spiking layer "
                "before it"
            )
        return handler(*args, **(kwargs or {}))


_REARRANGEMENTS = frozenset(
    {
        *("flatten", "unflatten", "reshape", "view", "permute", "transpose", "movedim", "swapaxes"),
        *("squeeze", "unsqueeze", "contiguous", "to", "float", "double", "flip", "roll"),
        *("narrow", "select"),
    }
)
_SPLITS = frozenset({"chunk", "split", "unbind", "tensor_split"})


Handler = TypeVar("Handler", bound=Callable[..., Any])


def _handles(*functions: Callable[..., Any]) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
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
    torch.movedim,
    torch.swapaxes,
    torch.flip,
    torch.roll,
    torch.narrow,
    torch.select,
):

    @_handles(_function)
    def _rearrange(x: Moments, *args: Any, _function: Callable[..., Tensor] = _function, **kwargs: Any) -> Moments:
        return x.map(lambda tensor: _function(tensor, *args, **kwargs))


for _splits in (torch.chunk, torch.split, torch.unbind, torch.tensor_split):

    @_handles(_splits)
    def _split(x: Moments, *args: Any, _splits: Callable[..., Any] = _splits, **kwargs: Any) -> tuple[Moments, ...]:
        return _parts(_splits, x, *args, **kwargs)


def _parts(function: Callable[..., tuple[Tensor, ...]], x: Moments, *args: Any, **kwargs: Any) -> tuple[Moments, ...]:
    both = (function(tensor, *args, **kwargs) for tensor in (x.expectation, x.variance))
    return tuple(Moments(*part) for part in zip(*both, strict=True))


@_handles(torch.mean)
def _mean(x: Moments, *args: Any, **kwargs: Any) -> Moments:
    return x.mean(*args, **kwargs)


@_handles(torch.sum)
def _sum(x: Moments, *args: Any, **kwargs: Any) -> Moments:
    return x.sum(*args, **kwargs)


@_handles(torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
def _product(a: Any, b: Any) -> Moments:
    if isinstance(a, Moments) and isinstance(b, Moments):
        raise TypeError(
            "Expected a known matrix in the product with a Gaussian activation, but got another one. Put a spiking "
            "layer before one of them"
        )
    if isinstance(a, Moments):
        return Moments(a.expectation @ b, a.variance @ b.square())
    return Moments(a @ b.expectation, a.square() @ b.variance)


@_handles(Tensor.__rmatmul__)
def _reversed_product(a: Any, b: Any) -> Moments:
    return _product(b, a)


@_handles(torch.sub, Tensor.sub, Tensor.__sub__)
def _subtract(a: Any, b: Any) -> Moments:
    difference: Moments = a - b if isinstance(a, Moments) else -b + a
    return difference


@_handles(torch.rsub, Tensor.__rsub__)
def _subtract_from(a: Any, b: Any) -> Moments:
    return _subtract(b, a)


@_handles(torch.div, torch.true_divide, Tensor.div, Tensor.__truediv__)
def _divide(a: Any, b: Any) -> Moments:
    if not isinstance(a, Moments):
        raise TypeError(
            "`div` by a Gaussian activation has no exact expectation and variance. Put a spiking layer before it"
        )
    quotient: Moments = a / b
    return quotient


@_handles(torch.neg)
def _negate(x: Moments) -> Moments:
    return -x


@_handles(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def _add(a: Any, b: Any) -> Moments:
    return a + b if isinstance(a, Moments) else Moments.__add__(b, a)


@_handles(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def _multiply(a: Any, b: Any) -> Moments:
    return a * b if isinstance(a, Moments) else Moments.__mul__(b, a)


@_handles(torch.cat, torch.concat, torch.concatenate)
def _concatenate(parts: Any, dim: int = 0) -> Moments:
    return _joined(torch.cat, parts, dim)


@_handles(torch.stack)
def _stack(parts: Any, dim: int = 0) -> Moments:
    return _joined(torch.stack, parts, dim)


def _joined(join: Callable[..., Tensor], parts: Any, dim: int) -> Moments:
    if not all(isinstance(part, Moments) for part in parts):
        raise TypeError(
            f"Expected Gaussian activations only in torch.{join.__name__}, but got tensors too. Put a spiking layer "
            "before the Gaussian activations"
        )
    return Moments(join([p.expectation for p in parts], dim), join([p.variance for p in parts], dim))


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
        F.avg_pool2d(x.expectation, kernel_size, stride, padding),
        F.avg_pool2d(x.variance, kernel_size, stride, padding) / area,
    )


@_handles(F.adaptive_avg_pool2d)
def _global_average_pool(x: Moments, output_size: Any) -> Moments:
    if output_size not in (1, (1, 1), [1, 1]):
        raise TypeError(
            f"Expected adaptive_avg_pool2d of a Gaussian activation to have output size 1, but got {output_size}"
        )
    area = x.shape[-1] * x.shape[-2]
    return Moments(F.adaptive_avg_pool2d(x.expectation, 1), F.adaptive_avg_pool2d(x.variance, 1) / area)
