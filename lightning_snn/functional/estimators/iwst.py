r"""IW-ST: importance-weighted straight-through gradients of noisy binary units (after Walker et al. 2025, arXiv
2505.17962).

A unit spikes when its standardized pre-activation t exceeds a noise sample, ``x = 1[t + eps > 0]``, so ``P(x = 1) =
F(t)``. One backward pass estimates ``dE[f(x)]/dt = F'(t) (f(1) - f(0))`` by ``w(x, t) f'(x)`` with

.. math:: w(x, t) = F'(t)\,p(x) / P(x) , \qquad p(x) = \lambda P(x) + (1 - \lambda) / 2 .

The target p weighs the two points where the slope is known. lambda = 1 is the straight-through estimator whose
surrogate is the noise density (no variance for linear losses); lambda = 0 is DARN(1/2), ReinMax for logistic noise (no
bias for quadratic losses, but a variance that explodes in saturated units); lambda = -1 is DARN(mean). Every lambda is
unbiased where the slope does not depend on the unit's own value, and none is for general losses or deep networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from lightning_snn.checks import check_between, check_choice
from lightning_snn.functional.estimators.base import Estimator, Noise, density_, noisy_spikes, saturated, toward_sample


def iwst_weight(t: Tensor, spikes: Tensor, lam: float = 0.5, noise: Noise = "gaussian") -> Tensor:
    """The backward weight ``w(x, t)`` of IW-ST(lambda).

    Args:
        t: standardized pre-activation, any shape; weights are constant beyond |t| = 8 (Gaussian) or 35 (logistic).
        spikes: the samples in {0, 1}, same shape.
        lam: lambda, 1 (straight-through) to 0 (ReinMax, DARN(1/2)); -1 is DARN(mean), for tests.
        noise: "gaussian" (probit units) or "logistic".

    Returns:
        weights of the shape and dtype of `t`, in [0, 4.06] for Gaussian and [0, 1/2] for logistic noise when lambda
        is in [0, 1].
    """
    t = saturated(t, noise)
    if lam == 1.0:
        return density_(t, noise)
    ratio = toward_sample(t, spikes)
    if noise == "logistic":
        other = ratio.mul_(-2).sigmoid_()  # 1 - P(x)
        return other.mul(-lam).add_(0.5 * (1 + lam)).mul_(other)
    # P(x) = erfc / 2, which does not underflow before |t| = 8 and costs a tenth of erfcx or log_ndtr
    ratio.mul_(-math.sqrt(2)).erfc_().reciprocal_()
    return ratio.mul_(1 - lam).add_(lam).mul_(density_(t, noise))


def chi_squared(t: Tensor, lam: float = 0.5, noise: Noise = "gaussian") -> Tensor:
    r"""The variance that IW-ST(lambda) adds to a unit, relative to the square of its gradient for a linear loss.

    .. math:: \chi^2 = \sum_x p(x)^2 / P(x) - 1 = (1 - \lambda)^2 \left[\frac{1}{4 P (1 - P)} - 1\right]

    In a deep and nearly linear network second moments multiply, by 1 plus the mean of this in each layer. Above 10 the
    estimate is little but noise: take a larger lambda, or more noise.

    Args:
        t: standardized pre-activation, any shape; constant beyond |t| = 8 (Gaussian) or 35 (logistic), as the weight.
        lam: lambda in [-1, 1].
        noise: "gaussian" or "logistic".

    Returns:
        the chi-squared distance of each unit, of the shape and dtype of `t`, in [0, 4e14 (1 - lam)^2].

    Raises:
        ValueError: if `lam` or `noise` is outside its range.
    """
    _check(lam, noise)
    t = saturated(t, noise)
    if noise == "logistic":
        return (0.5 * t).sinh_().square_().mul_((1 - lam) ** 2)
    root = t * math.sqrt(0.5)
    variance = root.erfc().mul_((-root).erfc_())  # 4 P (1 - P)
    return root.erf_().square_().div_(variance).mul_((1 - lam) ** 2)


def _check(lam: float, noise: Noise) -> None:
    check_between("lam", lam, -1.0, 1.0)
    check_choice("noise", noise, get_args(Noise))


@dataclass(frozen=True)
class IWST(Estimator):
    """IW-ST(lambda): see `iwst_weight`.

    Args:
        lam: lambda, 1 (straight-through) to 0 (ReinMax, DARN(1/2)); -1 is DARN(mean), for tests.
        noise: "gaussian", so that ``P(spike) = Phi(t)``, or "logistic", so that ``P(spike) = sigmoid(t)``.

    Raises:
        ValueError: if `lam` is not in [-1, 1] or `noise` is another.
    """

    lam: float = 0.5
    noise: Noise = "gaussian"

    def __post_init__(self) -> None:
        _check(self.lam, self.noise)

    def weight(self, t: Tensor, spikes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return iwst_weight(t, spikes, self.lam, self.noise)


def iwst(t: Tensor, lam: float = 0.5, noise: Noise = "gaussian", generator: torch.Generator | None = None) -> Tensor:
    """Binary samples of noisy units, differentiable by IW-ST(lambda).

    Args:
        t: standardized pre-activation ``(mean - threshold) / standard deviation``, any shape.
        lam: lambda in [-1, 1]; see `iwst_weight`.
        noise: "gaussian", so that ``P(spike) = Phi(t)``, or "logistic", so that ``P(spike) = sigmoid(t)``.
        generator: source of the noise; None is torch's default.

    Returns:
        spikes in {0, 1}, of the shape and dtype of `t`.

    Raises:
        ValueError: if `lam` or `noise` is outside its range.
    """
    return noisy_spikes(t, IWST(lam, noise), generator)
