"""Surrogate derivatives of snntorch and SpikingJelly that those of `lightning_snn.functional` do not cover.

The bumps of `lightning_snn.functional` have height 1. Those of other libraries have the same forms, but often another
height, which scales gradients layer by layer. `Scaled` carries it. Scans with a surrogate of this module run in the
loop, not in the kernels, which know the surrogates of `lightning_snn.functional`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_snn.checks import check_positive
from lightning_snn.functional.surrogate import Surrogate


@dataclass(frozen=True)
class Scaled(Surrogate):
    """A surrogate with its derivative times a constant.

    Args:
        surrogate: the surrogate.
        height: the factor, larger than 0.

    Raises:
        ValueError: if `height` is not a finite number larger than 0.

    Example:
        >>> from lightning_snn.functional import ArcTangent
        >>> Scaled(ArcTangent(width=0.5), height=2.0).derivative(torch.tensor([0.0, 0.5]))
        tensor([2., 1.])
    """

    surrogate: Surrogate
    height: float

    def __post_init__(self) -> None:
        check_positive("height", self.height)

    def derivative_(self, distance: Tensor) -> Tensor:
        return self.surrogate.derivative_(distance).mul_(self.height)

    def derivative(self, distance: Tensor) -> Tensor:
        return self.surrogate.derivative(distance) * self.height

    def primitive(self, distance: Tensor) -> Tensor:
        return 0.5 + self.height * (self.surrogate.primitive(distance) - 0.5)


def scaled(surrogate: Surrogate, height: float) -> Surrogate:
    """Return a surrogate with its derivative times `height`, itself if that is 1 to within rounding.

    Example:
        >>> from lightning_snn.functional import ArcTangent
        >>> scaled(Scaled(ArcTangent(), 2.0), 0.5)
        ArcTangent(width=0.3183098861837907)
    """
    if isinstance(surrogate, Scaled):
        return scaled(surrogate.surrogate, surrogate.height * height)
    return surrogate if math.isclose(height, 1.0, rel_tol=1e-12) else Scaled(surrogate, height)


@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """Derivative 1 everywhere (snntorch's `straight_through_estimator`).

    Example:
        >>> StraightThrough().derivative(torch.tensor([-3.0, 0.5]))
        tensor([1., 1.])
    """

    def derivative_(self, distance: Tensor) -> Tensor:
        return distance.zero_().add_(1)

    def derivative(self, distance: Tensor) -> Tensor:
        return torch.ones_like(distance)

    def primitive(self, distance: Tensor) -> Tensor:
        return 0.5 + distance


@dataclass(frozen=True)
class Laplace(Surrogate):
    """Two-sided exponential, ``exp(-|distance - center| / width)`` (SpikingJelly's PiecewiseExp).

    snntorch's `spike_rate_escape` has its center at 1.

    Args:
        width: scale, in units of the membrane potential.
        center: distance from the threshold at which the derivative is 1.

    Raises:
        ValueError: if `width` is not a finite number larger than 0.

    Example:
        >>> Laplace().derivative(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 0.3679])
    """

    width: float = 1.0
    center: float = 0.0

    def __post_init__(self) -> None:
        check_positive("width", self.width)

    def derivative_(self, distance: Tensor) -> Tensor:
        return distance.sub_(self.center).abs_().div_(-self.width).exp_()

    def primitive(self, distance: Tensor) -> Tensor:
        at = distance - self.center
        rise = self.width * at.sign() * (1 - torch.exp(-at.abs() / self.width))
        zero = self.width * math.copysign(1 - math.exp(-abs(self.center) / self.width), -self.center)
        return 0.5 + rise - zero


@dataclass(frozen=True)
class Gaussian(Surrogate):
    """Bell curve, ``exp(-(distance / width)^2)`` (SpikingJelly's Erf).

    Args:
        width: scale, in units of the membrane potential.

    Raises:
        ValueError: if `width` is not a finite number larger than 0.

    Example:
        >>> Gaussian().derivative(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 0.3679])
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        check_positive("width", self.width)

    def derivative_(self, distance: Tensor) -> Tensor:
        return distance.div_(self.width).square_().neg_().exp_()

    def primitive(self, distance: Tensor) -> Tensor:
        return 0.5 + self.width * math.sqrt(math.pi) / 2 * torch.erf(distance / self.width)


def rescaled(surrogate: Surrogate, factor: float) -> Surrogate:
    """Return the surrogate of membrane potentials that are all multiplied by `factor`.

    Widths grow by it and the height falls, so a gradient to the input that was multiplied, too, is the same.

    Example:
        >>> from lightning_snn.functional import ArcTangent
        >>> rescaled(ArcTangent(width=0.5), 2.0)
        Scaled(surrogate=ArcTangent(width=1.0), height=0.5)
    """
    if factor == 1:
        return surrogate
    if isinstance(surrogate, Scaled):
        return scaled(rescaled(surrogate.surrogate, factor), surrogate.height)
    lengths = {name: value * factor for name, value in vars(surrogate).items()}
    return scaled(type(surrogate)(**lengths), 1 / factor)
