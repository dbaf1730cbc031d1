r"""IW-ST: importance-weighted straight-through gradients of noisy binary units.

A unit spikes when its standardized pre-activation t exceeds a noise sample, ``x = 1[t + eps > 0]``, so ``P(x = 1) =
F(t)``. One backward pass estimates ``dE[f(x)]/dt = F'(t) (f(1) - f(0))`` by ``w(x, t) f'(x)`` with

.. math:: w(x, t) = F'(t)\,p(x) / P(x) , \qquad p(x) = \lambda P(x) + (1 - \lambda) / 2 .

The target p weights the two points where the slope is known. lambda = 1 is the straight-through estimator whose
surrogate is the noise density; it has no variance for linear losses. lambda = 0 is DARN(1/2), which is ReinMax for
logistic noise; it has no bias for quadratic losses, but its variance explodes in saturated units. lambda = -1 is
DARN(mean). Every lambda is unbiased if the slope does not depend on the value of the unit itself. None is unbiased for
general losses or deep networks.

After Walker et al. 2025, arXiv 2505.17962.
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
    """Return the backward weight ``w(x, t)`` of IW-ST(lambda).

    Args:
        t: standardized pre-activation, any shape; weights are constant beyond ``|t| = 8`` (Gaussian) or 35 (logistic).
        spikes: samples in {0, 1}, of the same shape.
        lam: lambda, from 1 (straight-through) to 0 (ReinMax, DARN(1/2)); -1 is DARN(mean), for tests.
        noise: "gaussian" (probit units) or "logistic".

    Returns:
        weights of the shape and dtype of `t`. For lambda in [0, 1] they are in [0, 4.06] for Gaussian and in [0, 1/2]
        for logistic noise.

    Example:
        >>> iwst_weight(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]), lam=0.0, noise="logistic")
        tensor([0.2500, 0.4404])
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
    r"""Compute the variance of IW-ST(lambda) per unit, relative to its squared gradient for a linear loss.

    .. math:: \chi^2 = \sum_x p(x)^2 / P(x) - 1 = (1 - \lambda)^2 \left[\frac{1}{4 P (1 - P)} - 1\right]

    In a deep, nearly linear network, each layer multiplies the second moment of gradients by 1 plus its mean. If it is
    above 10, the estimate is mostly noise: increase lambda or the noise.

    Args:
        t: standardized pre-activation, any shape; constant beyond ``|t| = 8`` (Gaussian) or 35 (logistic).
        lam: lambda in [-1, 1].
        noise: "gaussian" or "logistic".

    Returns:
        chi-squared distance of each unit, of the shape and dtype of `t`, in [0, 4e14 (1 - lam)^2].

    Raises:
        ValueError: if `lam` or `noise` is outside its range.

    Example:
        >>> chi_squared(torch.tensor([0.0, 1.0]), lam=0.0)
        tensor([0.0000, 0.8729])
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
    """Estimator IW-ST(lambda); see `iwst_weight`.

    Args:
        lam: lambda, from 1 (straight-through) to 0 (ReinMax, DARN(1/2)); -1 is DARN(mean), for tests.
        noise: "gaussian" for ``P(spike) = Phi(t)``, or "logistic" for ``P(spike) = sigmoid(t)``.

    Raises:
        ValueError: if `lam` or `noise` is outside its range.
    """

    lam: float = 0.5
    noise: Noise = "gaussian"

    def __post_init__(self) -> None:
        _check(self.lam, self.noise)

    def weight(self, t: Tensor, spikes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return iwst_weight(t, spikes, self.lam, self.noise)


def iwst(t: Tensor, lam: float = 0.5, noise: Noise = "gaussian", generator: torch.Generator | None = None) -> Tensor:
    """Sample noisy binary units, with gradients by IW-ST(lambda).

    Args:
        t: standardized pre-activation ``(mean - threshold) / standard deviation``, any shape.
        lam: lambda in [-1, 1]; see `iwst_weight`.
        noise: "gaussian" for ``P(spike) = Phi(t)``, or "logistic" for ``P(spike) = sigmoid(t)``.
        generator: source of the noise; None is torch's default.

    Returns:
        spikes in {0, 1}, of the shape and dtype of `t`.

    Raises:
        ValueError: if `lam` or `noise` is outside its range.

    Example:
        >>> iwst(torch.tensor([-9.0, 9.0]))
        tensor([0., 1.])
    """
    return noisy_spikes(t, IWST(lam, noise), generator)
