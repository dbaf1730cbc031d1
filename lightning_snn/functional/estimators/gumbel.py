r"""Gradient estimators by relaxation: Gumbel straight-through and Gumbel-Rao.

The sample ``x = 1[t + L > 0]`` with noise L is relaxed to ``s = F((t + L) / tau)``. The forward pass keeps the hard
sample, and the backward pass uses the pathwise derivative of s:

.. math:: w = F'((t + L) / \tau) / \tau .

`GumbelStraightThrough` uses this weight itself (Jang et al. 2017), `GumbelRao` averages it over K draws of L given the
sample (Paulus et al. 2021), and `AnalyticalGumbelRao` uses its exact expectation given the sample, K = infinity. All
three have the same mean, and the last has the smallest variance. With logistic noise, the difference of two Gumbel
variables, s is the binary Gumbel-softmax. With Gaussian noise, the same construction has a closed form at any
temperature. The limit tau = 0 is IW-ST(0). Unlike IW-ST, these estimators are biased even for linear losses, by the
factor ``E[w] / F'(t)``, unless normalized.
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
from lightning_snn.functional.draws import uniform_like
from lightning_snn.functional.estimators.base import Estimator, Noise, density_, saturated, toward_sample

_SERIES_BELOW = 0.3  # the closed form loses digits there; the error of the series is 5e-8
_SERIES = tuple(1 / (2 * (k + 3)) for k in range(14))


@dataclass(frozen=True)
class AnalyticalGumbelRao(Estimator):
    r"""Expectation of the Gumbel straight-through weight given the sample, by closed form or quadrature.

    With ``s = t`` if the unit spiked and ``-t`` otherwise, for logistic noise

    .. math:: w(x, t) = \frac{1}{F(s)} \int_{1/2}^{1} F'(\tau\,\mathrm{logit}(u) - s)\,du ,

    in closed form at tau = 1 and by 16 Gauss-Legendre nodes otherwise (relative error below 1e-3 for ``|t| < 8`` and
    tau up to 2), and for Gaussian noise at any tau

    .. math:: w(x, t) = \frac{\phi(t / r)}{r}\,\frac{\Phi(s \tau / r)}{\Phi(s)} , \qquad r = \sqrt{1 + \tau^2} .

    Args:
        tau: temperature, larger than 0; toward 0 this becomes IW-ST(0).
        normalize: whether to divide by ``E[w] / F'(t)``, which makes the estimator unbiased for linear losses. Without
            it, each layer scales gradients, for example by 2/3 at tau = 1, logistic noise and t = 0.
        noise: "gaussian" or "logistic".

    Raises:
        ValueError: if an argument is outside its range.
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
            probability, other = sample.sigmoid(), sample.neg().sigmoid_()
            mean = self._relaxed_slope(sample.neg_()).mul_(other).add_(probability * weight)
            weight.mul_(probability).mul_(other).div_(mean)
        return weight

    def _relaxed_slope(self, sample: Tensor) -> Tensor:
        """Return the weight before normalization, for logistic noise."""
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
    """Return ``logit(u)`` and weight of Gauss-Legendre nodes of v on [0, 1], with ``u = 1 - (1 - v)^4 / 2``.

    The power concentrates nodes near u = 1, where the integrand peaks. The error is a thousandth of that of nodes in u.
    """
    points, shares = np.polynomial.legendre.leggauss(nodes)
    rest = 0.5 - 0.5 * points
    complement = 0.5 * rest**4
    logits = np.log1p(-complement) - np.log(complement)
    return tuple(zip(logits.tolist(), (shares * rest**3).tolist(), strict=True))


_HALF_LINE = _half_line(16)


def _slope_at_unit_temperature(sample: Tensor) -> Tensor:
    r"""Return ``(1 - h) [-log(1 - h) / (2 h^3) - (2 + h) / (4 h^2)]`` with ``h = tanh(s / 2)``.

    Near h = 0, where the bracket cancels, this is the series ``(1 - h) sum_k h^k / (2 (k + 3))``.
    """
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
    """Mean Gumbel straight-through weight over K draws of the noise, given the sample.

    Args:
        draws: K, at least 1; affects cost and variance of the weight, not the forward pass.
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
    """Pathwise derivative of the relaxed sample, at the hard sample.

    The noise is redrawn given the sample. Later operations depend on the noise through the sample only, so the joint
    distribution of sample and weight is the same as with the original noise.

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
    """Draw ``|t + L|`` given the sample, which is ``s + M`` for noise M given that it exceeds ``-s``."""
    v = uniform_like(sample, sample.dtype, generator)
    # the survival function of M at its draw is v F(s); for v = 0 the distance is infinite and the density 0
    if noise == "gaussian":
        # erfc keeps the tail that torch.special.ndtr rounds to 0
        draw: Tensor = torch.special.ndtri(v * (sample * -math.sqrt(0.5)).erfc_().mul_(0.5))
        return sample - draw
    return F.softplus(sample + torch.log1p(-v)).sub_(v.log_())
