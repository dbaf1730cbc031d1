"""Surrogate derivatives of snntorch, which are functions that hold their settings, and those of this library."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.convert.surrogates import Laplace, Scaled, StraightThrough, scaled
from lightning_snn.functional.surrogate import ArcTangent, FastSigmoid, Sigmoid, Surrogate

_SUPPORTED = "atan, fast_sigmoid, sigmoid, spike_rate_escape and straight_through_estimator"


class Derivative:
    """A surrogate as `snntorch.surrogate.custom_surrogate` takes it.

    Args:
        surrogate: the surrogate.

    Example:
        >>> Derivative(FastSigmoid())(torch.tensor([0.0, 0.5]), torch.ones(2), None)
        tensor([1.0000, 0.2500])
    """

    def __init__(self, surrogate: Surrogate) -> None:
        self.surrogate = surrogate

    def __call__(self, distance: Tensor, gradient: Tensor, spikes: Tensor | None) -> Tensor:
        """Return the gradient of the distance from the one of the spikes."""
        return gradient * self.surrogate.derivative(distance)


def from_spike_grad(function: Callable[..., Any]) -> Surrogate:
    """Return the surrogate with the derivative of a function of `snntorch.surrogate`.

    Raises:
        Unconvertible: if the function is another one.
    """
    name, held = _made_by(function)
    if name == "atan":
        return scaled(ArcTangent(2 / (math.pi * held["alpha"])), held["alpha"] / 2)
    if name == "fast_sigmoid":
        return FastSigmoid(1 / held["slope"])
    if name == "sigmoid":
        return scaled(Sigmoid(1 / held["slope"]), held["slope"] / 4)
    if name == "spike_rate_escape":
        return scaled(Laplace(1 / held["beta"], center=1.0), held["slope"])
    if name == "straight_through_estimator":
        return StraightThrough()
    if name == "custom_surrogate" and isinstance(held["func"], Derivative):
        return held["func"].surrogate
    if getattr(function, "__name__", "") == "_surrogate_bypass":
        raise Unconvertible("surrogate_disable=True leaves its spikes without a gradient: set it to False")
    raise Unconvertible(
        f"its surrogate {name or repr(function)} has no counterpart: set `layer.spike_grad` to one of snntorch's "
        f"{_SUPPORTED}, or convert with that and set `layer.surrogate` to a `lightning_snn.functional.Surrogate`"
    )


def to_spike_grad(surrogate: Surrogate) -> Callable[[Tensor], Tensor]:
    """Return a function of `snntorch.surrogate` with the derivative of a surrogate."""
    from snntorch import surrogate as peer

    plain, height = (surrogate.surrogate, surrogate.height) if isinstance(surrogate, Scaled) else (surrogate, 1.0)
    made: Callable[[Tensor], Tensor] | None = None
    if type(plain) is FastSigmoid:
        made = peer.fast_sigmoid(1 / plain.width)
    elif type(plain) is ArcTangent:
        made = peer.atan(2 / (math.pi * plain.width))
    elif type(plain) is Sigmoid:
        made = peer.sigmoid(1 / plain.width)
    elif type(plain) is Laplace and plain.center == 1:
        made = peer.spike_rate_escape(1 / plain.width, height)
    elif type(plain) is StraightThrough:
        made = peer.straight_through_estimator()
    if made is not None and _same(from_spike_grad(made), surrogate):
        return made
    custom: Callable[[Tensor], Tensor] = peer.custom_surrogate(Derivative(surrogate))
    return custom


def _same(one: Surrogate, other: Surrogate) -> bool:
    """Return whether two surrogates agree but for the rounding of a width that was inverted twice."""
    if isinstance(one, Scaled) and isinstance(other, Scaled):
        return math.isclose(one.height, other.height, rel_tol=1e-12) and _same(one.surrogate, other.surrogate)
    numbers = [vars(each) for each in (one, other)]
    return type(one) is type(other) and all(
        math.isclose(value, numbers[1][name], rel_tol=1e-12) for name, value in numbers[0].items()
    )


def _made_by(function: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of the function of `snntorch.surrogate` that made a spike function, and what it holds."""
    if getattr(function, "__module__", "") != "snntorch.surrogate" or not inspect.isfunction(function):
        return "", {}
    return function.__qualname__.partition(".")[0], dict(inspect.getclosurevars(function).nonlocals)
