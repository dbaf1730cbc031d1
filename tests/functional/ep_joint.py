r"""Mixing block with full covariances: exact for given sites, for layers of up to about 200 inputs.

Each row of weights has the joint posterior :math:`S = (\operatorname{diag} P_c + x^T G_0 x)^{-1}`, and the cavity of a
potential is its marginal without its own site. `lightning_snn.functional.ep.mixing` keeps variances only and expands.
This block needs one matrix per output unit. It is the reference for the error of the factorized block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.ep import Message, Potential, site_precision


def joint_posterior(
    x: Tensor, potential: Potential, message: Message, cavity: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute the posterior of the rows of weights given the messages of a batch.

    Args:
        x: known inputs, `[M, I]`, including a column of ones if there is a bias.
        potential: cavities of the potentials `[M, O]` of the messages.
        message: messages to the potentials, after `bounded`.
        cavity: precisions and precision-means `[O, I]` of the weights without this batch.

    Returns:
        means `[O, I]` and covariances `[O, I, I]`.
    """
    sites, b = _sites(potential, message)
    matrices = torch.diag_embed(cavity[0]) + torch.einsum("no,ni,nj->oij", sites, x, x)
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(matrices))
    return (covariance @ (cavity[1] + b.T @ x)[..., None])[..., 0], covariance


def joint_cavity(x: Tensor, potential: Potential, message: Message, mean: Tensor, covariance: Tensor) -> Potential:
    """Compute the moments of potentials without their own sites.

    Args:
        x: known inputs, `[M, I]`.
        potential: cavities `[M, O]` of the messages.
        message: messages to the potentials, after `bounded`.
        mean: means from `joint_posterior`, `[O, I]`.
        covariance: covariances from `joint_posterior`, `[O, I, I]`.

    Returns:
        new cavities of the potentials.
    """
    sites, b = _sites(potential, message)
    marginal = torch.einsum("ni,oij,nj->no", x, covariance, x)
    variance = 1 / (1 / marginal - sites)
    return Potential(variance * (x @ mean.T / marginal - b), variance, variance)


def _sites(potential: Potential, message: Message) -> tuple[Tensor, Tensor]:
    """Return precisions and precision-means of the Gaussian sites of the potentials."""
    sites = site_precision(potential, message)
    return sites, sites * potential.mean + message.score * (1 + potential.weight_variance * sites)
