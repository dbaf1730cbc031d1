r"""Activation and observation factors: what a single potential hears from its own spike or value.

A potential u arrives as :math:`N(\omega, V)`. A factor :math:`f(u)` answers with

.. math:: Z = \int f(u) \, N(u; \omega, V) \, du, \qquad
    g = \frac{\partial \log Z}{\partial \omega}, \qquad G = -\frac{\partial^2 \log Z}{\partial \omega^2},

which carry the moments of the tilted distribution, :math:`\omega + V g` and :math:`V - V^2 G`, and never divide by a
difference of precisions. A neuron spikes with probability :math:`f_1(u)`; heard of with log-odds :math:`\lambda` its
factor is :math:`\sigma(\lambda) f_1(u) + \sigma(-\lambda) (1 - f_1(u))`, and an observed spike has
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
# where nothing reaches a neuron its potential has no variance, and its ratios are still to be finite
_LEAST_VARIANCE = 1e-12
_LARGEST_SHARE = 0.999


class Message(NamedTuple):
    """What a factor tells about potentials; each field of the potentials' shape.

    Attributes:
        score: g, the derivative of the log evidence with respect to the mean.
        curvature: G, minus its second derivative; below 0 where the factor widens the distribution.
        log_evidence: log Z, in nats.
    """

    score: Tensor
    curvature: Tensor
    log_evidence: Tensor


def spike_probability(mean: Tensor, variance: Tensor, activation: Activation) -> Tensor:
    """Probability that a neuron spikes whose potential is ``N(mean, variance)``.

    Args:
        mean: means of the potentials.
        variance: their variances, at least 0.
        activation: "heaviside" spikes where the potential is above 0; "probit" with probability ``Phi(u / c)``,
            ``c^2 = 8 / pi``, a sigmoid within 0.018; "sigmoid" with the sigmoid itself, by Gauss-Hermite quadrature.

    Returns:
        probabilities of the shape of `mean`.
    """
    if activation != "sigmoid":
        return normal_cdf(standardized(mean, variance, activation)[0])
    deviation = variance.clamp(min=_LEAST_VARIANCE).sqrt()
    probability = torch.zeros_like(mean)
    for node, weight in hermite_nodes(NODES):
        probability.add_(torch.sigmoid(mean + node * deviation), alpha=weight)
    return probability.clamp_(max=1)  # weights that add up to 1 within rounding


def log_odds_of_spike(mean: Tensor, variance: Tensor, activation: Activation) -> Tensor:
    """``log p - log(1 - p)`` of `spike_probability`, in log space: finite where the probability rounds to 0 or 1."""
    if activation != "sigmoid":
        return normal_log_odds(standardized(mean, variance, activation)[0])
    spike = torch.full_like(mean, math.inf)
    return _sigmoid_message(mean, variance, spike).log_evidence - _sigmoid_message(mean, variance, -spike).log_evidence


def spike_message(mean: Tensor, variance: Tensor, log_odds: Tensor, activation: Activation) -> Message:
    """What a neuron's potential hears from its spike.

    Args:
        mean: means of the potentials.
        variance: their variances, at least 0.
        log_odds: what the rest of the network says of each spike, of the shape of `mean`; plus or minus infinity for
            spikes that are observed.
        activation: see `spike_probability`.

    Returns:
        the message. Its curvature is at least 0 for observed spikes, and may be below 0 for others: see `bounded`.
    """
    if activation == "sigmoid":
        return _sigmoid_message(mean, variance, log_odds)
    z, total = standardized(mean, variance, activation)
    # seen from the side of the threshold on which the mean lies, all terms of Z / phi(z) are tame
    side = torch.copysign(torch.ones_like(z), z)
    towards = log_odds * side
    log_towards = F.logsigmoid(towards)
    contrast = towards.mul_(0.5).tanh_()
    surprise = (0.5 * z).mul_(z).add_(LOG_SQRT_2PI)
    exponent = log_towards + surprise
    largest = math.log(torch.finfo(z.dtype).max) - 1
    ratio = exponent.clamp(max=largest).exp_().addcmul_(contrast, mills_ratio(z.abs()), value=-1)
    log_evidence = torch.where(exponent > largest, log_towards, ratio.log() - surprise)
    scaled = contrast.mul_(side).div_(ratio)
    curvature = (scaled + z).mul_(scaled).div_(total)
    return Message(scaled.mul_(total.rsqrt_()), curvature, log_evidence)


def value_message(mean: Tensor, variance: Tensor, target: Tensor, noise_variance: Tensor | float) -> Message:
    """What a potential hears from a value observed with Gaussian noise, ``target ~ N(u, noise_variance)``.

    Args:
        mean: means of the potentials.
        variance: their variances.
        target: the observed values, of the shape of `mean`.
        noise_variance: variance of the noise, larger than 0.

    Returns:
        the message, exact; its log evidence is the log density of the targets.
    """
    total = variance + noise_variance
    residual = target - mean
    score = residual / total
    return Message(score, total.reciprocal(), -0.5 * (residual * score + total.log()) - LOG_SQRT_2PI)


def bounded(message: Message, variance: Tensor) -> Message:
    """The message with its curvature kept from 0 to ``0.999 / variance``.

    Below 0 the site would have a negative precision; at ``1 / variance`` an infinite one.
    """
    most = _LARGEST_SHARE / variance.clamp(min=_LEAST_VARIANCE)
    return message._replace(curvature=message.curvature.clamp(min=0).minimum(most))


def standardized(mean: Tensor, variance: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """The mean in standard deviations of potential and neuron noise, and their variance."""
    total = (variance + _NOISE_VARIANCE[activation]).clamp_(min=_LEAST_VARIANCE)
    return total.rsqrt().mul_(mean), total


def _sigmoid_message(mean: Tensor, variance: Tensor, log_odds: Tensor, nodes: int = NODES) -> Message:
    """`spike_message` for ``f_1 = sigmoid(u)``, with moments of the tilted distribution by Gauss-Hermite quadrature."""
    variance = variance.clamp(min=_LEAST_VARIANCE)
    deviation = variance.sqrt()
    flipped = log_odds < 0
    certainty = log_odds.abs()
    unheard = F.softplus(-certainty)

    def log_factor(node: float) -> Tensor:
        # log(sigmoid(a) sigmoid(u) + sigmoid(-a) sigmoid(-u)), a >= 0, without a difference of infinities
        u = mean + node * deviation
        u = torch.where(flipped, -u, u)
        return F.logsigmoid(u) + F.softplus(-(certainty + u)) - unheard

    table = hermite_nodes(nodes)
    # the factor is monotone: its largest value is at an end
    top = torch.maximum(log_factor(table[0][0]), log_factor(table[-1][0]))
    total, first, second = torch.zeros_like(mean), torch.zeros_like(mean), torch.zeros_like(mean)
    for node, weight in table:
        mass = weight * (log_factor(node) - top).exp()
        total += mass
        first += node * mass
        second += (node * node) * mass
    first, second = first / total, second / total
    return Message(first / deviation, (1 - second + first * first) / variance, total.log() + top)
