r"""Quantized weights: moments, and the damped update of their natural parameters by a batch.

A weight takes one of K levels, :math:`q(w) \propto p(w) \exp(h w - P w^2 / 2)`. A Gaussian weight belongs to the same
family, with a flat p on the real line, so one rule updates the natural parameters (P, h) of both. With

.. math:: o = \frac{\operatorname{Cov}(w, w^2)}{2 \operatorname{Var} w}

a change of P by :math:`\delta` has the effect of a change of h by :math:`- o \delta`. o is the midpoint of two levels,
or the mean of a Gaussian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.ep.factors import Message
from lightning_snn.functional.ep.mixing import Potential, conjugate_gradients, site_precision
from lightning_snn.functional.linear_maps import LinearMap

# relative to the most probable level, so that the variance of a weight is never 0
_MIN_LOG_PROBABILITY = -60.0


def quantized_moments(
    log_prior: Tensor, levels: Tensor, precision: Tensor, precision_mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the moments of quantized weights.

    Args:
        log_prior: log-probabilities of the levels a priori, up to a constant, `[K]` or `[O, I, K]`.
        levels: values that a weight can take, `[K]`, all different, K at least 2.
        precision: P, `[O, I]`.
        precision_mean: h, `[O, I]`.

    Returns:
        means, variances (larger than 0) and o, each `[O, I]`.

    Example:
        >>> levels, zero = torch.tensor([-1.0, 0.0, 1.0]), torch.zeros(1, 1)
        >>> quantized_moments(torch.zeros(3), levels, zero, zero)
        (tensor([[0.]]), tensor([[0.6667]]), tensor([[0.]]))
    """
    # levels in the first dimension, because sums over a short last dimension are slow
    column = levels.reshape(-1, *[1] * precision.dim())
    prior = log_prior.movedim(-1, 0).reshape(len(levels), *log_prior.shape[:-1] or [1] * precision.dim())
    logits = prior + column * (precision_mean - 0.5 * column * precision)
    logits = (logits - logits.amax(0)).clamp_(min=_MIN_LOG_PROBABILITY)
    probability = logits.softmax(0)
    mean = (column * probability).sum(0)
    # Var w and Cov(w, w^2) / 2 as sums over pairs of levels, to avoid cancellation
    variance, covariance = torch.zeros_like(mean), torch.zeros_like(mean)
    for i in range(len(levels)):
        for j in range(i):
            pair_variance = probability[i] * probability[j] * (levels[i] - levels[j]) ** 2
            variance += pair_variance
            covariance += pair_variance * ((levels[i] + levels[j]) / 2)
    return mean, variance, covariance / variance


def site_sums(
    linear: LinearMap, x: Tensor, spike_variance: Tensor | None, mean: Tensor, message: Message
) -> tuple[Tensor, Tensor]:
    r"""Sum the second-order expansion of the log evidence in each weight over a batch.

    .. math:: T = G^T (x^2 + D) - (g^2)^T D, \qquad H = g^T x + m \, (g^2 - G)^T D .

    Args:
        linear: the layer's linear map.
        x: means of its inputs, `[M, ...]`.
        spike_variance: variances D of its inputs, of the shape of `x`; None for known inputs.
        mean: means m of the weights, `[O, I]`.
        message: messages to the potentials.

    Returns:
        T, minus the second derivative, and H, the first derivative, each `[O, I]`.
    """
    score, curvature = message.score, message.curvature
    second, first = linear.correlate(linear.square(x), curvature), linear.correlate(x, score)
    if spike_variance is None:
        return second, first
    widening = linear.correlate(spike_variance, score * score - curvature, constant=0.0)
    return second - widening, torch.addcmul(first, mean, widening)


def quantized_sites(
    linear: LinearMap,
    x: Tensor,
    spike_variance: Tensor | None,
    potential: Potential,
    message: Message,
    cavity: tuple[Tensor, Tensor],
    natural: tuple[Tensor, Tensor],
    moments: tuple[Tensor, Tensor, Tensor],
    damping: Tensor | float,
    limit: Tensor | float,
    iterations: int = 5,
    tolerance: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    r"""Update the natural parameters of quantized weights by one damped step toward cavity times messages.

    With :math:`\Delta P = P_c + T - P`, the residual of h is :math:`r = h_c + H + m T - h - o \Delta P`. A parallel
    update of all weights overshoots, as for Gaussian weights, so the residual is first corrected by the response of the
    batch:

    .. math:: (P_d + x^T G_0 x) \, \delta = r, \quad P_d = \max(1 / s - T, 0.1 / s), \quad
        d = r - x^T G_0 x \, \delta + T \delta ,

    Then P changes by :math:`\Delta P` and h by :math:`o \Delta P + d`, both damped.

    Args:
        linear: the layer's linear map.
        x: means of its inputs, `[M, ...]`.
        spike_variance: variances of its inputs, of the shape of `x`; None for known inputs.
        potential: result of `forward_moments` for these inputs and weights.
        message: messages to the potentials, after `bounded`.
        cavity: precisions and precision-means `[O, I]` of the weights without this batch.
        natural: present precisions and precision-means `[O, I]`.
        moments: mean, variance and o of the weights, each `[O, I]`, from `quantized_moments`. For Gaussian weights,
            such as a bias, o is the mean.
        damping: fraction of the step, a number or a tensor that broadcasts to `[O, I]`.
        limit: largest absolute value of d, a number or a tensor that broadcasts to `[O, I]`; infinite for Gaussian
            weights. Half the distance of the extreme levels times d is half the change of a weight's log-odds.
        iterations: see `conjugate_gradients`.
        tolerance: see `conjugate_gradients`.

    Returns:
        new precisions and precision-means, each `[O, I]`.
    """
    mean, variance, center = moments
    precision, precision_mean = natural
    second, first = site_sums(linear, x, spike_variance, mean, message)
    precision_step = cavity[0] + second - precision
    residual = cavity[1] + torch.addcmul(first, mean, second) - precision_mean - center * precision_step
    diagonal = torch.maximum(variance.reciprocal() - second, 0.1 / variance)
    sites = site_precision(potential, message)
    preconditioner = diagonal + second  # at least 1 / s
    step = conjugate_gradients(linear, x, sites, diagonal, residual, None, iterations, tolerance, preconditioner)
    corrected = residual - linear.correlate(x, sites * linear.apply(x, step)) + second * step
    corrected = corrected.clamp(-limit, limit)  # type: ignore[arg-type]
    return precision + damping * precision_step, precision_mean + damping * (center * precision_step + corrected)
