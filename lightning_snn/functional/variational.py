r"""Mean-field Gaussian posteriors over weights: local reparameterization and the KL term, in closed form.

With ``q(w) = N(m, sigma^2)`` a linear map of x has Gaussian pre-activations with (Kingma et al. 2015)

.. math:: \mu = m x + b, \qquad v = \sigma^2 x^2 + \sigma_b^2 ,

and, where x is itself Gaussian with variance V, ``v = (m^2 + sigma^2) V + sigma^2 x^2 + sigma_b^2``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Values = Literal["real", "spikes", "signs"]
LinearMap = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def linear_moments(
    x: Tensor,
    weight: Tensor,
    weight_variance: Tensor,
    bias: Tensor | None = None,
    bias_variance: Tensor | None = None,
    values: Values = "real",
    x_variance: Tensor | None = None,
    apply: LinearMap = F.linear,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a Bayesian linear map.

    Of a convolution the noise of each output position is taken as independent: marginals are exact, spatial correlation
    is dropped.

    Args:
        x: input `[..., N]`, or what `apply` takes.
        weight, weight_variance: posterior mean and variance `[M, N]`.
        bias, bias_variance: posterior mean and variance `[M]`, both None without a bias.
        values: what `x` holds. "spikes" are 0 and 1, so that ``x^2 = x``: the square is skipped, and the gradient of
            the variance with respect to a spike is its exact difference. "signs" are -1 and 1, so that ``x^2 = 1``
            and the variance is the same for every row: one row is computed and expanded.
        x_variance: variance of a Gaussian input, like `x`; None where the input is known.
        apply: the linear map ``(x, weight, bias)``, such as `F.linear` or a convolution with its geometry bound.

    Returns:
        mean and variance, each `[..., M]`.
    """
    mean = apply(x, weight, bias)
    if values == "signs" and x_variance is None:
        return mean, apply(torch.ones_like(x[:1]), weight_variance, bias_variance).expand_as(mean)
    variance = apply(x if values == "spikes" else x.square(), weight_variance, bias_variance)
    if x_variance is not None:
        variance = variance + apply(x_variance, weight.square() + weight_variance, None)
    return mean, variance


def gaussian_kl(mean: Tensor, log_std: Tensor, prior_std: float | Tensor) -> Tensor:
    """``KL(N(mean, exp(log_std)^2) || N(0, prior_std^2))``, summed over all elements; a scalar in nats, at least 0."""
    log_prior = torch.log(torch.as_tensor(prior_std, dtype=mean.dtype, device=mean.device))
    variance_ratio = (2 * (log_std - log_prior)).exp()
    scaled_mean = (mean * torch.exp(-log_prior)).square()
    return 0.5 * (variance_ratio + scaled_mean - 1 - 2 * (log_std - log_prior)).sum()


def sample(mean: Tensor, variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A reparameterized draw ``mean + sqrt(variance) eps``; finite gradients where the variance is 0."""
    noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
    return torch.addcmul(mean, (variance + 1e-8).sqrt(), noise)
