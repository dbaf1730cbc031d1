r"""Activation and observation factors: messages from a spike or value to its membrane potential.

The potential u has the distribution :math:`N(\omega, V)`. A factor :math:`f(u)` sends the message

.. math:: Z = \int f(u) \, N(u; \omega, V) \, du, \qquad
    g = \frac{\partial \log Z}{\partial \omega}, \qquad G = -\frac{\partial^2 \log Z}{\partial \omega^2},

which gives the moments of the tilted distribution, :math:`\omega + V g` and :math:`V - V^2 G`, without a division by a
difference of precisions. A neuron spikes with probability :math:`f_1(u)`. For a spike with log-odds :math:`\lambda` its
factor is :math:`\sigma(\lambda) f_1(u) + \sigma(-\lambda) (1 - f_1(u))`; an observed spike has
:math:`\lambda = \infty`. With ``f_1 = Phi(u / c)``, :math:`S = V + c^2` and :math:`z = \omega / \sqrt S`,

.. math:: Z = \sigma(\lambda) \Phi(z) + \sigma(-\lambda) \Phi(-z), \qquad
    r = \tanh(\lambda / 2) \, \varphi(z) / Z, \qquad g = r / \sqrt S, \qquad G = r (r + z) / S .

After Yao et al. 2025, arXiv 2506.23757; the closed forms are those of probit regression.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_snn.functional.gaussian import (
    LOG_SQRT_2PI,
    hermite_nodes,
    mills_ratio,
    normal_cdf,
    normal_log_odds,
)

Activation = Literal["heaviside", "probit", "sigmoid"]
ACTIVATIONS: tuple[Activation, ...] = ("heaviside", "probit", "sigmoid")

NODES = 32

# c^2: with 8 / pi the slope at 0 is that of the sigmoid
_NOISE_VARIANCE = {"heaviside": 0.0, "probit": 8 / math.pi}
# without input the potential of a neuron has variance 0; this bound keeps ratios finite
_MIN_VARIANCE = 1e-12
_MAX_SHARE = 0.999


class Message(NamedTuple):
    """Message from a factor to membrane potentials; each tensor has the shape of the potentials.

    Attributes:
        score: g, the derivative of the log evidence with respect to the mean.
        curvature: G, minus its second derivative; negative if the factor widens the distribution.
        log_evidence: log Z, in nats.
        noise_variance: variance of a factor that is Gaussian in the potential, larger than 0, a number or a scalar. The
            precision of its site is exact, however wide the potential is; None for other factors.
    """

    score: Tensor
    curvature: Tensor
    log_evidence: Tensor
    noise_variance: Tensor | float | None = None


def spike_probability(mean: Tensor, variance: Tensor, activation: Activation) -> Tensor:
    """Compute the probability that a neuron with potential ``N(mean, variance)`` spikes.

    Args:
        mean: means of the potentials.
        variance: variances of the potentials, at least 0.
        activation: "heaviside" spikes if the potential is above 0; "probit" with probability ``Phi(u / c)``,
            ``c^2 = 8 / pi``, which differs from the sigmoid by at most 0.018; "sigmoid" with the sigmoid, by
            Gauss-Hermite quadrature.

    Returns:
        probabilities of the shape of `mean`.

    Example:
        >>> spike_probability(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), "sigmoid")
        tensor([0.5000, 0.7311])
    """
    if activation != "sigmoid":
        return normal_cdf(standardized(mean, variance, activation)[0])
    std = variance.clamp(min=_MIN_VARIANCE).sqrt()
    probability = torch.zeros_like(mean)
    for node, weight in hermite_nodes(NODES):
        probability.add_(torch.sigmoid(mean + node * std), alpha=weight)
    return probability.clamp_(max=1)  # the weights sum to 1 up to rounding


def log_odds_of_spike(mean: Tensor, variance: Tensor, activation: Activation) -> Tensor:
    """Compute ``log p - log(1 - p)`` of `spike_probability`, which is finite even if p rounds to 0 or 1.

    Arguments are those of `spike_probability`.

    Example:
        >>> log_odds_of_spike(torch.tensor([-60.0]), torch.tensor([0.0]), "probit")
        tensor([-711.4049])
    """
    if activation != "sigmoid":
        return normal_log_odds(standardized(mean, variance, activation)[0])
    spike = torch.full_like(mean, math.inf)
    return _sigmoid_message(mean, variance, spike).log_evidence - _sigmoid_message(mean, variance, -spike).log_evidence


def spike_message(mean: Tensor, variance: Tensor, log_odds: Tensor, activation: Activation) -> Message:
    """Compute the message from a neuron's spike to its potential.

    Args:
        mean: means of the potentials.
        variance: variances of the potentials, at least 0.
        log_odds: log-odds of each spike according to the rest of the network, of the shape of `mean`; plus or minus
            infinity for observed spikes.
        activation: see `spike_probability`.

    Returns:
        the message. Its curvature is at least 0 for observed spikes; for others it may be negative, see `bounded`.

    Example:
        >>> spike_message(torch.zeros(1), torch.ones(1), torch.tensor([torch.inf]), "heaviside").score
        tensor([0.7979])
    """
    if activation == "sigmoid":
        return _sigmoid_message(mean, variance, log_odds)
    z, total = standardized(mean, variance, activation)
    # signs relative to the side of the threshold on which the mean lies, so that all terms of Z / phi(z) are bounded
    side = torch.copysign(torch.ones_like(z), z)
    toward = log_odds * side
    log_toward = F.logsigmoid(toward)
    contrast = toward.mul_(0.5).tanh_()
    negative_log_density = (0.5 * z).mul_(z).add_(LOG_SQRT_2PI)
    exponent = log_toward + negative_log_density
    largest = math.log(torch.finfo(z.dtype).max) - 1
    ratio = exponent.clamp(max=largest).exp_().addcmul_(contrast, mills_ratio(z.abs()), value=-1)
    log_evidence = torch.where(exponent > largest, log_toward, ratio.log() - negative_log_density)
    scaled = contrast.mul_(side).div_(ratio)
    curvature = (scaled + z).mul_(scaled).div_(total)
    return Message(scaled.mul_(total.rsqrt_()), curvature, log_evidence)


def soft_spike_message(mean: Tensor, variance: Tensor, log_odds: Tensor, activation: Activation) -> Message:
    r"""Compute `spike_message` for spikes that are not observed, with fewer operations.

    With :math:`t = \tanh(\lambda / 2)`,

    .. math:: Z = \tfrac12 (1 + t \operatorname{erf}(z / \sqrt 2)) , \qquad
        r = \frac{2 t \varphi(z)}{1 + t \operatorname{erf}(z / \sqrt 2)} .

    The denominator is computed without cancellation, as
    ``2 sigma(-|lambda|) + |t| erfc(-sign(lambda) z / sqrt(2))``.

    Args:
        mean: means of the potentials.
        variance: variances of the potentials, at least 0.
        log_odds: log-odds of each spike according to the rest of the network, of the shape of `mean`. They are clamped
            to -85 and 85 (-700 and 700 in float64), so that Z does not underflow: a message that is more certain counts
            as one of that certainty, which matters if the mean is more than 12 standard deviations on the other side.
        activation: see `spike_probability`.

    Returns:
        the message; its curvature may be negative, see `bounded`.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> soft_spike_message(zero, one, 5 * one, "heaviside").score
        tensor([0.7872])
        >>> spike_message(zero, one, 5 * one, "heaviside").score
        tensor([0.7872])
    """
    if activation == "sigmoid":
        return _sigmoid_message(mean, variance, log_odds)
    z, total = standardized(mean, variance, activation)
    most = 700.0 if z.dtype == torch.float64 else 85.0
    unlikely = log_odds.abs().clamp_(max=most).neg_().sigmoid_()
    certainty = (-2 * unlikely).add_(1)
    evidence = torch.copysign(z, z * log_odds).mul_(-math.sqrt(0.5)).erfc_().mul_(certainty)
    evidence.add_(unlikely, alpha=2)
    scaled = z.square().mul_(-0.5).exp_().mul_(math.sqrt(2 / math.pi)).mul_(torch.copysign(certainty, log_odds))
    scaled.div_(evidence)
    curvature = (scaled + z).mul_(scaled).div_(total)
    return Message(scaled.mul_(total.rsqrt_()), curvature, evidence.mul_(0.5).log_())


def value_message(mean: Tensor, variance: Tensor, target: Tensor, noise_variance: Tensor | float) -> Message:
    """Compute the message from a value observed with Gaussian noise, ``target ~ N(u, noise_variance)``, to u.

    Args:
        mean: means of the potentials.
        variance: variances of the potentials.
        target: observed values, of the shape of `mean`.
        noise_variance: variance of the noise, larger than 0.

    Returns:
        the exact message; its log evidence is the log density of the targets.

    Example:
        >>> value_message(torch.zeros(1), torch.ones(1), torch.tensor([4.0]), noise_variance=1.0).score
        tensor([2.])
    """
    total = variance + noise_variance
    residual = target - mean
    score = residual / total
    log_evidence = -0.5 * (residual * score + total.log()) - LOG_SQRT_2PI
    return Message(score, total.reciprocal(), log_evidence, noise_variance)


def bounded(message: Message, variance: Tensor) -> Message:
    """Return the message with its curvature clamped to ``[0, 0.999 / variance]``.

    A negative curvature would give the site a negative precision; ``1 / variance`` would give it an infinite one. Both
    are impossible for Gaussian factors, whose message is returned as it is.
    """
    if message.noise_variance is not None:
        return message
    limit = _MAX_SHARE / variance.clamp(min=_MIN_VARIANCE)
    return message._replace(curvature=message.curvature.clamp(min=0).minimum(limit))


def standardized(mean: Tensor, variance: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Return ``z = mean / sqrt(S)`` and ``S = variance + c^2``, the total variance of potential and neuron noise."""
    total = (variance + _NOISE_VARIANCE[activation]).clamp_(min=_MIN_VARIANCE)
    return total.rsqrt().mul_(mean), total


def _sigmoid_message(mean: Tensor, variance: Tensor, log_odds: Tensor, nodes: int = NODES) -> Message:
    """Compute `spike_message` for ``f_1 = sigmoid(u)``, by Gauss-Hermite quadrature of the tilted distribution."""
    variance = variance.clamp(min=_MIN_VARIANCE)
    std = variance.sqrt()
    flipped = log_odds < 0
    magnitude = log_odds.abs()
    log_normalizer = F.softplus(-magnitude)

    def log_factor(node: float) -> Tensor:
        # log(sigmoid(a) sigmoid(u) + sigmoid(-a) sigmoid(-u)), a >= 0, without a difference of infinities
        u = mean + node * std
        u = torch.where(flipped, -u, u)
        return F.logsigmoid(u) + F.softplus(-(magnitude + u)) - log_normalizer

    table = hermite_nodes(nodes)
    # the factor is monotone, so its largest value is at an end
    top = torch.maximum(log_factor(table[0][0]), log_factor(table[-1][0]))
    total, first, second = torch.zeros_like(mean), torch.zeros_like(mean), torch.zeros_like(mean)
    for node, weight in table:
        mass = weight * (log_factor(node) - top).exp()
        total += mass
        first += node * mass
        second += (node * node) * mass
    first, second = first / total, second / total
    return Message(first / std, (1 - second + first * first) / variance, total.log() + top)
