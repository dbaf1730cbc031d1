"""Gaussian currents that are drawn, and the spikes that they cause with the gradient of an estimator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_snn.functional.estimators import Estimator
from lightning_snn.functional.scans.noisy_loop import VARIANCE_FLOOR


def drawn_current(
    mean: Tensor, variance: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a Gaussian current ``mean + std * e`` that is white in time.

    Args:
        mean: mean of the current, `[T, B, ...]`, float32 or wider.
        variance: its variance, of the same shape, at least 0.
        generator: source of the noise; None is torch's default. One step is drawn after the other.

    Returns:
        the current, its standard deviation and the standard normal draws e, each of the shape of `mean`; current and
        standard deviation are differentiable.

    Example:
        >>> current, std, draws = drawn_current(torch.zeros(2, 1, 3), torch.full((2, 1, 3), 4.0))
        >>> bool(torch.allclose(current, std * draws))
        True
    """
    std = (variance + VARIANCE_FLOOR).sqrt()
    step = torch.empty_like(mean[0])
    # drawn through a flat view: a generator fills a channels-last tensor four times slower
    flat = mean.new_empty(len(mean), step.numel())
    for row in flat:
        row.normal_(generator=generator)
    draws = flat.neg_().as_strided(mean.shape, (step.numel(), *step.stride()))
    return torch.addcmul(mean, std, draws), std, draws


def noisy_spike(z: Tensor, spikes: Tensor, estimator: Estimator, generator: torch.Generator | None = None) -> Tensor:
    """Return spikes that were drawn, with the gradient of an estimator to their standardized distance.

    Args:
        z: expected distance to the threshold over its standard deviation, float32 or wider.
        spikes: the drawn spikes in {0, 1}, of the shape of `z`.
        estimator: of the gradient, for Gaussian noise.
        generator: source of randomness of a `random` estimator; None is torch's default.

    Example:
        >>> from lightning_snn.functional.estimators import IWST
        >>> z = torch.zeros(1, requires_grad=True)
        >>> noisy_spike(z, torch.ones(1), IWST(1.0)).backward()
        >>> z.grad  # the density of the noise
        tensor([0.3989])
    """
    fired: Tensor = _NoisySpike.apply(z, spikes, estimator, generator)
    return fired


class _NoisySpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, spikes: Tensor, estimator: Estimator, generator: torch.Generator | None) -> Tensor:
        ctx.estimator = estimator
        if estimator.random:  # its weight belongs to the draw
            ctx.save_for_backward(estimator.weight(z, spikes, generator))
        else:
            ctx.save_for_backward(z, spikes)
        return spikes.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        saved = ctx.saved_tensors
        weight = saved[0] if ctx.estimator.random else ctx.estimator.weight(*saved)
        return grad * weight, None, None, None
