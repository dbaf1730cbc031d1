r"""Weights of a few levels: moments, and the damped step that a batch moves them by.

A weight takes one of K levels, :math:`q(w) \propto p(w) \exp(h w - P w^2 / 2)`. A Gaussian weight is the same family
with a flat p on the line, so that both move in the natural parameters (P, h) by one rule. With

.. math:: o = \frac{\operatorname{Cov}(w, w^2)}{2 \operatorname{Var} w}

a change of P acts on the weight as a change :math:`- o` times as large of h does: o is the midpoint of two levels, and
the mean of a Gaussian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.ep.factors import Message
from lightning_snn.functional.ep.mixing import Potential, conjugate_gradients, site_precision
from lightning_snn.functional.linear_maps import LinearMap

# of a level against the most probable one: a weight that is certain still has a variance to divide by
_LEAST_LOG_PROBABILITY = -60.0


def level_moments(
    log_prior: Tensor, levels: Tensor, precision: Tensor, precision_mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of weights of a few levels.

    Args:
        log_prior: log-probabilities of the levels a priori, up to a constant, `[K]` or `[O, I, K]`.
        levels: the values that a weight takes, `[K]`, all different, K at least 2.
        precision, precision_mean: P and h, `[O, I]`.

    Returns:
        means, variances (larger than 0) and o, each `[O, I]`.
    """
    # levels first: sums over a short last axis are slow
    column = levels.reshape(-1, *[1] * precision.dim())
    prior = log_prior.movedim(-1, 0).reshape(len(levels), *log_prior.shape[:-1] or [1] * precision.dim())
    logits = prior + column * (precision_mean - 0.5 * column * precision)
    logits = (logits - logits.amax(0)).clamp_(min=_LEAST_LOG_PROBABILITY)
    probability = logits.softmax(0)
    mean = (column * probability).sum(0)
    # Var w and Cov(w, w^2) / 2 as sums over pairs of levels, which do not cancel
    variance, covariance = torch.zeros_like(mean), torch.zeros_like(mean)
    for i in range(len(levels)):
        for j in range(i):
            spread = probability[i] * probability[j] * (levels[i] - levels[j]) ** 2
            variance += spread
            covariance += spread * ((levels[i] + levels[j]) / 2)
    return mean, variance, covariance / variance


def site_sums(
    linear: LinearMap, x: Tensor, spike_variance: Tensor | None, mean: Tensor, message: Message
) -> tuple[Tensor, Tensor]:
    r"""Sums over a batch of the log evidence's expansion in each weight.

    .. math:: T = G^T (x^2 + D) - (g^2)^T D, \qquad H = g^T x + m \, (g^2 - G)^T D .

    Args:
        linear: the layer's linear map.
        x: means of its inputs, `[M, ...]`.
        spike_variance: their variances D, like `x`; None for inputs that are known.
        mean: of the weights, `[O, I]`.
        message: what the potentials heard.

    Returns:
        T, minus the second derivative, and H, the first, each `[O, I]`.
    """
    score, curvature, _ = message
    second, first = linear.correlate(x * x, curvature), linear.correlate(x, score)
    if spike_variance is None:
        return second, first
    widening = linear.correlate(spike_variance, score * score - curvature, constant=0.0)
    return second - widening, torch.addcmul(first, mean, widening)


def level_sites(
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
    r"""One damped step of weights of a few levels towards cavity times messages.

    With :math:`\Delta P = P_c + T - P` the weights are pulled by :math:`r = h_c + H + m T - h - o \Delta P`. All
    moving at once overshoots, as for Gaussian weights, so that the pull is first taken through the batch's own answer:

    .. math:: (P_d + x^T G_0 x) \, \delta = r, \quad P_d = \max(1 / s - T, 0.1 / s), \quad
        d = r - x^T G_0 x \, \delta + T \delta ,

    and P moves by :math:`\Delta P`, h by :math:`o \Delta P + d`, both damped.

    Args:
        linear: the layer's linear map.
        x: means of its inputs, `[M, ...]`.
        spike_variance: their variances, like `x`; None for inputs that are known.
        potential: what `forward_moments` gave for these inputs and weights.
        message: what the potentials heard, `bounded`.
        cavity: precisions and precision-means `[O, I]` of the weights without this batch.
        natural: the present ones.
        moments: mean, variance and o of the weights, `[O, I]`: those of `level_moments`, and in columns of Gaussian
            weights, such as a bias, mean, variance and again the mean.
        damping: share of the step that is taken.
        limit: largest size of d, a number or broadcast to `[O, I]`, infinite for Gaussian columns. Half the distance
            of the extreme levels times d is the change of a weight's log-odds over 2.
        iterations, tolerance: see `conjugate_gradients`.

    Returns:
        the new precisions and precision-means, each `[O, I]`.
    """
    mean, variance, center = moments
    precision, precision_mean = natural
    second, first = site_sums(linear, x, spike_variance, mean, message)
    precision_step = cavity[0] + second - precision
    pull = cavity[1] + torch.addcmul(first, mean, second) - precision_mean - center * precision_step
    diagonal = torch.maximum(variance.reciprocal() - second, 0.1 / variance)
    sites = site_precision(potential, message)
    preconditioner = diagonal + second  # at least 1 / s
    step = conjugate_gradients(linear, x, sites, diagonal, pull, None, iterations, tolerance, preconditioner)
    answered = pull - linear.correlate(x, sites * linear.apply(x, step)) + second * step
    answered = answered.clamp(-limit, limit)  # type: ignore[arg-type]
    return precision + damping * precision_step, precision_mean + damping * (center * precision_step + answered)
