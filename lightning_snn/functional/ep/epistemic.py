r"""Epistemic part of the variance of a spike.

A potential is uncertain for two reasons: its weights are uncertain (variance :math:`V_e`, shared by all presentations
of an input), and its input spikes are noisy. The probability of a spike given the weights is thus a random variable.
Its variance is the covariance of two spikes that share only the weights. With :math:`\rho = V_e / (V + c^2)` and
:math:`z = \omega / \sqrt{V + c^2}` (Plackett's identity, with the substitution :math:`r = \sin \theta`)

.. math:: \operatorname{Var}_e = \Phi_2(z, z; \rho) - \Phi(z)^2
    = \frac{1}{2 \pi} \int_0^{\arcsin \rho} e^{-z^2 / (1 + \sin \theta)} \, d\theta .

The rest of :math:`p (1 - p)` is spike noise, which more data cannot reduce.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lightning_snn.functional.ep.factors import Activation, standardized
from lightning_snn.functional.gaussian import normal_cdf

_NODES = 20


@cache
def _legendre_nodes() -> list[tuple[float, float]]:
    """Return nodes in [0, 1] and weights of Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return [(float(node + 1) / 2, float(weight) / 2) for node, weight in zip(nodes, weights, strict=True)]


def epistemic_spike_variance(
    mean: Tensor, variance: Tensor, epistemic_variance: Tensor, activation: Activation
) -> Tensor:
    """Compute the variance of a neuron's spike probability that is due to the uncertainty of its weights.

    Args:
        mean: means of the potentials.
        variance: variances of the potentials, larger than 0.
        epistemic_variance: part of `variance` that all presentations share, from 0 to `variance`.
        activation: see `spike_probability`; "sigmoid" is approximated by "probit".

    Returns:
        variances from 0 to ``p (1 - p)``, with a quadrature error below 1e-8.

    Example:
        >>> epistemic_spike_variance(torch.zeros(2), torch.ones(2), torch.tensor([0.5, 1.0]), "heaviside")
        tensor([0.0833, 0.2500])
    """
    z, total = standardized(mean, variance, "probit" if activation == "sigmoid" else activation)
    angle = torch.asin((epistemic_variance / total).clamp(0, 1))
    squared = z.square()
    covariance = torch.zeros_like(mean)
    for node, weight in _legendre_nodes():
        covariance += weight * torch.exp(-squared / (1 + torch.sin(node * angle)))
    covariance *= angle / (2 * math.pi)
    p = normal_cdf(z)
    return covariance.clamp(min=0).minimum(p * (1 - p))
