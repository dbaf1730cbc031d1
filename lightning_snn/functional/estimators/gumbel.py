r"""The relaxation-based relatives of IW-ST.

With the noise L that made the sample, ``x = 1[t + L > 0]``, relax the step to ``s = F((t + L) / tau)``. Its pathwise
derivative stands in for that of the step, at the hard forward pass:

.. math:: w = F'((t + L) / \tau) / \tau .

`GumbelStraightThrough` takes it as it is (Jang et al. 2017), `GumbelRao` averages it over K draws of L given the sample
(Paulus et al. 2021), and `AnalyticalGumbelRao` takes its exact expectation given the sample, which is K = infinity: the
same mean as the other two at the least variance. With logistic noise, the difference of two Gumbel variables, s is the
binary Gumbel-softmax; with Gaussian noise the same construction has a closed form at any temperature. tau to 0 is
IW-ST(0). Unlike IW-ST these are biased even for linear losses, by ``E[w] / F'(t)``, unless normalized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_snn.checks import check_choice, check_integer, check_positive
from lightning_snn.functional.estimators.base import Estimator, Noise, density_, saturated, toward_sample

_SERIES_BELOW = 0.3  # the closed form loses digits there, the series all but 5e-8
_SERIES = tuple(1 / (2 * (k + 3)) for k in range(14))


@dataclass(frozen=True)
class AnalyticalGumbelRao(Estimator):
    r"""The expectation of the Gumbel straight-through weight given the sample, by closed form or quadrature.

    With ``s = t`` if the unit spiked and ``-t`` if not, for logistic noise

    .. math:: w(x, t) = \frac{1}{F(s)} \int_{1/2}^{1} F'(\tau\,\mathrm{logit}(u) - s)\,du ,

    in closed form at tau = 1 and by 16 Gauss-Legendre nodes otherwise (relative error below 1e-3 for |t| < 8 and tau
    up to 2), and for Gaussian noise at any tau

    .. math:: w(x, t) = \frac{\phi(t / r)}{r}\,\frac{\Phi(s \tau / r)}{\Phi(s)} , \qquad r = \sqrt{1 + \tau^2} .

    Args:
        tau: temperature, larger than 0; towards 0 this becomes IW-ST(0).
        normalize: divide by ``E[w] / F'(t)``, which makes linear losses unbiased. Without it gradients shrink from
            layer to layer, by 2/3 each at tau = 1, logistic noise and t = 0.
        noise: "gaussian" or "logistic".

    Raises:
        ValueError: if `tau` is not larger than 0 or `noise` is another.
    """

    tau: float = 1.0
    normalize: bool = False
    noise: Noise = "gaussian"

    def __post_init__(self) -> None:
        check_positive("tau", self.tau)
        check_choice("noise", self.noise, get_args(Noise))

    def weight(self, t: Tensor, spikes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        t = saturated(t, self.noise)
        sample = toward_sample(t, spikes).mul_(2)
        return self._gaussian(t, sample) if self.noise == "gaussian" else self._logistic(sample)

    def _gaussian(self, t: Tensor, sample: Tensor) -> Tensor:
        width = math.hypot(1.0, self.tau)
        target = (sample * (-self.tau / width * math.sqrt(0.5))).erfc_()
        target.div_(sample.mul_(-math.sqrt(0.5)).erfc_())
        if self.normalize:
            return target.mul_(density_(t, "gaussian"))
        return target.mul_(density_(t.div_(width), "gaussian")).div_(width)

    def _logistic(self, sample: Tensor) -> Tensor:
        weight = self._relaxed_slope(sample)
        if self.normalize:
            chance, other = sample.sigmoid(), sample.neg().sigmoid_()
            mean = self._relaxed_slope(sample.neg_()).mul_(other).add_(chance * weight)
            weight.mul_(chance).mul_(other).div_(mean)
        return weight

    def _relaxed_slope(self, sample: Tensor) -> Tensor:
        """The weight before any normalization, for logistic noise."""
        if self.tau == 1.0:
            return _slope_at_unit_temperature(sample)
        # with E = exp(s) and k = exp(-tau logit(u)) the integrand is (1 + E) k / (1 + E k)^2
        odds = sample.exp()
        total = torch.zeros_like(odds)
        for logit, share in _HALF_LINE:
            k = math.exp(-self.tau * logit)
            root = torch.mul(odds, k).add_(1).reciprocal_()
            total.add_(root.mul_(root), alpha=share * k)
        return odds.add_(1).mul_(total)


def _half_line(nodes: int) -> tuple[tuple[float, float], ...]:
    """``logit(u)`` and weight of Gauss-Legendre nodes of v on [0, 1], with ``u = 1 - (1 - v)^4 / 2`` on [1/2, 1].

    The power gathers nodes where u is close to 1 and the integrand peaks: a thousandth of the error of nodes in u.
    """
    points, shares = np.polynomial.legendre.leggauss(nodes)
    rest = 0.5 - 0.5 * points
    complement = 0.5 * rest**4
    logits = np.log1p(-complement) - np.log(complement)
    return tuple(zip(logits.tolist(), (shares * rest**3).tolist(), strict=True))


_HALF_LINE = _half_line(16)


def _slope_at_unit_temperature(sample: Tensor) -> Tensor:
    r"""``(1 - h) [-log(1 - h) / (2 h^3) - (2 + h) / (4 h^2)]`` with ``h = tanh(s / 2)``, or its series
    ``(1 - h) sum_k h^k / (2 (k + 3))`` where the bracket cancels."""
    complement = sample.neg().sigmoid_().mul_(2)  # 1 - h
    h = 1 - complement
    square = h * h
    closed = complement.log().div_(h).add_(1).add_(h, alpha=0.5).div_(square.mul_(-2))
    series = torch.full_like(h, _SERIES[-1])
    for coefficient in _SERIES[-2::-1]:
        series.mul_(h).add_(coefficient)
    return torch.where(h.abs() < _SERIES_BELOW, series, closed).mul_(complement)


@dataclass(frozen=True)
class GumbelRao(Estimator):
    """The mean Gumbel straight-through weight over K draws of the noise, given the sample.

    Args:
        draws: K, at least 1; cost and randomness of the weight, not of the forward pass.
        tau: temperature, larger than 0.
        noise: "gaussian" or "logistic".

    Raises:
        ValueError: if an argument is outside its range.
    """

    draws: int = 10
    tau: float = 0.5
    noise: Noise = "gaussian"
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_integer("draws", self.draws)
        check_positive("tau", self.tau)
        check_choice("noise", self.noise, get_args(Noise))

    def weight(self, t: Tensor, spikes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        sample = toward_sample(saturated(t, self.noise), spikes).mul_(2)
        total = torch.zeros_like(sample)
        for _ in range(self.draws):
            distance = _distance(sample, self.noise, generator).div_(self.tau)
            total.add_(density_(distance, self.noise))
        return total.div_(self.draws * self.tau)


@dataclass(frozen=True)
class GumbelStraightThrough(Estimator):
    """The pathwise derivative of the relaxed sample, at the hard sample.

    The noise is redrawn given the sample. All that follows depends on the sample alone, so sample and weight have the
    joint law that they have when the noise that made the sample is kept.

    Args:
        tau: temperature, larger than 0.
        noise: "gaussian" or "logistic".

    Raises:
        ValueError: if an argument is outside its range.
    """

    tau: float = 0.5
    noise: Noise = "gaussian"
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("tau", self.tau)
        check_choice("noise", self.noise, get_args(Noise))

    def weight(self, t: Tensor, spikes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return GumbelRao(1, self.tau, self.noise).weight(t, spikes, generator)


def _distance(sample: Tensor, noise: Noise, generator: torch.Generator | None) -> Tensor:
    """Draws of ``|t + L|`` given the sample, that is of ``s + M`` for noise M given that it exceeds ``-s``."""
    v = torch.rand(sample.shape, dtype=sample.dtype, device=sample.device, generator=generator)
    # the survival function of M at its draw is v F(s); v = 0 gives an infinite distance, where the density is 0
    if noise == "gaussian":
        # erfc keeps the tail that torch.special.ndtr rounds to 0
        return sample - torch.special.ndtri(v * (sample * -math.sqrt(0.5)).erfc_().mul_(0.5))
    return F.softplus(sample + torch.log1p(-v)).sub_(v.log_())
