r"""Mean-field Gaussian posteriors over weights: local reparameterisation and the KL term, in closed form.

With ``q(w) = N(m, sigma^2)`` a linear map of x has Gaussian pre-activations with (Kingma et al. 2015)

.. math:: \mu = m x + b, \qquad v = \sigma^2 x^2 + \sigma_b^2 .
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_moments(
    x: Tensor,
    weight: Tensor,
    weight_variance: Tensor,
    bias: Tensor | None,
    bias_variance: Tensor | None,
    binary: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a Bayesian linear map.

    Args:
        x: input `[..., N]`.
        weight, weight_variance: posterior mean and variance `[M, N]`.
        bias, bias_variance: posterior mean and variance `[M]`, both None without a bias.
        binary: `x` holds 0 and 1 only, so that ``x^2 = x``: the square is skipped, and the gradient of the variance
            with respect to a spike is its exact difference.

    Returns:
        mean and variance, each `[..., M]`.
    """
    return F.linear(x, weight, bias), F.linear(x if binary else x.square(), weight_variance, bias_variance)


def conv2d_moments(
    x: Tensor,
    weight: Tensor,
    weight_variance: Tensor,
    bias: Tensor | None,
    bias_variance: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: int,
    binary: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a Bayesian 2-D convolution of `x` `[B, C, H, W]`; weights `[C_out, C / groups, kh, kw]`.

    The noise of each output position is taken as independent: marginals are exact, spatial correlation is dropped.
    `binary` is as in `linear_moments`.
    """
    mean = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    squared = x if binary else x.square()
    return mean, F.conv2d(squared, weight_variance, bias_variance, stride, padding, dilation, groups)


def gaussian_kl(mean: Tensor, log_std: Tensor, prior_std: float | Tensor) -> Tensor:
    """``KL(N(mean, exp(log_std)^2) || N(0, prior_std^2))``, summed over all elements; a scalar in nats, at least 0."""
    log_prior = torch.log(torch.as_tensor(prior_std, dtype=mean.dtype, device=mean.device))
    variance_ratio = (2 * (log_std - log_prior)).exp()
    scaled_mean = (mean * torch.exp(-log_prior)).square()
    return 0.5 * (variance_ratio + scaled_mean - 1 - 2 * (log_std - log_prior)).sum()


def sample(mean: Tensor, variance: Tensor) -> Tensor:
    """A reparameterised draw ``mean + sqrt(variance) eps``; finite gradients where the variance is 0."""
    return torch.addcmul(mean, (variance + 1e-8).sqrt(), torch.randn_like(mean))
