r"""Mean-field Gaussian posteriors over weights: local reparameterization and KL divergence, in closed form.

With ``q(w) = N(m, sigma^2)`` a linear map of x has Gaussian pre-activations with (Kingma et al. 2015)

.. math:: \mu = m x + b, \qquad v = \sigma^2 x^2 + \sigma_b^2 ,

and, if x is itself Gaussian with variance V, ``v = (m^2 + sigma^2) V + sigma^2 x^2 + sigma_b^2``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_snn.functional.draws import normal_like
from lightning_snn.functional.scalars import value_like

Values = Literal["real", "spikes", "signs"]
AffineFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def linear_moments(
    x: Tensor,
    weight: Tensor,
    weight_variance: Tensor,
    bias: Tensor | None = None,
    bias_variance: Tensor | None = None,
    values: Values = "real",
    x_variance: Tensor | None = None,
    apply: AffineFunction = F.linear,
) -> tuple[Tensor, Tensor]:
    """Compute mean and variance of the outputs of a linear map with Gaussian weights.

    For a convolution, the noise of each output position is treated as independent: marginals are exact, and spatial
    correlation is ignored.

    Args:
        x: input `[..., N]`, or any input of `apply`.
        weight: posterior mean `[M, N]`.
        weight_variance: posterior variance `[M, N]`.
        bias: posterior mean `[M]`; None without a bias.
        bias_variance: posterior variance `[M]`; None without a bias.
        values: kind of values in `x`. "spikes" are 0 and 1, so ``x^2 = x``: the square is skipped, and the gradient of
            the variance with respect to a spike is its exact difference. "signs" are -1 and 1, so ``x^2 = 1`` and the
            variance is the same for every row: one row is computed and expanded.
        x_variance: variance of a Gaussian input, of the shape of `x`; None if the input is known.
        apply: function ``(x, weight, bias)`` that applies the map, such as `F.linear` or a convolution with its
            geometry bound.

    Returns:
        mean and variance, each `[..., M]`.

    Example:
        >>> linear_moments(torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([[0.5]]))
        (tensor([[6.]]), tensor([[2.]]))
    """
    mean = apply(x, weight, bias)
    if values == "signs" and x_variance is None:
        return mean, apply(torch.ones_like(x[:1]), weight_variance, bias_variance).expand_as(mean)
    variance = apply(x if values == "spikes" else x.square(), weight_variance, bias_variance)
    if x_variance is not None:
        variance = variance + apply(x_variance, weight.square() + weight_variance, None)
    return mean, variance


def gaussian_kl(mean: Tensor, log_std: Tensor, prior_std: float | Tensor) -> Tensor:
    """Return ``KL(N(mean, exp(log_std)^2) || N(0, prior_std^2))``, summed over all elements.

    Args:
        mean: posterior means, any shape.
        log_std: logarithms of the posterior standard deviations, of the same shape.
        prior_std: standard deviation of the prior, larger than 0, a number or a tensor that broadcasts to `mean`.

    Returns:
        Scalar in nats, at least 0.

    Example:
        >>> gaussian_kl(torch.tensor([0.0, 2.0]), torch.zeros(2), prior_std=1.0)
        tensor(2.)
    """
    log_prior = torch.log(value_like(prior_std, mean))
    variance_ratio = (2 * (log_std - log_prior)).exp()
    scaled_mean = (mean * torch.exp(-log_prior)).square()
    return 0.5 * (variance_ratio + scaled_mean - 1 - 2 * (log_std - log_prior)).sum()


def sample(mean: Tensor, variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw the reparameterized sample ``mean + sqrt(variance + 1e-8) eps``, whose gradients are finite at variance 0.

    Args:
        mean: means, any shape.
        variance: variances, at least 0, of the same shape.
        generator: source of the noise; None is torch's default.

    Returns:
        samples of the shape and dtype of `mean`.

    Example:
        >>> sample(torch.ones(2), torch.tensor([0.0, 4.0]), torch.Generator().manual_seed(0))
        tensor([1.0002, 0.4131])
    """
    noise = normal_like(mean, mean.dtype, generator)
    return torch.addcmul(mean, (variance + 1e-8).sqrt(), noise)
