r"""Which part of the variance of a spike comes from what is uncertain, and which from the neuron's own noise.

A potential is uncertain for two reasons: because weights are (variance :math:`V_e`, the same for every presentation)
and because the spikes that arrive are noisy. A spike's probability given the weights is then itself a random number;
its variance is the covariance of two spikes that share the weights and nothing else. With
:math:`\rho = V_e / (V + c^2)` and :math:`z = \omega / \sqrt{V + c^2}` (Plackett's identity, by the substitution
:math:`r = \sin \theta`)

.. math:: \operatorname{Var}_e = \Phi_2(z, z; \rho) - \Phi(z)^2
    = \frac{1}{2 \pi} \int_0^{\arcsin \rho} e^{-z^2 / (1 + \sin \theta)} \, d\theta .

The rest of :math:`p (1 - p)` is spike noise, which no further data would remove.
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
    """Nodes in [0, 1] and weights."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return [(float(node + 1) / 2, float(weight) / 2) for node, weight in zip(nodes, weights, strict=True)]


def epistemic_spike_variance(
    mean: Tensor, variance: Tensor, epistemic_variance: Tensor, activation: Activation
) -> Tensor:
    """Variance of a neuron's spike probability, given what is uncertain about its potential.

    Args:
        mean: means of the potentials.
        variance: their variances, larger than 0.
        epistemic_variance: the part of these that is shared by all presentations, from 0 to `variance`.
        activation: see `spike_probability`; "sigmoid" is taken as the probit that it resembles.

    Returns:
        variances from 0 to ``p (1 - p)``, exact but for a quadrature error below 1e-8.
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
