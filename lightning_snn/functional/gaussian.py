r"""The standard normal distribution far into its tails, and Gauss-Hermite nodes.

With density :math:`\varphi` and distribution function :math:`\Phi`, every ratio of the two comes from the Mills ratio
:math:`\Phi(-z) / \varphi(z)`, which neither underflows nor cancels.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)

# with t = 1 / (1 + 0.325 z) the Mills ratio is t times this polynomial in t, from the highest power, within 7e-8 of its
# value for all z of at least 0 (interpolated at Chebyshev points of t from 0 to 1)
_MILLS_SLOPE = 0.325
_MILLS_POLYNOMIAL = (
    -0.0538192401,
    0.232962183,
    -0.333430466,
    0.118068834,
    -0.0106359507,
    0.138256483,
    0.221202055,
    0.29071096,
    0.324999218,
    0.325000004,
)


def normal_cdf(z: Tensor) -> Tensor:
    r""":math:`\Phi(z)`, with full relative precision in the lower tail."""
    return torch.special.erfc(z * -math.sqrt(0.5)) * 0.5


def mills_ratio(z: Tensor) -> Tensor:
    r""":math:`\Phi(-z) / \varphi(z)`, about ``1 / z`` for large z; for z of at least 0.

    Relative errors are a few roundings of the dtype.
    """
    if z.dtype == torch.float32 and z.device.type == "cpu":
        # there erfcx takes one value at a time, ten times as long
        t = (1 + _MILLS_SLOPE * z).reciprocal_()
        ratio = torch.full_like(t, _MILLS_POLYNOMIAL[0])
        for coefficient in _MILLS_POLYNOMIAL[1:]:
            ratio.mul_(t).add_(coefficient)
        return ratio.mul_(t)
    return torch.special.erfcx(z * math.sqrt(0.5)) * math.sqrt(math.pi / 2)


def normal_log_odds(z: Tensor) -> Tensor:
    r""":math:`\log \Phi(z) - \log \Phi(-z)`, with full relative precision in both tails."""
    distance = z.abs()
    log_tail = mills_ratio(distance).log() - (0.5 * distance * distance + LOG_SQRT_2PI)
    return torch.copysign(torch.log1p(-log_tail.exp()) - log_tail, z)


@cache
def hermite_nodes(nodes: int) -> tuple[tuple[float, float], ...]:
    """Nodes and weights, rising in the node, with which ``sum_k w_k f(t_k)`` is the mean of f under N(0, 1).

    Exact for polynomials of degree up to ``2 nodes - 1``.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return tuple(zip(points.tolist(), (weights / weights.sum()).tolist(), strict=True))
