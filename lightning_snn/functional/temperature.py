"""Temperature scaling, which calibrates the probabilities of a trained classifier by one number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_snn.functional.scalars import value_like

LOWEST, HIGHEST = 1e-3, 1e3  # range of temperatures to search
_HALVINGS = 60  # of the logarithm of that range: to 1e-17 of it, finer than float64 resolves


def tempered(log_probabilities: Tensor, temperature: Tensor | float) -> Tensor:
    r"""Return class probabilities at a temperature: less confident above 1, more confident below 1.

    .. math:: p_c(\tau) = \frac{p_c^{1/\tau}}{\sum_j p_j^{1/\tau}} = \mathrm{softmax}(z / \tau)_c

    Args:
        log_probabilities: log-probabilities of classes `[N, C]`, or logits, which give the same result.
        temperature: :math:`\tau`, larger than 0.

    Returns:
        Class probabilities `[N, C]`. The most probable class does not change.

    Example:
        >>> tempered(torch.tensor([[2.0, 0.0]]), 2.0)
        tensor([[0.7311, 0.2689]])
    """
    return (log_probabilities / temperature).softmax(-1)


def fit_temperature(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    r"""Find the temperature of the smallest negative log-likelihood, by bisection.

    .. math:: \frac{d}{d\beta} \mathrm{NLL}
        = \frac{1}{N} \sum_n \Big(\sum_c p_{nc}(1/\beta) z_{nc} - z_{n y_n}\Big) , \qquad \beta = 1/\tau

    The negative log-likelihood is convex in :math:`\beta`, so its derivative crosses zero once.

    Args:
        log_probabilities: log-probabilities of classes `[N, C]`, or logits, which give the same result.
        targets: true classes `[N]` of samples that the classifier was not trained on.

    Returns:
        Scalar in float64, from 1e-3 to 1e3. It is an end of that range if the optimum lies outside, for example if all
        samples are classified correctly. nan if there is no sample, or if a true class has probability 0, which no
        temperature changes.

    Source: C. Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.

    Example:
        >>> fit_temperature(torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
        tensor(3.6410, dtype=torch.float64)
    """
    logits = log_probabilities.detach().double().log_softmax(-1)
    of_true_class = logits.gather(1, targets.long()[:, None])[:, 0].mean()
    impossible = of_true_class.isinf() | of_true_class.isnan()
    finite = logits.clamp(min=torch.finfo(logits.dtype).min / 1e9)  # 0 times an infinity is nan
    low, high = (value_like(math.log(end), logits) for end in (LOWEST, HIGHEST))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        mean = (tempered(logits, middle.exp()) * finite).sum(-1).mean()
        overconfident = mean > of_true_class
        low, high = torch.where(overconfident, middle, low), torch.where(overconfident, high, middle)
    return torch.where(impossible, math.nan, ((low + high) / 2).exp())
