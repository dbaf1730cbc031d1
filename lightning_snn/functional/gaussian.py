r"""Standard normal distribution, accurate in its tails, and Gauss quadrature nodes.

With density :math:`\varphi` and distribution function :math:`\Phi`, all ratios of the two are computed from the Mills
ratio :math:`\Phi(-z) / \varphi(z)`, which neither underflows nor cancels.
Float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)

# with t = 1 / (1 + 0.325 z) the Mills ratio is t times this polynomial in t, highest power first, within 7e-8 of its
# value for all z >= 0 (interpolated at Chebyshev points of t from 0 to 1)
MILLS_SLOPE = 0.325
MILLS_POLYNOMIAL = (
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
    r"""Return :math:`\Phi(z)`, with full relative precision in the lower tail.

    Example:
        >>> normal_cdf(torch.tensor([-10.0, 0.0]))
        tensor([7.6199e-24, 5.0000e-01])
    """
    return (0.5 * torch.erfc(_wide(z) * -math.sqrt(0.5))).to(z.dtype)


def mills_ratio(z: Tensor) -> Tensor:
    r"""Return :math:`\Phi(-z) / \varphi(z)` for z of at least 0; about ``1 / z`` for large z.

    The relative error is a few units in the last place.

    Example:
        >>> mills_ratio(torch.tensor([0.0, 100.0]))
        tensor([1.2533, 0.0100])
    """
    wide = _wide(z)
    if wide is not z:  # erfcx has no narrower type
        return mills_ratio(wide).to(z.dtype)
    if z.dtype == torch.float32 and z.device.type == "cpu":
        # erfcx is not vectorized there and takes ten times as long
        t = (1 + MILLS_SLOPE * z).reciprocal_()
        ratio = torch.full_like(t, MILLS_POLYNOMIAL[0])
        for coefficient in MILLS_POLYNOMIAL[1:]:
            ratio.mul_(t).add_(coefficient)
        return ratio.mul_(t)
    scaled: Tensor = torch.special.erfcx(z * math.sqrt(0.5))
    return scaled * math.sqrt(math.pi / 2)


def normal_log_odds(z: Tensor) -> Tensor:
    r"""Return :math:`\log \Phi(z) - \log \Phi(-z)`, with full relative precision in both tails.

    Example:
        >>> normal_log_odds(torch.tensor([-20.0, 0.0]))
        tensor([-203.9172,    0.0000])
    """
    wide = _wide(z)
    distance = wide.abs()
    log_tail = mills_ratio(distance).log() - (0.5 * distance * distance + LOG_SQRT_2PI)
    return torch.copysign(torch.log1p(-log_tail.exp()) - log_tail, wide).to(z.dtype)


def _wide(z: Tensor) -> Tensor:
    return z.to(torch.promote_types(z.dtype, torch.float32))


@cache
def hermite_nodes(nodes: int) -> tuple[tuple[float, float], ...]:
    """Return pairs ``(t_k, w_k)``, in order of t_k, so that ``sum_k w_k f(t_k)`` is the mean of f under N(0, 1).

    Exact for polynomials of degree up to ``2 nodes - 1``.

    Example:
        >>> [(round(node, 6), round(weight, 6)) for node, weight in hermite_nodes(2)]
        [(-1.0, 0.5), (1.0, 0.5)]
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return tuple(zip(points.tolist(), (weights / weights.sum()).tolist(), strict=True))
