r"""Mixing block: Gaussian weights W between the input spikes x of a layer and its potentials ``u = W x``.

Inputs have mean x and variance D (0 for data, ``p (1 - p)`` for spikes of probability p), weights mean m and variance
s, all independent. In the forward direction, the two moments of a potential are exact,

.. math:: \omega = m x - V_w g, \qquad V = V_w + (m^2 + s) D, \qquad V_w = s x^2,

where :math:`V_w g`, with the score g that the sample has sent to the weights, removes its contribution to them. In the
backward direction, the messages (g, G) to the potentials are Gaussian sites of precision
:math:`G_0 = G / (1 - V_w G)`. The mean of the weights given all sites of a batch and the cavity :math:`(P_c, h_c)`
solves, row by row,

.. math:: (P_c + R + x^T G_0 x) \, m = h_c + x^T b, \qquad b = G_0 \omega + g (1 + V_w G_0), \qquad
    R = \max(0, (G - g^2)^T D) .

Conjugate gradients solve it without building a matrix. A parallel update of each weight diverges, because inputs that
are never negative share one direction in which all weights overshoot together. Precisions are those of the cavity plus
``R + G_1^T x^2``, see `marginal_curvature`. The cost is that of products of `LinearMap`; no tensor of size samples x
outputs x inputs is stored.

After Yao et al. 2025, arXiv 2506.23757; the conjugate gradients and the correction by the last score are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_snn.functional.ep.factors import Message
from lightning_snn.functional.linear_maps import LinearMap

# lower bound of 1 - V_w G in the precision of a site; smaller values are rounding errors
_MIN_REMAINDER = 1e-3
_NEWTON_STEPS = 4


class Potential(NamedTuple):
    """Moments of the potentials of a layer; each field `[M, O, ...]`.

    Attributes:
        mean: mean, without the contribution of the sample itself to the weights.
        variance: variance.
        weight_variance: part of the variance that is due to the uncertainty of the weights.
        uncorrected_mean: mean with the contribution of the sample itself; None if it is the same.
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
    """Compute the moments of the potentials of a layer.

    Args:
        linear: the layer's linear map.
        x: means of its inputs, `[M, ...]`.
        spike_variance: variances of its inputs, of the shape of `x`; None for known inputs.
        mean: means of the weights, `[O, I]`.
        variance: variances of the weights, `[O, I]`.
        score: g that each sample has sent to the weights, `[M, O, ...]`; None for new samples and for prediction.

    Returns:
        moments of the potentials.

    Example:
        >>> from lightning_snn.functional.linear_maps import DenseMap
        >>> x, mean, variance = torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([[0.5]])
        >>> forward_moments(DenseMap(bias=False), x, None, mean, variance)[:2]
        (tensor([[6.]]), tensor([[2.]]))
    """
    uncorrected = linear.apply(x, mean)
    weight_variance = linear.apply(linear.square(x), variance)
    total = weight_variance
    if spike_variance is not None:
        total = weight_variance + linear.apply(spike_variance, mean * mean + variance, constant=0.0)
    potential = Potential(uncorrected, total, weight_variance)
    return potential if score is None else without_own(potential, score)


def without_own(potential: Potential, score: Tensor) -> Potential:
    """Return the potentials whose means are without the contribution of each sample itself to the weights.

    Args:
        potential: moments of the potentials; an earlier correction of the mean is ignored.
        score: the score that each sample has sent to the weights, of the shape of the means.

    Example:
        >>> without_own(Potential(*torch.tensor([[1.0], [0.5], [0.5]])), torch.tensor([4.0])).mean
        tensor([-1.])
    """
    uncorrected = potential.mean if potential.uncorrected_mean is None else potential.uncorrected_mean
    corrected = torch.addcmul(uncorrected, potential.weight_variance, score, value=-1)
    return potential._replace(mean=corrected, uncorrected_mean=uncorrected)


def own_message(potential: Potential, message: Callable[[Potential], Message]) -> Message:
    r"""Compute the message that a sample has sent to weights which already contain it.

    The score g of that message is the root of

    .. math:: g = \text{score}(\omega - V_w g, V) ,

    where :math:`\omega` is the mean with the contribution of the sample. Newton's method finds it from g = 0: the
    derivative of the difference is :math:`1 - V_w G`, which is positive, so that there is one root.

    Args:
        potential: moments of the potentials, `[M, O, ...]`; a correction of its mean is ignored.
        message: returns the message of a factor to given potentials.

    Returns:
        the message to the potentials without the contribution of the sample; not `bounded`.

    Example:
        >>> from lightning_snn.functional.ep import value_message
        >>> potential = Potential(*torch.tensor([1.0, 0.5, 0.5]).view(3, 1, 1))
        >>> own_message(potential, lambda u: value_message(u.mean, u.variance, torch.full((1, 1), 2.0), 0.25)).score
        tensor([[4.]])
    """
    sent = message(potential)
    score = torch.zeros_like(sent.score)
    for _ in range(_NEWTON_STEPS):
        score = score + (sent.score - score) / _remainder(potential, sent)
        sent = message(without_own(potential, score))
    return sent


def site_precision(potential: Potential, message: Message) -> Tensor:
    """Return the precision ``G / (1 - V_w G)`` of the Gaussian sites `[M, O, ...]`, for `bounded` messages.

    Those of values observed with Gaussian noise are exact: one over the noise and the part of the potential's variance
    that is not due to the weights.
    """
    return message.curvature / _remainder(potential, message)


def _remainder(potential: Potential, message: Message) -> Tensor:
    """Return ``1 - V_w G``, without the cancellation for a Gaussian factor of little noise."""
    if message.noise_variance is None:
        return (1 - potential.weight_variance * message.curvature).clamp(min=_MIN_REMAINDER)
    return (potential.variance - potential.weight_variance + message.noise_variance) * message.curvature


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
    """Solve ``(diagonal_o + x^T site_precision_o x) w_o = right_o`` for every row o by conjugate gradients.

    Each row stops on its own, without synchronization of the device. NaN on the right-hand side of a row gives NaN in
    its solution.

    Args:
        linear: the layer's linear map.
        x: its inputs, `[M, ...]`.
        site_precision: precisions of the sites, `[M, O, ...]`, at least 0.
        diagonal: diagonal terms, `[O, I]`, larger than 0.
        right: right-hand sides, `[O, I]`.
        start: initial solution, `[O, I]`; None for 0.
        iterations: number of steps, at least 1.
        tolerance: a row stops at this preconditioned residual, relative to its initial one.
        preconditioner: approximate diagonal of each row's matrix, `[O, I]`, larger than 0; None computes it.

    Returns:
        solutions w, `[O, I]`.

    Example:
        >>> from lightning_snn.functional.linear_maps import DenseMap
        >>> x, one = torch.tensor([[1.0], [2.0]]), torch.ones(1, 1)
        >>> conjugate_gradients(DenseMap(bias=False), x, torch.ones(2, 1), one, 12 * one)
        tensor([[2.]])
    """
    if preconditioner is None:
        preconditioner = diagonal + linear.correlate(linear.square(x), site_precision)
    scale = preconditioner.reciprocal()
    if start is None:
        solution, residual = None, right
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
        # the condition is that of a row that has settled: comparisons with NaN are false, and NaN must not stop a row
        settled = (decrement <= enough) | (energy <= tiny)
        length = torch.where(settled, 0, decrement / energy)
        solution = length * direction if solution is None else torch.addcmul(solution, length, direction)
        if iteration == iterations - 1:
            break
        step = linear.correlate(x, weighted).addcmul_(diagonal, direction)
        residual = torch.addcmul(residual, length, step, value=-1)
        scaled = scale * residual
        following = (residual * scaled).sum(1, keepdim=True)
        direction = torch.addcmul(scaled, torch.where(settled, 0, following / decrement), direction)
        decrement = following
    assert solution is not None
    return solution


def marginal_curvature(linear: LinearMap, x: Tensor, potential: Potential, curvature: Tensor) -> Tensor:
    r"""Compute the precision that a sample adds to each weight, per square of the weight's input.

    .. math:: G_1 = \frac{2 G}{1 + \sqrt{1 - 4 \rho (1 - \rho) / k}}, \qquad \rho = V_w G, \qquad
        k = \frac{(\sum_i x_i^2)^2}{\sum_i x_i^4} .

    G sees the uncertainty of all weights. That of the weight itself must not reduce its own precision, and that of the
    others is the one without this sample. If the k effective inputs have equal shares of the variance, both are exact
    for a factorized posterior: with one input :math:`G_1` is the precision of the site, the posterior of a single
    weight with Gaussian noise. Without it variances are too large by a share of :math:`\rho (1 - \rho) / k`.

    Args:
        linear: the layer's linear map.
        x: means of its inputs, `[M, ...]`.
        potential: result of `forward_moments` for these inputs.
        curvature: G of the messages to the potentials, after `bounded`.

    Returns:
        :math:`G_1`, of the shape of `curvature`.

    Example:
        >>> from lightning_snn.functional.linear_maps import DenseMap
        >>> half = torch.full((1, 1), 0.5)  # the variance of one weight, as large as the noise
        >>> marginal_curvature(DenseMap(bias=False), torch.ones(1, 1), Potential(half, half, half), 2 * half)
        tensor([[2.]])
    """
    share = potential.weight_variance * curvature
    inputs = linear.effective_inputs(x, curvature.shape[1])
    root = (share * (1 - share)).mul_(-4).div_(inputs).add_(1).clamp_(min=0).sqrt_()
    return (2 * curvature).div_(root.add_(1))


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
    """Compute the mean of Gaussian weights given the cavity and the messages of a batch, and the precision they add.

    Args:
        linear: the layer's linear map.
        x: means of its inputs, `[M, ...]`.
        spike_variance: variances of its inputs, of the shape of `x`; None for known inputs.
        potential: result of `forward_moments` for these inputs and `mean`.
        message: messages to the potentials, after `bounded`.
        cavity: precisions and precision-means `[O, I]` of the weights without this batch.
        mean: present means of the weights, `[O, I]`, the initial solution.
        iterations: see `conjugate_gradients`.
        tolerance: see `conjugate_gradients`.
        variance: "marginal" adds the precision ``R + G_1^T x^2``, which approximates that of a marginal; "conditional"
            adds ``R + G_0^T x^2``, that of a weight given all others.

    Returns:
        means of the weights, and precisions of the sites of the batch, at least 0; each `[O, I]`.
    """
    score, curvature = message.score, message.curvature
    sites = site_precision(potential, message)
    precisions = marginal_curvature(linear, x, potential, curvature) if variance == "marginal" else sites
    added = linear.correlate(linear.square(x), precisions)
    diagonal, precision_mean = cavity
    if spike_variance is not None:
        ridge = linear.correlate(spike_variance, curvature - score * score, constant=0.0).clamp_(min=0)
        diagonal, added = diagonal + ridge, added + ridge
    # b - G_0 (m x): the residual at the present mean, whose product with the inputs is known
    weighted = potential.weight_variance * score
    if potential.uncorrected_mean is not None:
        weighted += potential.mean - potential.uncorrected_mean
    weighted = weighted.mul_(sites).add_(score)
    residual = linear.correlate(x, weighted).add_(precision_mean).addcmul_(diagonal, mean, value=-1)
    # the new precision is close to the diagonal of the matrix, and is available at no cost
    preconditioner = cavity[0] + added
    step = conjugate_gradients(linear, x, sites, diagonal, residual, None, iterations, tolerance, preconditioner)
    return step.add_(mean), added


def input_message(
    linear: LinearMap, x: Tensor, mean: Tensor, variance: Tensor, message: Message
) -> tuple[Tensor, Tensor]:
    r"""Compute the messages of a layer to its inputs, expanded to second order around their means.

    With :math:`K = (g^2 - G) s`, the derivative of the log evidence in an input and minus its second derivative are

    .. math:: \text{score} = g m + x K, \qquad \text{curvature} = G m^2 - K .

    For a binary input of probability x, the message has the log-odds

    .. math:: \lambda = \text{score} + (x - \tfrac12) \, \text{curvature}
        = g m + (x - \tfrac12) \, G m^2 + \tfrac12 K .

    Args:
        linear: the layer's linear map.
        x: means of its inputs, `[M, ...]`.
        mean: means of the weights in the forward pass of the message, `[O, I]`.
        variance: variances of the weights in that forward pass, `[O, I]`.
        message: messages to the potentials.

    Returns:
        score and curvature, each of the shape of `x`.
    """
    score, curvature = message.score, message.curvature
    widening = linear.transpose(score * score - curvature, variance, x.shape)
    slope = linear.transpose(score, mean, x.shape).addcmul_(x, widening)
    return slope, linear.transpose(curvature, mean * mean, x.shape).sub_(widening)
