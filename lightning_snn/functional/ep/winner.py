r"""Winner-take-all factor: the output with the largest noisy potential spikes, and no other.

Output k receives ``u_k + noise`` with :math:`u_k \sim N(\omega_k, V_k)` and noise of variance :math:`c^2`, independent;
:math:`S_k = V_k + c^2`. That y wins has the probability

.. math:: Z_y = E_{t \sim N(\omega_y, S_y)} \prod_{j \ne y} \Phi(a_j), \qquad a_j = (t - \omega_j) / \sqrt{S_j},

an integral over one dimension, by Gauss-Hermite quadrature at :math:`t = \omega_y + \sqrt{S_y} x`. With the weights
:math:`q \propto w \prod_j \Phi(a_j)` of the nodes, :math:`r_j = \varphi(a_j) / \Phi(a_j)`, :math:`d_y = x / \sqrt{S_y}`
and :math:`d_j = -r_j / \sqrt{S_j}`, the score is :math:`g = E_q d`, and the curvature

.. math:: G_y = \frac{1 - \operatorname{Var}_q x}{S_y}, \qquad
    G_j = \frac{E_q [r_j (r_j + a_j)] - \operatorname{Var}_q r_j}{S_j} ,

which is ``g^2 - E_q h`` with ``h`` the second derivatives, without a difference of large numbers. For two outputs
:math:`Z_1 = \Phi((\omega_1 - \omega_2) / \sqrt{S_1 + S_2})`.

The curvature between outputs is not part of a message, so a parallel update of all outputs goes up to twice as far as
a joint one: the largest eigenvalue of the curvature scaled by its diagonal is 2 for two outputs, and up to 2 for
more. Quadrature has its nodes where t is likely before the label is known: of a label whose output is
10 standard deviations below another one, the probability is too small. Derived here; no part of Yao et al. 2025.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_snn.functional.ep.factors import ACTIVATIONS, NODES, Message
from lightning_snn.functional.gaussian import LOG_SQRT_2PI, hermite_nodes, mills_ratio

OutputActivation = Literal["heaviside", "probit", "sigmoid", "winner"]
OUTPUT_ACTIVATIONS: tuple[OutputActivation, ...] = (*ACTIVATIONS, "winner")

# c^2 of each of two outputs whose difference has the noise 8 / pi of one "probit" neuron
WINNER_NOISE = 4 / math.pi


class _Tilted(NamedTuple):
    """Nodes of the distribution of the winner's noisy potential, given that it wins."""

    x: Tensor  # [nodes, 1]
    share: Tensor  # weights q of the nodes, [nodes, B]
    a: Tensor  # [nodes, B, C]; that of the winner itself is without meaning
    hazard: Tensor  # r, [nodes, B, C]
    total: Tensor  # S, [B, C]
    log_evidence: Tensor  # [B]


def winner_message(
    mean: Tensor, variance: Tensor, labels: Tensor, noise_variance: float = WINNER_NOISE, nodes: int = NODES
) -> Message:
    """Compute the message from the index of the winner to the potentials of all outputs.

    Args:
        mean: means of the potentials, `[B, C]`, C of at least 2.
        variance: variances of the potentials, at least 0, `[B, C]`.
        labels: indices of the winners, integers `[B]`.
        noise_variance: c^2, larger than 0.
        nodes: number of quadrature nodes. With 32 and means of standard deviation 2, the score of ten outputs is within
            3e-5 of its integral for variances up to 3, and within 2e-3 for variances up to 10.

    Returns:
        the message, `[B, C]`; its log evidence is `[B, 1]`, because all outputs share one label.

    Example:
        >>> winner_message(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), 0.5).score
        tensor([[ 0.7979, -0.7979]])
    """
    tilted = _tilted(mean, variance, labels, noise_variance, nodes)
    index = labels.long()[:, None]
    deviation = tilted.total.rsqrt()
    share = tilted.share[:, :, None]
    hazard = (share * tilted.hazard).sum(0)
    spread = (share * (tilted.hazard - hazard).square()).sum(0)
    losing = (share * tilted.hazard * (tilted.hazard + tilted.a)).sum(0) - spread
    x = (tilted.share * tilted.x).sum(0)
    winning = 1 - (tilted.share * (tilted.x - x).square()).sum(0)
    score = (-hazard).scatter(1, index, x[:, None]) * deviation
    curvature = losing.scatter(1, index, winning[:, None]) / tilted.total
    return Message(score, curvature, tilted.log_evidence[:, None])


def winner_log_probabilities(
    mean: Tensor, variance: Tensor, noise_variance: float = WINNER_NOISE, nodes: int = NODES
) -> Tensor:
    """Compute the log-probability that each output wins.

    The quadratures of all outputs are divided by their sum, which is within 0.007 of 1 for variances up to 50.

    Args:
        mean: means of the potentials, `[B, C]`, C of at least 2.
        variance: variances of the potentials, at least 0, `[B, C]`.
        noise_variance: c^2, larger than 0.
        nodes: number of quadrature nodes.

    Returns:
        log-probabilities `[B, C]` in nats, whose exponentials sum to 1.

    Example:
        >>> winner_log_probabilities(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), 0.5).exp()
        tensor([[0.8413, 0.1587]])
    """
    each = [
        _tilted(mean, variance, labels, noise_variance, nodes).log_evidence
        for labels in torch.arange(mean.shape[1], device=mean.device)[:, None].expand(-1, len(mean))
    ]
    return torch.stack(each, 1).log_softmax(1)


def _tilted(mean: Tensor, variance: Tensor, labels: Tensor, noise_variance: float, nodes: int) -> _Tilted:
    index = labels.long()[:, None]
    total = variance + noise_variance
    deviation = total.sqrt()
    table = hermite_nodes(nodes)
    x = mean.new_tensor([node for node, _ in table])[:, None]
    log_weights = mean.new_tensor([math.log(weight) for _, weight in table])[:, None]
    potential = mean.gather(1, index)[:, 0] + x * deviation.gather(1, index)[:, 0]
    a = (potential[:, :, None] - mean) / deviation
    mills = mills_ratio(a.abs())
    log_density = -0.5 * a * a - LOG_SQRT_2PI
    below = a < 0
    # Phi(a) / phi(a) is the Mills ratio below 0 and 1 / phi(a) minus it above, where phi is not small or Phi is 1
    lower = mills * log_density.exp()
    log_cdf = torch.where(below, mills.log() + log_density, torch.log1p(-lower))
    hazard = torch.where(below, mills.reciprocal(), log_density.exp() / (1 - lower))
    own = torch.zeros_like(mean, dtype=torch.bool).scatter_(1, index, True)
    log_shares = log_weights + log_cdf.masked_fill(own, 0.0).sum(2)
    log_evidence = log_shares.logsumexp(0)
    return _Tilted(x, (log_shares - log_evidence).exp(), a, hazard, total, log_evidence)
