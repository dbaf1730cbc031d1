"""Fixed layers between neurons and the next weights: reshaping, average pooling and max-pooling of spikes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vjp

from lightning_snn.nn.encoders import Complement
from lightning_snn.nn.layer_rules import LayerRules

# lower bound of log-probabilities of silence; such neurons spike with certainty
_MOST_CERTAIN = -40.0


class Signal(NamedTuple):
    """Forward messages.

    Attributes:
        mean: means `[B, ...]`.
        variance: variances `[B, ...]`; None for values that are known, as inputs are.
    """

    mean: Tensor
    variance: Tensor | None


class Feedback(NamedTuple):
    """Backward messages to means x.

    To second order, the log-odds of a spike of probability x are ``score + (x - 1/2) curvature``.

    Attributes:
        score: derivative of the log-evidence with respect to x.
        curvature: minus its second derivative.
    """

    score: Tensor
    curvature: Tensor


class Transform:
    """Base class of the fixed layers of a network.

    Attributes:
        keeps_spikes: whether outputs for spikes are spikes, 0 or 1.
    """

    keeps_spikes = True

    def forward(self, signal: Signal) -> Signal:
        """Return the forward message after this layer."""
        raise NotImplementedError

    def propagate_variance(self, signal: Signal, part: Tensor) -> Tensor:
        """Return a part of the variance after this layer, given the forward message and that part before it."""
        raise NotImplementedError

    def backward(self, signal: Signal, feedback: Feedback) -> Feedback:
        """Return the backward message before this layer, given the forward message there."""
        raise NotImplementedError


class Reshape(Transform):
    """Rearrangement of each sample."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, signal: Signal) -> Signal:
        variance = None if signal.variance is None else self._rearranged(signal.variance)
        return Signal(self._rearranged(signal.mean), variance)

    def propagate_variance(self, signal: Signal, part: Tensor) -> Tensor:
        return self._rearranged(part)

    def backward(self, signal: Signal, feedback: Feedback) -> Feedback:
        return Feedback(*(values.reshape(signal.mean.shape) for values in feedback))

    def _rearranged(self, values: Tensor) -> Tensor:
        rearranged: Tensor = self.module(values)
        return rearranged


class WithComplement(Transform):
    """Inputs x and their complement 1 - x; a spike and its complement would not be independent."""

    def __init__(self, module: Complement) -> None:
        self.module = module

    def forward(self, signal: Signal) -> Signal:
        return Signal(self.module(signal.mean), None)

    def propagate_variance(self, signal: Signal, part: Tensor) -> Tensor:
        return torch.cat([part, part], 1)


class AveragePool(Transform):
    """Averages over windows of one size, whose members are assumed to be independent."""

    keeps_spikes = False

    def __init__(self, module: nn.AvgPool2d | nn.AdaptiveAvgPool2d) -> None:
        self.module = module

    def forward(self, signal: Signal) -> Signal:
        mean = self.module(signal.mean)
        return Signal(mean, None if signal.variance is None else self.propagate_variance(signal, signal.variance))

    def propagate_variance(self, signal: Signal, part: Tensor) -> Tensor:
        mean: Tensor = self.module(part)
        return mean / self._area(part)

    def backward(self, signal: Signal, feedback: Feedback) -> Feedback:
        pull = vjp(self.module, signal.mean)[1]
        (score,), (curvature,) = pull(feedback.score), pull(feedback.curvature)
        return Feedback(score, curvature / self._area(signal.mean))

    def _area(self, x: Tensor) -> int:
        if isinstance(self.module, nn.AdaptiveAvgPool2d):
            return x.shape[-1] * x.shape[-2]
        size = self.module.kernel_size
        return size**2 if isinstance(size, int) else math.prod(size)


class AnySpike(Transform):
    """Max-pooling: a window spikes if any of its members spikes.

    With probabilities p of the members, ``P(window) = 1 - prod(1 - p)``. Both directions are exact for independent
    members. Inputs, which have no variance, are pooled by their largest value.
    """

    def __init__(self, module: nn.MaxPool2d) -> None:
        self.module = module
        self.size, self.stride, self.padding = map(pair, (module.kernel_size, module.stride, module.padding))

    def forward(self, signal: Signal) -> Signal:
        if signal.variance is None:
            return Signal(self.module(signal.mean), None)
        p = -torch.expm1(self._silence(signal.mean)[1])
        return Signal(p, p * (1 - p))

    def propagate_variance(self, signal: Signal, part: Tensor) -> Tensor:
        if signal.variance is None:
            return torch.zeros_like(self.module(part))
        # the derivative of the window's probability by a member's is prod_others (1 - p)
        members, windows = self._silence(signal.mean)
        pooled = F.avg_pool2d(part * torch.exp(-2 * members), self.size, self.stride, self.padding, divisor_override=1)
        silent = torch.exp(windows)
        return (pooled * silent.square()).minimum(silent * (1 - silent))

    def backward(self, signal: Signal, feedback: Feedback) -> Feedback:
        members, windows = self._silence(signal.mean)
        log_odds = feedback.score + (0.5 - torch.exp(windows)) * feedback.curvature
        # log-probabilities that all others of the window are silent, and that one of them spikes
        others = self._patches(members, windows.shape).mul_(-1).add_(windows[:, :, None])
        others.clamp_(max=-torch.finfo(others.dtype).tiny)
        patches = -torch.logaddexp(torch.log(-torch.expm1(others)), others - log_odds[:, :, None])
        back = F.fold(patches.flatten(3).flatten(1, 2), signal.mean.shape[-2:], self.size, 1, self.padding, self.stride)
        return Feedback(back, torch.zeros_like(back))

    def _silence(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of silence of members and windows."""
        members = torch.log1p(-p).clamp_(min=_MOST_CERTAIN)
        return members, F.avg_pool2d(members, self.size, self.stride, self.padding, divisor_override=1)

    def _patches(self, members: Tensor, windows: torch.Size) -> Tensor:
        """Return the members of every window, `[B, C, size, H', W']`."""
        patches = F.unfold(members, self.size, 1, self.padding, self.stride)
        unfolded: Tensor = patches.unflatten(1, (members.shape[1], -1)).unflatten(-1, windows[-2:])
        return unfolded


def pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Return a size as (vertical, horizontal)."""
    vertical, horizontal = size if isinstance(size, tuple) else (size, size)
    return vertical, horizontal


TRANSFORM_RULES: LayerRules[Callable[[Any], Transform]] = LayerRules(
    unknown="only Sequential, Linear, Conv2d, neurons, reshaping, average pooling and MaxPool2d are supported"
)


def register_message_transform(kind: type[nn.Module], transform: Callable[[Any], Transform]) -> None:
    """Set how messages pass layers of a type that have no weights.

    Args:
        kind: the layer type.
        transform: from a layer to its transform.

    Raises:
        TypeError: if `kind` is not a subclass of `nn.Module`.
    """
    TRANSFORM_RULES.register(kind, transform)


def transform_of(module: nn.Module) -> Transform | None:
    """Return the transform of a module, or None for other modules; see `refusals` for options that have none."""
    make = TRANSFORM_RULES.find(module)
    return None if make is None else make(module)


for _kind in (nn.Flatten, nn.Unflatten, nn.Identity):
    register_message_transform(_kind, Reshape)
for _kind in (nn.AvgPool2d, nn.AdaptiveAvgPool2d):
    register_message_transform(_kind, AveragePool)
register_message_transform(nn.MaxPool2d, AnySpike)
register_message_transform(Complement, WithComplement)
