"""Spike nonlinearity and its surrogate derivatives.

A spiking neuron emits ``s = H(v - threshold)``. The derivative of the Heaviside step is 0 almost everywhere, so the
backward pass uses ``k((v - threshold) / width)``, where ``k`` is a bump of height 1. With the default width, the bump
integrates to 1: the surrogate is the density of a threshold noise, and its `primitive` is a smooth step from 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_snn.checks import check_positive


def propagate_nan(spikes: Tensor, source: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the spikes, and NaN where `source` is NaN.

    A comparison with NaN is false, so a corrupt input would look like a silent neuron. One operation restores it:
    clamping any number, infinities included, from below and above to the spike gives the spike, and clamping NaN gives
    NaN.

    Args:
        spikes: result of a comparison, any shape.
        source: the compared values, of the same shape.
        out: tensor to write the result to, `spikes` itself for an operation in place; None returns a new tensor.

    Returns:
        a tensor of the shape and dtype of `spikes`.

    Example:
        >>> membrane = torch.tensor([0.5, 1.5, torch.nan])
        >>> propagate_nan((membrane > 1).float(), membrane)
        tensor([0., 1., nan])
    """
    return torch.clamp(source.to(spikes.dtype), spikes, spikes, out=out)


class Surrogate:
    """Base class of surrogate derivatives: a hard spike in the forward pass, a bump in the backward pass.

    To add a surrogate, write a frozen dataclass that defines `derivative_` and `primitive`.
    """

    def spike(self, membrane: Tensor, threshold: float | Tensor, out: Tensor | None = None) -> Tensor:
        """Return the spikes ``H(membrane - threshold)``, NaN where membrane potential or threshold are NaN.

        Args:
            membrane: membrane potential, any shape.
            threshold: firing threshold, a number or a tensor that broadcasts to `membrane`.
            out: tensor to write the spikes to; None returns a new tensor.

        Returns:
            spikes in {0, 1} or NaN of the shape of `membrane`, in its dtype or that of `out`.

        Example:
            >>> ArcTangent().spike(torch.tensor([0.5, 1.5, torch.inf, torch.nan]), threshold=1.0)
            tensor([0., 1., 1., nan])
        """
        return propagate_nan(
            self.fire(membrane, threshold, out),
            membrane - threshold if isinstance(threshold, Tensor) else membrane,
            out,
        )

    def fire(self, membrane: Tensor, threshold: float | Tensor, out: Tensor | None = None) -> Tensor:
        """Return the result of the comparison ``membrane > threshold``, which is 0 for NaN.

        Scans call it at every step and restore NaN for a block of steps at once, see `propagate_nan`. Arguments are
        those of `spike`.
        """
        if out is None:
            return (membrane > threshold).to(membrane.dtype)
        return torch.gt(membrane, threshold, out=out)

    def derivative_(self, distance: Tensor) -> Tensor:
        """Compute the bump ``k(distance / width)`` in place, where distance is ``membrane - threshold``."""
        raise NotImplementedError(f"{type(self).__name__} defines no derivative_")

    def derivative(self, distance: Tensor) -> Tensor:
        """Return the bump ``k(distance / width)`` in a new tensor."""
        return self.derivative_(distance.clone())

    def primitive(self, distance: Tensor) -> Tensor:
        """Return the smooth step whose derivative is the bump; it is 1/2 at distance 0."""
        raise NotImplementedError(f"{type(self).__name__} defines no primitive")


@dataclass(frozen=True)
class _Bump(Surrogate):
    """Surrogate with a width.

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
    """Derivative of the fast sigmoid, ``k(z) = 1 / (1 + |z|)^2`` (after Zenke & Ganguli 2018).

    The `slope` of snntorch is ``1 / width``.

    Example:
        >>> FastSigmoid().derivative(torch.tensor([0.0, 0.5]))
        tensor([1.0000, 0.2500])
    """

    width: float = 0.5

    def derivative_(self, distance: Tensor) -> Tensor:
        return distance.div_(self.width).abs_().add_(1).square_().reciprocal_()

    def primitive(self, distance: Tensor) -> Tensor:
        z = distance / self.width
        return 0.5 + self.width * z / (1 + z.abs())


@dataclass(frozen=True)
class ArcTangent(_Bump):
    """Derivative of the arctangent, ``k(z) = 1 / (1 + z^2)`` (after Fang et al. 2021).

    The default width is equivalent to ``alpha = 2`` of other libraries.

    Example:
        >>> ArcTangent(width=0.5).derivative(torch.tensor([0.0, 0.5]))
        tensor([1.0000, 0.5000])
    """

    width: float = 1 / math.pi

    def derivative_(self, distance: Tensor) -> Tensor:
        return distance.div_(self.width).square_().add_(1).reciprocal_()

    def primitive(self, distance: Tensor) -> Tensor:
        return 0.5 + self.width * torch.atan(distance / self.width)


@dataclass(frozen=True)
class Sigmoid(_Bump):
    """Derivative of the sigmoid, ``k(z) = 4 p (1 - p)`` with ``p = sigmoid(z)``.

    The `alpha` of SpikingJelly is ``1 / width``.

    Example:
        >>> Sigmoid().derivative(torch.tensor([0.0, 0.25]))
        tensor([1.0000, 0.7864])
    """

    width: float = 0.25

    def derivative_(self, distance: Tensor) -> Tensor:
        # 4 (p - p^2) at -|z| needs no second buffer and is exact in the tails; tanh would take three times as long
        p = distance.abs_().div_(-self.width).sigmoid_()
        return p.addcmul_(p, p, value=-1).mul_(4)

    def derivative(self, distance: Tensor) -> Tensor:
        if not distance.requires_grad:
            return super().derivative(distance)
        # second derivatives need p, which the product in place overwrites
        p = torch.sigmoid(-distance.abs() / self.width)
        return 4 * (p - p * p)

    def primitive(self, distance: Tensor) -> Tensor:
        return 0.5 + 4 * self.width * (torch.sigmoid(distance / self.width) - 0.5)


@dataclass(frozen=True)
class Triangular(_Bump):
    """Triangular bump, ``k(z) = max(0, 1 - |z|)`` (after Esser et al. 2016; Bellec et al. 2018).

    Example:
        >>> Triangular().derivative(torch.tensor([0.0, 0.25, 2.0]))
        tensor([1.0000, 0.7500, 0.0000])
    """

    width: float = 1.0

    def derivative_(self, distance: Tensor) -> Tensor:
        return distance.div_(self.width).abs_().neg_().add_(1).clamp_(min=0)

    def primitive(self, distance: Tensor) -> Tensor:
        z = (distance / self.width).clamp(-1, 1)
        return 0.5 + self.width * (z - 0.5 * z * z.abs())


@dataclass(frozen=True)
class Smooth(Surrogate):
    """Spike function that emits the smooth step itself, so its gradient is exact. Use it for gradient checks.

    Args:
        surrogate: surrogate whose `primitive` is the output.

    Example:
        >>> Smooth(Triangular()).spike(torch.tensor([0.5, 1.0, 1.5]), threshold=1.0)
        tensor([0.1250, 0.5000, 0.8750])
    """

    surrogate: Surrogate = ArcTangent()

    def fire(self, membrane: Tensor, threshold: float | Tensor, out: Tensor | None = None) -> Tensor:
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
    """Return the surrogate of that name with its default width, or `surrogate` itself if it is a `Surrogate`.

    Raises:
        ValueError: if the name is not one of `SURROGATES`.

    Example:
        >>> surrogate_named("fast_sigmoid")
        FastSigmoid(width=0.5)
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    if surrogate not in SURROGATES:
        raise ValueError(
            f"Expected argument `surrogate` to be a Surrogate or one of {sorted(SURROGATES)}, but got {surrogate!r}"
        )
    return SURROGATES[surrogate]()
