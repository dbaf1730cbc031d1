"""What may stand between neurons and the next weights: reshaping, average pooling, and pooling by any spike."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vjp

from lightning_snn.nn.encoders import Complement

# log-probabilities of silence are held above this; such neurons spike for certain as it is
_MOST_CERTAIN = -40.0


class Signal(NamedTuple):
    """What travels forward: means and variances `[B, ...]`; no variances where values are given, as inputs are."""

    mean: Tensor
    variance: Tensor | None


class Feedback(NamedTuple):
    """What travels backward to means x: the derivative of the log-evidence, and minus its second derivative, so that to
    second order the log-odds of a spike of probability x are ``score + (x - 1/2) curvature``."""

    score: Tensor
    curvature: Tensor


class Transform:
    """Base of the fixed stages of a network.

    Attributes:
        keeps_spikes: whether spikes stay spikes, 0 or 1.
    """

    keeps_spikes = True

    def forward(self, signal: Signal) -> Signal:
        """The signal behind this stage."""
        raise NotImplementedError

    def spread(self, signal: Signal, part: Tensor) -> Tensor:
        """A part of the variance behind this stage, given the signal and that part in front of it."""
        raise NotImplementedError

    def backward(self, signal: Signal, feedback: Feedback) -> Feedback:
        """The feedback in front of this stage, given the signal there."""
        raise NotImplementedError


class Reshape(Transform):
    """A rearrangement of each sample."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, signal: Signal) -> Signal:
        return Signal(self.module(signal.mean), None if signal.variance is None else self.module(signal.variance))

    def spread(self, signal: Signal, part: Tensor) -> Tensor:
        return self.module(part)

    def backward(self, signal: Signal, feedback: Feedback) -> Feedback:
        return Feedback(*(values.reshape(signal.mean.shape) for values in feedback))


class WithComplement(Transform):
    """Given inputs and what they lack of 1; of spikes, which are not given, the two would not be independent."""

    def __init__(self, module: Complement) -> None:
        self.module = module

    def forward(self, signal: Signal) -> Signal:
        return Signal(self.module(signal.mean), None)

    def spread(self, signal: Signal, part: Tensor) -> Tensor:
        return torch.cat([part, part], 1)


class AveragePool(Transform):
    """Averages over windows of one size; members are taken as independent."""

    keeps_spikes = False

    def __init__(self, module: nn.AvgPool2d | nn.AdaptiveAvgPool2d) -> None:
        self.module = module

    def forward(self, signal: Signal) -> Signal:
        mean = self.module(signal.mean)
        return Signal(mean, None if signal.variance is None else self.spread(signal, signal.variance))

    def spread(self, signal: Signal, part: Tensor) -> Tensor:
        return self.module(part) / self._area(part)

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
    """Max-pooling: a window spikes where any of its members does.

    With probabilities p of the members, ``P(window) = 1 - prod(1 - p)``; both directions are exact for independent
    members. Given inputs, which have no variance, are pooled by their largest value.
    """

    def __init__(self, module: nn.MaxPool2d) -> None:
        self.module = module
        self.size, self.stride, self.padding = map(pair, (module.kernel_size, module.stride, module.padding))

    def forward(self, signal: Signal) -> Signal:
        if signal.variance is None:
            return Signal(self.module(signal.mean), None)
        p = -torch.expm1(self._silence(signal.mean)[1])
        return Signal(p, p * (1 - p))

    def spread(self, signal: Signal, part: Tensor) -> Tensor:
        if signal.variance is None:
            return torch.zeros_like(self.module(part))
        # by the slope prod_others (1 - p) of the window's probability in each member's
        members, windows = self._silence(signal.mean)
        pooled = F.avg_pool2d(part * torch.exp(-2 * members), self.size, self.stride, self.padding, divisor_override=1)
        silent = torch.exp(windows)
        return (pooled * silent.square()).minimum(silent * (1 - silent))

    def backward(self, signal: Signal, feedback: Feedback) -> Feedback:
        members, windows = self._silence(signal.mean)
        log_odds = feedback.score + (0.5 - torch.exp(windows)) * feedback.curvature
        # log-probability that the others of the window are silent, and that one of them is not
        others = self._patches(members, windows.shape).mul_(-1).add_(windows[:, :, None])
        others.clamp_(max=-torch.finfo(others.dtype).tiny)
        patches = -torch.logaddexp(torch.log(-torch.expm1(others)), others - log_odds[:, :, None])
        back = F.fold(patches.flatten(3).flatten(1, 2), signal.mean.shape[-2:], self.size, 1, self.padding, self.stride)
        return Feedback(back, torch.zeros_like(back))

    def _silence(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of silence of the members and of the windows."""
        members = torch.log1p(-p).clamp_(min=_MOST_CERTAIN)
        return members, F.avg_pool2d(members, self.size, self.stride, self.padding, divisor_override=1)

    def _patches(self, members: Tensor, windows: torch.Size) -> Tensor:
        """Members of every window, `[B, C, size, H', W']`."""
        patches = F.unfold(members, self.size, 1, self.padding, self.stride)
        return patches.unflatten(1, (members.shape[1], -1)).unflatten(-1, windows[-2:])


def pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """A size as (vertical, horizontal)."""
    vertical, horizontal = size if isinstance(size, tuple) else (size, size)
    return vertical, horizontal


def transform_of(module: nn.Module) -> Transform | None:
    """The stage that a module stands for, None for other modules.

    Raises:
        ValueError: for pooling with windows of several sizes, or with options that change what is pooled.
    """
    if isinstance(module, (nn.Flatten, nn.Unflatten, nn.Identity)):
        return Reshape(module)
    if isinstance(module, Complement):
        return WithComplement(module)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        if module.output_size not in (1, (1, 1), [1, 1]):
            raise ValueError(f"Expected windows of one size, but got output size {module.output_size}")
        return AveragePool(module)
    if isinstance(module, nn.AvgPool2d):
        if (
            module.ceil_mode
            or module.divisor_override is not None
            or (not module.count_include_pad and any(pair(module.padding)))
        ):
            raise ValueError("Expected windows of one size: no ceil_mode, no divisor_override, count_include_pad=True")
        return AveragePool(module)
    if isinstance(module, nn.MaxPool2d):
        if module.ceil_mode or module.return_indices or module.dilation not in (1, (1, 1)):
            raise ValueError("Expected max-pooling without ceil_mode, return_indices and dilation")
        return AnySpike(module)
    return None
