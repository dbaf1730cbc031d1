r"""IW-ST: importance-weighted straight-through gradients of noisy binary units (after Walker et al. 2025, arXiv
2505.17962).

A unit spikes when its standardised pre-activation t exceeds a noise sample, ``x = 1[t + eps > 0]``, so ``P(x = 1) =
F(t)``. One backward pass estimates ``dE[f(x)]/dt = F'(t) (f(1) - f(0))`` by ``w(x, t) f'(x)`` with

.. math:: w(x, t) = F'(t)\,[\lambda + (1 - \lambda) / (2 P(x))] .

lambda = 1 is the straight-through estimator whose surrogate is the noise density (no variance for linear losses);
lambda = 0 is DARN(1/2), ReinMax for logistic noise (no bias for quadratic losses, but a variance that explodes in
saturated units).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_snn.checks import check_between, check_choice

Noise = Literal["gaussian", "logistic"]

_SATURATED = 8.0  # beyond this the density is below 1e-14 and both formulas only lose digits
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def iwst_weight(t: Tensor, spikes: Tensor, lam: float = 0.5, noise: Noise = "gaussian") -> Tensor:
    """The backward weight ``w(x, t)`` of IW-ST(lambda), without any division by a probability.

    Args:
        t: standardised pre-activation, any shape; weights are constant beyond |t| = 8.
        spikes: the samples in {0, 1}, same shape.
        lam: lambda, 1 (straight-through) to 0 (ReinMax, DARN(1/2)); -1 is DARN(mean), for tests.
        noise: "gaussian" (probit units) or "logistic".

    Returns:
        weights of the shape and dtype of `t`, in [0, 4.06] for Gaussian and [0, 1/2] for logistic noise when lambda
        is in [0, 1].
    """
    t = t.clamp(-_SATURATED, _SATURATED)
    if noise == "logistic":
        probability = torch.sigmoid(torch.where(spikes > 0, t, -t))
        return (1 - probability) * (lam * probability + 0.5 * (1 - lam))
    log_density = t.square().mul_(-0.5).sub_(_LOG_SQRT_2PI)
    if lam == 1.0:
        return log_density.exp_()
    inverse_mills = (log_density - torch.special.log_ndtr(torch.where(spikes > 0, t, -t))).exp_()
    return log_density.exp_().mul_(lam).add_(inverse_mills, alpha=0.5 * (1 - lam))


def iwst(t: Tensor, lam: float = 0.5, noise: Noise = "gaussian", generator: torch.Generator | None = None) -> Tensor:
    """Binary samples of noisy units, differentiable by IW-ST(lambda).

    Args:
        t: standardised pre-activation ``(mean - threshold) / standard deviation``, any shape.
        lam: lambda in [-1, 1]; see `iwst_weight`.
        noise: "gaussian", so that ``P(spike) = Phi(t)``, or "logistic", so that ``P(spike) = sigmoid(t)``.
        generator: source of the noise; None is torch's default.

    Returns:
        spikes in {0, 1}, of the shape and dtype of `t`.

    Raises:
        ValueError: if `lam` or `noise` is outside its range.
    """
    check_between("lam", lam, -1.0, 1.0)
    check_choice("noise", noise, ("gaussian", "logistic"))
    return _IWST.apply(t, lam, noise, generator)


class _IWST(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, lam: float, noise: Noise, generator: torch.Generator | None) -> Tensor:
        if noise == "gaussian":
            sample = torch.randn(t.shape, dtype=t.dtype, device=t.device, generator=generator)
        else:
            sample = torch.rand(t.shape, dtype=t.dtype, device=t.device, generator=generator).logit_()
        # compare the noise itself: no probability is computed, so none can round to 0 or 1
        spikes = (sample > -t).to(t.dtype)
        ctx.save_for_backward(t, spikes)
        ctx.lam, ctx.noise = lam, noise
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        t, spikes = ctx.saved_tensors
        wide = torch.promote_types(t.dtype, torch.float32)
        weight = iwst_weight(t.to(wide), spikes, ctx.lam, ctx.noise)
        return (grad * weight).to(t.dtype), None, None, None
