"""The spike nonlinearity and the surrogate derivatives that stand in for its own.

A spiking neuron emits ``s = H(v - threshold)``. The Heaviside step has no useful derivative, so the backward pass uses
``k((v - threshold) / width)`` with a bump ``k`` of height 1. Every default width makes the bump integrate to 1: the
surrogate is then the density of a threshold noise, and its `primitive` a smooth step from 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_snn.checks import check_positive


class Surrogate:
    """Base of the surrogate derivatives: a hard spike forwards, a bump backwards.

    A new surrogate is a frozen dataclass that defines `derivative_` and `primitive`; nothing else in the library
    knows their shapes.
    """

    def spike(self, membrane: Tensor, threshold: float | Tensor, out: Tensor | None = None) -> Tensor:
        """Spikes ``H(membrane - threshold)`` in {0, 1}, of the shape and dtype of `membrane`, or written to `out`."""
        if out is None:
            return (membrane > threshold).to(membrane.dtype)
        return torch.gt(membrane, threshold, out=out)

    def derivative_(self, distance: Tensor) -> Tensor:
        """The bump ``k(distance / width)``, written over `distance`."""
        raise NotImplementedError(f"{type(self).__name__} defines no derivative_")

    def derivative(self, distance: Tensor) -> Tensor:
        """The bump ``k(distance / width)``, a new tensor."""
        return self.derivative_(distance.clone())

    def primitive(self, distance: Tensor) -> Tensor:
        """The smooth step whose derivative is the bump; 1/2 at distance 0."""
        raise NotImplementedError(f"{type(self).__name__} defines no primitive")


@dataclass(frozen=True)
class _Bump(Surrogate):
    """A surrogate with a width.

    Args:
        width: scale of the bump in units of the membrane potential, larger than 0.

    Raises:
        ValueError: if `width` is not a finite number larger than 0.
    """

    width: float

    def __post_init__(self) -> None:
        check_positive("width", self.width)


@dataclass(frozen=True)
class FastSigmoid(_Bump):
    """``k(z) = 1 / (1 + |z|)^2`` (after Zenke & Ganguli 2018). snntorch's `slope` is ``1 / width``."""

    width: float = 0.5

    def derivative_(self, distance: Tensor) -> Tensor:
        return distance.div_(self.width).abs_().add_(1).square_().reciprocal_()

    def primitive(self, distance: Tensor) -> Tensor:
        z = distance / self.width
        return 0.5 + self.width * z / (1 + z.abs())


@dataclass(frozen=True)
class ArcTangent(_Bump):
    """``k(z) = 1 / (1 + z^2)`` (after Fang et al. 2021). The default width is ``alpha = 2`` of other libraries."""

    width: float = 1 / math.pi

    def derivative_(self, distance: Tensor) -> Tensor:
        return distance.div_(self.width).square_().add_(1).reciprocal_()

    def primitive(self, distance: Tensor) -> Tensor:
        return 0.5 + self.width * torch.atan(distance / self.width)


@dataclass(frozen=True)
class Sigmoid(_Bump):
    """``k(z) = 4 p (1 - p)`` with ``p = sigmoid(z)``. SpikingJelly's `alpha` is ``1 / width``."""

    width: float = 0.25

    def derivative_(self, distance: Tensor) -> Tensor:
        # 4 (p - p^2) at -|z| needs no second buffer and is exact in the tails; by tanh it takes three times as long
        p = distance.abs_().div_(-self.width).sigmoid_()
        return torch.addcmul(p, p, p, value=-1, out=p).mul_(4)

    def primitive(self, distance: Tensor) -> Tensor:
        return 0.5 + 4 * self.width * (torch.sigmoid(distance / self.width) - 0.5)


@dataclass(frozen=True)
class Triangular(_Bump):
    """``k(z) = max(0, 1 - |z|)`` (after Esser et al. 2016; Bellec et al. 2018)."""

    width: float = 1.0

    def derivative_(self, distance: Tensor) -> Tensor:
        return distance.div_(self.width).abs_().neg_().add_(1).clamp_(min=0)

    def primitive(self, distance: Tensor) -> Tensor:
        z = (distance / self.width).clamp(-1, 1)
        return 0.5 + self.width * (z - 0.5 * z * z.abs())


@dataclass(frozen=True)
class Smooth(Surrogate):
    """A neuron that emits the smooth step itself, so that its gradient is exact: for gradient checks and for analysis.

    Args:
        surrogate: the surrogate whose `primitive` becomes the output.
    """

    surrogate: Surrogate = ArcTangent()

    def spike(self, membrane: Tensor, threshold: float | Tensor, out: Tensor | None = None) -> Tensor:
        smooth = self.surrogate.primitive(membrane - threshold)
        return smooth if out is None else out.copy_(smooth)

    def derivative_(self, distance: Tensor) -> Tensor:
        return self.surrogate.derivative_(distance)

    def primitive(self, distance: Tensor) -> Tensor:
        return self.surrogate.primitive(distance)


SurrogateName = Literal["arctangent", "fast_sigmoid", "sigmoid", "triangular"]

SURROGATES: dict[str, type[Surrogate]] = {
    "arctangent": ArcTangent,
    "fast_sigmoid": FastSigmoid,
    "sigmoid": Sigmoid,
    "triangular": Triangular,
}


def surrogate_named(surrogate: SurrogateName | Surrogate) -> Surrogate:
    """The surrogate of that name with its default width; a `Surrogate` passes through.

    Raises:
        ValueError: if the name is not one of `SURROGATES`.
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    if surrogate not in SURROGATES:
        raise ValueError(
            f"Expected argument `surrogate` to be a Surrogate or one of {sorted(SURROGATES)}, but got {surrogate!r}"
        )
    return SURROGATES[surrogate]()
