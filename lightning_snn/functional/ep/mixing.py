r"""The mixing block: Gaussian weights W between spikes x of a layer and its potentials ``u = W x``.

Inputs have mean x and variance D (0 for data, ``p (1 - p)`` for spikes of probability p), weights mean m and variance
s, all independent. Forward, the two moments of a potential are exact,

.. math:: \omega = m x - V_w g, \qquad V = V_w + (m^2 + s) D, \qquad V_w = s x^2,

where :math:`V_w g`, with the score g of the iteration before, takes away what the sample itself told the weights.
Backward, the messages (g, G) of the potentials are Gaussian sites of precision :math:`G_0 = G / (1 - V_w G)`, and the
mean of the weights given all sites of a batch and the cavity :math:`(P_c, h_c)` solves, row by row,

.. math:: (P_c + R + x^T G_0 x) \, m = h_c + x^T b, \qquad b = G_0 \omega + g (1 + V_w G_0), \qquad
    R = \max(0, (G - g^2)^T D) .

It is solved by conjugate gradients, matrix-free: a parallel update of every weight by itself diverges, because inputs
that are never negative share one direction in which all weights would overshoot together. Precisions are those of the
cavity plus ``R + G^T x^2``. All cost is in products of `LinearMap`; nothing of the size samples x outputs x inputs is
ever stored.

After Yao et al. 2025, arXiv 2506.23757; the conjugate gradients and the correction by the last score are ours.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_snn.functional.ep.factors import Message
from lightning_snn.functional.linear_maps import LinearMap

# 1 - V_w G from which a site's precision is taken: less is rounding
_LEAST_REMAINDER = 1e-3


class Potential(NamedTuple):
    """Moments of the potentials of a layer; each field `[M, O, ...]`.

    Attributes:
        mean: the mean, without what the sample itself told the weights.
        variance: the variance.
        weight_variance: its part that is due to the uncertainty of the weights.
        uncorrected_mean: the mean under the weights as they are; None where it is the same.
    """

    mean: Tensor
    variance: Tensor
    weight_variance: Tensor
    uncorrected_mean: Tensor | None = None


def forward_moments(
    linear: LinearMap,
    x: Tensor,
    spike_variance: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    score: Tensor | None = None,
) -> Potential:
    """Moments of the potentials of a layer.

    Args:
        linear: the layer's linear map.
        x: means of its inputs, `[M, ...]`.
        spike_variance: their variances, like `x`; None for inputs that are known.
        mean, variance: of the weights, `[O, I]`.
        score: g of the iteration before, `[M, O, ...]`; None in the first, and for prediction.

    Returns:
        the moments.
    """
    uncorrected = linear.apply(x, mean)
    weight_variance = linear.apply(x * x, variance)
    total = weight_variance
    if spike_variance is not None:
        total = weight_variance + linear.apply(spike_variance, mean * mean + variance, constant=0.0)
    if score is None:
        return Potential(uncorrected, total, weight_variance)
    corrected = torch.addcmul(uncorrected, weight_variance, score, value=-1)
    return Potential(corrected, total, weight_variance, uncorrected)


def site_precision(potential: Potential, message: Message) -> Tensor:
    """Precision ``G / (1 - V_w G)`` of the Gaussian sites of the potentials, `[M, O, ...]`, for `bounded` messages."""
    return message.curvature / (1 - potential.weight_variance * message.curvature).clamp(min=_LEAST_REMAINDER)


def conjugate_gradients(
    linear: LinearMap,
    x: Tensor,
    site_precision: Tensor,
    diagonal: Tensor,
    right: Tensor,
    start: Tensor | None = None,
    iterations: int = 5,
    tolerance: float = 1e-3,
    preconditioner: Tensor | None = None,
) -> Tensor:
    """Solves ``(diagonal_o + x^T site_precision_o x) w_o = right_o`` for every row o by conjugate gradients.

    Rows stop by themselves, without a word from the device.

    Args:
        linear: the layer's linear map.
        x: its inputs, `[M, ...]`.
        site_precision: `[M, O, ...]`, at least 0.
        diagonal: `[O, I]`, larger than 0.
        right: `[O, I]`.
        start: where to start, `[O, I]`; None for 0.
        iterations: steps, at least 1.
        tolerance: a row stops at this preconditioned residual, relative to that of its start.
        preconditioner: roughly the diagonal of each row's matrix, `[O, I]`, larger than 0; None computes it.

    Returns:
        the rows w, `[O, I]`.
    """
    if preconditioner is None:
        preconditioner = diagonal + linear.correlate(x * x, site_precision)
    scale = preconditioner.reciprocal()
    if start is None:
        solution, residual = torch.zeros_like(right), right
    else:
        solution = start
        residual = right - diagonal * start - linear.correlate(x, site_precision * linear.apply(x, start))
    scaled = scale * residual
    direction = scaled
    decrement = (residual * scaled).sum(1, keepdim=True)
    enough = tolerance**2 * decrement
    tiny = torch.finfo(right.dtype).tiny
    samples = [axis for axis in range(site_precision.dim()) if axis != 1]
    for iteration in range(iterations):
        image = linear.apply(x, direction)
        weighted = site_precision * image
        energy = (diagonal * direction).mul_(direction).sum(1, keepdim=True)
        energy += image.mul_(weighted).sum(samples)[:, None]
        moving = (decrement > enough) & (energy > tiny)
        length = torch.where(moving, decrement / energy, 0)
        solution = torch.addcmul(solution, length, direction)
        if iteration == iterations - 1:
            break
        step = linear.correlate(x, weighted).addcmul_(diagonal, direction)
        residual = torch.addcmul(residual, length, step, value=-1)
        scaled = scale * residual
        following = (residual * scaled).sum(1, keepdim=True)
        direction = torch.addcmul(scaled, torch.where(moving, following / decrement, 0), direction)
        decrement = following
    return solution


def gaussian_sites(
    linear: LinearMap,
    x: Tensor,
    spike_variance: Tensor | None,
    potential: Potential,
    message: Message,
    cavity: tuple[Tensor, Tensor],
    mean: Tensor,
    iterations: int = 5,
    tolerance: float = 1e-3,
    variance: Literal["marginal", "conditional"] = "marginal",
) -> tuple[Tensor, Tensor]:
    """Mean of Gaussian weights given the cavity and the messages of a batch, and the precision that these add.

    Args:
        linear: the layer's linear map.
        x: means of its inputs, `[M, ...]`.
        spike_variance: their variances, like `x`; None for inputs that are known.
        potential: what `forward_moments` gave for these inputs and `mean`.
        message: what the potentials heard, `bounded`.
        cavity: precisions and precision-means `[O, I]` of the weights without this batch.
        mean: the present mean of the weights, `[O, I]`, from which the solution starts.
        iterations, tolerance: see `conjugate_gradients`.
        variance: whether the added precision is ``R + G^T x^2``, near that of a marginal, or ``R + G_0^T x^2``, that
            of a weight given all others.

    Returns:
        the mean of the weights, and the precision of the batch's sites, at least 0; each `[O, I]`.
    """
    score, curvature, _ = message
    sites = site_precision(potential, message)
    added = linear.correlate(x * x, curvature if variance == "marginal" else sites)
    diagonal, precision_mean = cavity
    if spike_variance is not None:
        ridge = linear.correlate(spike_variance, curvature - score * score, constant=0.0).clamp_(min=0)
        diagonal, added = diagonal + ridge, added + ridge
    # b - G_0 (m x): what is left of the right side at the present mean, whose product with the inputs is known
    pull = potential.weight_variance * score
    if potential.uncorrected_mean is not None:
        pull += potential.mean - potential.uncorrected_mean
    pull = pull.mul_(sites).add_(score)
    residual = precision_mean - diagonal * mean + linear.correlate(x, pull)
    # the precision to come is near enough the diagonal of the matrix to precondition with, and costs nothing
    preconditioner = cavity[0] + added
    step = conjugate_gradients(linear, x, sites, diagonal, residual, None, iterations, tolerance, preconditioner)
    return step.add_(mean), added


def input_message(
    linear: LinearMap, x: Tensor, mean: Tensor, variance: Tensor, message: Message
) -> tuple[Tensor, Tensor]:
    r"""What a layer tells about its inputs, expanded to second order around their means.

    With :math:`K = (g^2 - G) s`, the derivative of the log-evidence in an input and minus its second derivative are

    .. math:: \text{score} = g m + x K, \qquad \text{curvature} = G m^2 - K .

    To a binary input of probability x that sends the log-odds

    .. math:: \lambda = \text{score} + (x - \tfrac12) \, \text{curvature}
        = g m + (x - \tfrac12) \, G m^2 + \tfrac12 K .

    Args:
        linear: the layer's linear map.
        x: means of its inputs, `[M, ...]`.
        mean, variance: of the weights, `[O, I]`, those of the forward pass that the message answers.
        message: what the potentials heard.

    Returns:
        score and curvature, each of the shape of `x`.
    """
    score, curvature, _ = message
    widening = linear.transpose(score * score - curvature, variance, x.shape)
    slope = linear.transpose(score, mean, x.shape).addcmul_(x, widening)
    return slope, linear.transpose(curvature, mean * mean, x.shape).sub_(widening)
