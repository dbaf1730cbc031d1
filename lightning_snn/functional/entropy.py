"""Entropies of class probabilities: how uncertain a prediction is, and how much of that its samples disagree about."""

from __future__ import annotations

import torch
from torch import Tensor


def predictive_entropy(probabilities: Tensor) -> Tensor:
    r"""Entropy of class probabilities: the total uncertainty of a prediction.

    .. math:: H[p] = -\sum_c p_c \log p_c , \qquad 0 \log 0 = 0

    Args:
        probabilities: class probabilities `[..., C]`, in [0, 1].

    Returns:
        Shape `[...]`, in nats, within [0, log C], in float32 or wider.

    Example:
        >>> predictive_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    return torch.special.entr(_widened(probabilities)).sum(-1)


def expected_entropy(samples: Tensor) -> Tensor:
    r"""Mean entropy of K predictions: the uncertainty that each of them has on its own, often called aleatoric.

    .. math:: \frac{1}{K} \sum_k H[p_k]

    Args:
        samples: class probabilities `[K, ..., C]`, K of at least 1. They are gone through one by one, so that beside
            them only one prediction's worth of memory is needed.

    Returns:
        Shape `[...]`, in nats, within [0, log C], in float32 or wider.

    Raises:
        ValueError: if `samples` has no axis of K samples or K is 0.

    Example:
        >>> expected_entropy(torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]))
        tensor([0.0000, 0.6931])
    """
    _check_samples(samples)
    total = predictive_entropy(samples[0])
    for sample in samples[1:]:
        total = total + predictive_entropy(sample)
    return total / len(samples)


def mutual_information(samples: Tensor) -> Tensor:
    r"""Mutual information of class and model (BALD): how much K predictions disagree, often called epistemic.

    .. math:: I = H\Big[\frac{1}{K} \sum_k p_k\Big] - \frac{1}{K} \sum_k H[p_k]

    It is 0 where all samples agree, however uncertain they are, and log C where they are certain of different classes
    evenly. In a spiking Bayesian network the spikes' noise is the weights' noise, so the information counts both.

    Args:
        samples: class probabilities `[K, ..., C]`, K of at least 1.

    Returns:
        Shape `[...]`, in nats, within [0, log min(K, C)], in float32 or wider. Exactly 0 for one sample; rounding may
        else take it below 0, by less than 1e-6.

    Raises:
        ValueError: if `samples` has no axis of K samples or K is 0.

    Source: N. Houlsby et al., "Bayesian active learning for classification and preference learning", arXiv 1112.5745,
    equation 2.

    Example:
        >>> mutual_information(torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]))
        tensor([0.6931, 0.0000])
    """
    _check_samples(samples)
    return predictive_entropy(samples.mean(0, dtype=_wide(samples))) - expected_entropy(samples)


def _wide(probabilities: Tensor) -> torch.dtype:
    return torch.promote_types(probabilities.dtype, torch.float32)


def _widened(probabilities: Tensor) -> Tensor:
    return probabilities.to(_wide(probabilities))


def _check_samples(samples: Tensor) -> None:
    if samples.dim() < 2 or len(samples) == 0:
        raise ValueError(
            f"Expected argument `samples` to be of shape [K, ..., C] with K of at least 1, but got "
            f"{tuple(samples.shape)}"
        )
