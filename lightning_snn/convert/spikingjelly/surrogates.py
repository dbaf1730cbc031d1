"""Surrogate functions of SpikingJelly and those of this library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.convert.surrogates import Gaussian, Laplace, scaled
from lightning_snn.functional.surrogate import ArcTangent, FastSigmoid, Sigmoid, Surrogate, Triangular

_PACKAGE = "spikingjelly.activation_based.surrogate"
_CARRIED = "lightning_snn.convert.spikingjelly.carried"
_BY_NAME: dict[str, Callable[[float], Surrogate]] = {
    "ATan": lambda alpha: scaled(ArcTangent(2 / (math.pi * alpha)), alpha / 2),
    "Erf": lambda alpha: scaled(Gaussian(1 / alpha), alpha / math.sqrt(math.pi)),
    "PiecewiseExp": lambda alpha: scaled(Laplace(1 / alpha), alpha / 2),
    "PiecewiseQuadratic": lambda alpha: scaled(Triangular(1 / alpha), alpha),
    "Sigmoid": lambda alpha: scaled(Sigmoid(1 / alpha), alpha / 4),
    "SoftSign": lambda alpha: scaled(FastSigmoid(1 / alpha), alpha / 2),
    "SuperSpike": lambda alpha: scaled(FastSigmoid(1.0), alpha),
}


def from_surrogate_function(function: Any) -> Surrogate:
    """Return the surrogate with the derivative of a surrogate function of SpikingJelly.

    Raises:
        Unconvertible: if the function has no counterpart, or its output is not a spike.
    """
    kind = type(function)
    if not getattr(function, "spiking", True):
        raise Unconvertible("its output is smooth: call `surrogate_function.set_spiking_mode(True)`")
    if kind.__module__ == _CARRIED:
        carried: Surrogate = function.surrogate
        return carried
    if kind.__module__ == _PACKAGE and kind.__name__ in _BY_NAME:
        return _BY_NAME[kind.__name__](function.alpha)
    raise Unconvertible(
        f"its surrogate function {kind.__name__} has no counterpart: set `layer.surrogate_function` to one of "
        f"{', '.join(_BY_NAME)}, or convert with that and set `layer.surrogate` to a "
        "`lightning_snn.functional.Surrogate`"
    )


def to_surrogate_function(surrogate: Surrogate) -> nn.Module:
    """Return a surrogate function of SpikingJelly with the derivative of a surrogate."""
    from spikingjelly.activation_based import surrogate as peer

    from lightning_snn.convert.spikingjelly.carried import Carried

    width = getattr(surrogate, "width", None)
    if width is not None:
        alpha = 2 / (math.pi * width) if type(surrogate) is ArcTangent else 1 / width
        for name, counterpart in _BY_NAME.items():
            made = counterpart(alpha)
            if type(made) is type(surrogate) and math.isclose(made.width, width, rel_tol=1e-12):  # type: ignore[attr-defined]
                found: nn.Module = getattr(peer, name)(alpha)
                return found
    return Carried(surrogate)
