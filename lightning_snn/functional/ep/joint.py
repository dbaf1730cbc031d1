r"""The mixing block with full covariances: exact for given sites, for layers of up to about 200 inputs.

Row by row the weights have the joint posterior :math:`S = (\operatorname{diag} P_c + x^T G_0 x)^{-1}` and the cavity of
a potential is its marginal without its own site, where `mixing` keeps variances only and expands. It takes a matrix for
every output unit; its use is to say what the factorized block gives away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.ep.factors import Message
from lightning_snn.functional.ep.mixing import Potential, site_precision


def joint_posterior(
    x: Tensor, potential: Potential, message: Message, cavity: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Posterior of the rows of weights given the messages of a batch.

    Args:
        x: known inputs, `[M, I]`, a column of ones among them where there is a bias.
        potential: cavities of the potentials `[M, O]` that the messages answer.
        message: what the potentials heard, `bounded`.
        cavity: precisions and precision-means `[O, I]` of the weights without this batch.

    Returns:
        means `[O, I]` and covariances `[O, I, I]`.
    """
    sites, b = _sites(potential, message)
    matrices = torch.diag_embed(cavity[0]) + torch.einsum("no,ni,nj->oij", sites, x, x)
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(matrices))
    return (covariance @ (cavity[1] + b.T @ x)[..., None])[..., 0], covariance


def joint_cavity(x: Tensor, potential: Potential, message: Message, mean: Tensor, covariance: Tensor) -> Potential:
    """Moments of potentials without their own sites.

    Args:
        x: known inputs, `[M, I]`.
        potential: the cavities `[M, O]` that gave the messages.
        message: what the potentials heard, `bounded`.
        mean, covariance: what `joint_posterior` gave for these, `[O, I]` and `[O, I, I]`.

    Returns:
        the new cavities of the potentials.
    """
    sites, b = _sites(potential, message)
    marginal = torch.einsum("ni,oij,nj->no", x, covariance, x)
    variance = 1 / (1 / marginal - sites)
    return Potential(variance * (x @ mean.T / marginal - b), variance, variance)


def _sites(potential: Potential, message: Message) -> tuple[Tensor, Tensor]:
    """Precisions and precision-means of the Gaussian sites of the potentials."""
    sites = site_precision(potential, message)
    return sites, sites * potential.mean + message.score * (1 + potential.weight_variance * sites)
