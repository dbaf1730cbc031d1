r"""Variance of IW-ST gradients by depth, and the lambda of the smallest error.

In a deep network whose readout is nearly linear in its units x in {-1, 1}, the pre-activations of a layer are about
normal, ``t ~ N(0, g^2)``, with g the ratio of signal to posterior noise. The gradient estimate of the first layer of L
has

.. math::
    \frac{E|\hat g|^2}{|E \hat g|^2} = \bigl(1 + (1 - \lambda)^2 \chi_0^2\bigr)^L
        \left(\frac{1 + g^2}{\sqrt{1 + 2 g^2}}\right)^{L - 1}, \qquad
    \chi_0^2 = \frac{E[\varphi^2 / (4 P (1 - P))]}{E[\varphi^2]} - 1 .

The first factor is the variance of the weights of IW-ST, `chi_squared` weighted by the squared slope. The second stays
at lambda = 1: sampled inputs move t, so the slope ``phi(t)`` of every layer but the first fluctuates, by ``E[phi^2] /
E[phi]^2``.

The squared error of the mean of B estimates is ``bias^2(lambda) + variance(lambda) / B``, relative to the squared
gradient. With ``bias^2 = bias^2(0) + lambda^2 beta`` and ``variance = variance(1) + (1 - lambda)^2 D`` it is smallest
at ``lambda* = 1 / (1 + B beta / D)``.

Exact for linear losses of one layer; within 10 % for nearly linear networks with g up to 0.7 and 12 layers. It is a
statement on networks without shortcuts: where a shortcut carries gradients past layers, the variance is far smaller.
beta is small, and not known for wide layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_snn.checks import check_between, check_integer

_LEAST = 1e-30  # straight-through where nothing else decides
_NODES = torch.arange(-96, 97, dtype=torch.float64) / 8  # of the trapezoidal rule, which is exact here to 1e-14


def slope_chi_squared(g: float) -> float:
    r"""Compute ``chi_0^2``, the relative variance that IW-ST(0) adds per layer, for ``t ~ N(0, g^2)``.

    .. math:: \chi_0^2 = E_{t \sim N(0, s^2)}\left[\frac{1}{4 P (1 - P)}\right] - 1, \qquad s^2 = g^2 / (1 + 2 g^2)

    because ``phi(t)^2`` times the density of t is proportional to the density of N(0, s^2).

    Args:
        g: root mean square of the standardized pre-activations, at least 0.

    Returns:
        ``chi_0^2``, at least 0; 0.069, 0.204 and 0.404 for g of 0.35, 0.7 and 1.4.

    Raises:
        ValueError: if `g` is outside its range.

    Example:
        >>> round(slope_chi_squared(0.7), 3)
        0.204
    """
    check_between("g", g, 0.0, math.inf)
    if g == 0:
        return 0.0
    # the integrand falls like the density of N(0, g^2 / (1 + g^2))
    root = _NODES * (g / math.sqrt(1 + g * g) * math.sqrt(0.5))
    squares = root.square()
    shares = (-squares * (1 + 2 * g * g) / (g * g)).exp()
    variance = root.erfc() * (-root).erfc()  # 4 P (1 - P)
    # chi^2 itself, so that nothing cancels for small g
    return float((shares * root.erf().square() / variance).sum() / shares.sum())


def layer_factors(chi_squared: Tensor, slope_spread: Tensor, lam: float) -> Tensor:
    r"""Return by how much each layer multiplies the second moment of a gradient over the square of its mean.

    .. math:: f_l = \bigl(1 + (1 - \lambda)^2 \chi_{0,l}^2\bigr)\,r_l, \qquad r_l = E[\varphi^2] / E[\varphi]^2,
        \quad r_1 = 1

    The slopes of the first layer do not fluctuate, because its input is not sampled.

    Args:
        chi_squared: ``chi_0^2`` of IW-ST(0) by layer, weighted by the squared slope, `[L]`, at least 0.
        slope_spread: ``E[phi^2] / E[phi]^2`` by layer, `[L]`, at least 1; the first value is not used.
        lam: lambda of IW-ST.

    Returns:
        factors `[L]`, at least 1, of the dtype of `chi_squared`.

    Example:
        >>> layer_factors(torch.tensor([0.2, 0.2]), torch.tensor([1.1, 1.1]), lam=0.0)
        tensor([1.2000, 1.3200])
    """
    spread = torch.cat([torch.ones_like(slope_spread[:1]), slope_spread[1:]])
    return (1 + (1 - lam) ** 2 * chi_squared) * spread


def variance_factor(g: float | Sequence[float], lam: float = 0.5, layers: int | None = None) -> float:
    r"""Compute the second moment of the gradient of the first layer over the square of its mean, ``E|g|^2 / |E g|^2``.

    The relative variance of one sample is this value minus 1, that of a mini-batch of B samples 1 / B of it. See the
    module for the equation; `chi_0^2` and the spread of the slope, ``(1 + g^2) / sqrt(1 + 2 g^2)``, are those of ``t ~
    N(0, g^2)`` and Gaussian noise.

    Args:
        g: root mean square of the standardized pre-activations, the ratio of signal to posterior noise, at least 0: a
            number for all layers, or one number per layer.
        lam: lambda of IW-ST in [0, 1].
        layers: number L of noisy layers in sequence, at least 1; None is the length of `g`, 1 if `g` is a number.

    Returns:
        the factor, at least 1; 1 for one layer and lambda = 1.

    Raises:
        ValueError: if an argument is outside its range, or `layers` is not the length of `g`.

    Source: derived and checked for this library. Per layer, for g of 0.35, 0.7 and 1.4, it is 1.006, 1.059 and 1.334
    with lambda 1, and 1.075, 1.275 and 1.873 with lambda 0.

    Example:
        >>> round(variance_factor(0.7, lam=0.0, layers=8), 2)
        6.6
        >>> variance_factor(0.7, lam=1.0, layers=1)
        1.0
    """
    check_between("lam", lam, 0.0, 1.0)
    if layers is not None:
        check_integer("layers", layers)
    if isinstance(g, Sequence):
        if len(g) == 0 or layers not in (None, len(g)):
            raise ValueError(
                f"Expected argument `g` to be a number or to hold one number for each of the layers, but got {len(g)} "
                f"numbers with layers={layers}"
            )
        values = list(g)
    else:
        values = [g] * (1 if layers is None else layers)
    found = {value: slope_chi_squared(value) for value in values}
    chi_squared = torch.tensor([found[value] for value in values], dtype=torch.float64)
    squares = torch.tensor(values, dtype=torch.float64).square()
    return float(layer_factors(chi_squared, (1 + squares) / (1 + 2 * squares).sqrt(), lam).prod())


def bias_difference(square: Tensor, units: Tensor) -> Tensor:
    r"""Estimate beta, the squared relative bias of IW-ST(1) minus that of IW-ST(0).

    .. math:: \beta \approx 0.4 \left(\frac{g^2}{1 + g^2}\right)^{1.75} / n

    Fitted to exact enumerations (`benchmarks/estimators.py --lambdas`) of networks with layers of n = 2 to 10 units in
    {-1, 1}, g from 0.35 to 2.8 and a cross-entropy loss: within 60 % for one layer, from 0 to 3 times that for two to
    four, where it does not grow with depth. For wider layers the 1 / n is a conjecture.

    Args:
        square: g^2, mean square of the standardized pre-activations, at least 0.
        units: n, number of units of a layer, of the shape of `square`.

    Returns:
        beta, of the shape and dtype of `square`.

    Example:
        >>> bias_difference(torch.tensor(0.49), torch.tensor(4.0))
        tensor(0.0143)
    """
    share = square / (1 + square)
    return 0.4 * share**1.75 / units


def best_lambda(
    bias_difference: float | Tensor, variance_difference: float | Tensor, batch_size: float | Tensor
) -> float | Tensor:
    r"""Return the lambda of the smallest squared error of the mean of a mini-batch, ``1 / (1 + B beta / D)``.

    Args:
        bias_difference: beta, the squared relative bias at lambda = 1 minus that at lambda = 0, at least 0.
        variance_difference: D, the relative variance of one sample at lambda = 0 minus that at lambda = 1, at least 0.
        batch_size: B, the number of samples that an optimizer step averages, larger than 0.

    Returns:
        lambda* in [0, 1]: toward 1 where the variance dominates, toward 0 for large batches, 1 if both differences are
        0; a number, or a tensor if an argument is one.

    Example:
        >>> best_lambda(0.02, 0.64, 32)
        0.5
    """
    kept = variance_difference + _LEAST
    return kept / (kept + batch_size * bias_difference)
