r"""Responses that are almost linear: their gain, their noise, and the accuracy that noise leaves.

A function r of a random number x is split into a linear part and noise that is uncorrelated with x:

.. math:: r(x) = a x + n, \quad a = E[x r] / E[x^2], \quad
    \mathrm{NSR} = E[n^2] / E[(a x)^2] = E[r^2] E[x^2] / E[x r]^2 - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_snn.functional.gaussian import hermite_nodes, normal_cdf

_NODES = 40


def gain_and_noise(x: Tensor, response: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Compute the gain ``a = E[x r] / E[x^2]`` and the noise-to-signal ratio ``E[r^2] E[x^2] / E[x r]^2 - 1``.

    Args:
        x: numbers, any shape, not all 0.
        response: r of each of them, of the same shape.
        counts: how often each number occurs, of the same shape, at least 0; None counts each once.

    Returns:
        gain and noise-to-signal ratio, scalars. The ratio is at least 0 except for rounding, and infinite for a
        response that is uncorrelated with `x`, such as 0.

    Example:
        >>> x = torch.tensor([1.0, 2.0])
        >>> gain_and_noise(x, x.clamp(max=1.0))
        (tensor(0.6000), tensor(0.1111))
    """
    weight = torch.ones_like(x) if counts is None else counts
    power, product = (weight * x * x).sum(), (weight * x * response).sum()
    ratio = (weight * response * response).sum() * power / product.square() - 1
    return product / power, torch.where(product == 0, torch.inf, ratio)


def accuracy_under_noise(logits: Tensor, labels: Tensor, noise: Tensor | float) -> Tensor:
    r"""Compute the expected accuracy of logits plus Gaussian noise, without drawing it.

    .. math:: \frac1N \sum_n E_{t \sim N(l_{n y_n}, \sigma^2)} \prod_{j \ne y_n} \Phi\big((t - l_{nj}) / \sigma\big),
        \quad \sigma^2 = \mathrm{NSR} \cdot \frac1{NC} \sum_{nj} l_{nj}^2

    Args:
        logits: logits l, shape `[N, C]`.
        labels: classes y, shape `[N]`, integers from 0.
        noise: noise-to-signal ratio NSR, at least 0; 0 gives the accuracy of the logits.

    Returns:
        The accuracy, a scalar in float64 within [0, 1], from 40 Gauss-Hermite nodes per sample.

    Raises:
        ValueError: if shapes do not fit together, or `noise` is negative or NaN.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> accuracy_under_noise(logits, torch.tensor([0, 1]), noise=0.0)
        tensor(1., dtype=torch.float64)
        >>> accuracy_under_noise(logits, torch.tensor([0, 1]), noise=1.0)
        tensor(0.8168, dtype=torch.float64)
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or len(logits) == 0:
        raise ValueError(
            "Expected arguments `logits` and `labels` to have shapes (N, C) and (N,), but got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    logits = logits.double()
    ratio = torch.as_tensor(noise, dtype=torch.float64, device=logits.device)
    if not ratio >= 0:
        raise ValueError(f"Expected argument `noise` to be a number of at least 0, but got {ratio:g}")
    deviation = (ratio * logits.square().mean()).sqrt()
    if deviation == 0:
        return (logits.argmax(1) == labels).double().mean()
    # differences to the logit of the class, in standard deviations
    margins = (logits.gather(1, labels[:, None]) - logits) / deviation
    own = torch.zeros_like(margins, dtype=torch.bool).scatter_(1, labels[:, None], True)
    nodes, weights = torch.tensor(hermite_nodes(_NODES), dtype=torch.float64, device=logits.device).unbind(1)
    below = torch.ones_like(margins[:, :1]) * torch.ones_like(nodes)
    for margin, ignored in zip(margins.unbind(1), own.unbind(1), strict=True):
        below = below * torch.where(ignored[:, None], 1.0, normal_cdf(nodes + margin[:, None]))
    return (below @ weights).mean()
