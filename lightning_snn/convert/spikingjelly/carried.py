"""A surrogate of this library as a surrogate function of SpikingJelly; imported with SpikingJelly only."""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based.surrogate import SurrogateFunctionBase, heaviside
from torch import Tensor

from lightning_snn.functional.surrogate import Surrogate


class _CarriedSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        spikes: Tensor = heaviside(x)
        return spikes

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(x), None


class Carried(SurrogateFunctionBase):  # type: ignore[misc]
    """Surrogate function of SpikingJelly with the derivative of a surrogate of this library.

    Args:
        surrogate: the surrogate.

    Example:
        >>> from lightning_snn.functional import Triangular
        >>> Carried(Triangular(2.0))(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0., 1., 1.])
    """

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__(spiking=True, surrogate=surrogate)

    @staticmethod
    def spiking_function(x: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the spikes of a distance to the threshold."""
        spikes: Tensor = _CarriedSpike.apply(x, surrogate)
        return spikes

    @staticmethod
    def primitive_function(x: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the smooth step whose derivative the surrogate is."""
        return surrogate.primitive(x)
