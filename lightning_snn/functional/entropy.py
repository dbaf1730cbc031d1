"""Entropies of class probabilities: total, aleatoric and epistemic uncertainty of predictions."""

from __future__ import annotations

import torch
from torch import Tensor


def predictive_entropy(probabilities: Tensor) -> Tensor:
    r"""Return the entropy of class probabilities, which is the total uncertainty of a prediction.

    .. math:: H[p] = -\sum_c p_c \log p_c , \qquad 0 \log 0 = 0

    Args:
        probabilities: class probabilities `[..., C]`, in [0, 1].

    Returns:
        Shape `[...]`, in nats, within [0, log C], in float32 or wider.

    Example:
        >>> predictive_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    entropy: Tensor = torch.special.entr(probabilities.to(_wide(probabilities))).sum(-1)
    return entropy


def expected_entropy(samples: Tensor) -> Tensor:
    r"""Return the mean entropy of K predictions, often called aleatoric uncertainty.

    .. math:: \frac{1}{K} \sum_k H[p_k]

    Args:
        samples: class probabilities `[K, ..., C]`, K of at least 1. The function processes them one by one, so it
            needs extra memory for one prediction only.

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
    r"""Return the mutual information of class and model (BALD), often called epistemic uncertainty.

    .. math:: I = H\Big[\frac{1}{K} \sum_k p_k\Big] - \frac{1}{K} \sum_k H[p_k]

    It is 0 if all samples agree, even if each of them is uncertain. It is log C if each sample is certain and the
    classes are equally frequent. In a spiking Bayesian network the noise of spikes is the noise of weights, so the
    mutual information includes both.

    Args:
        samples: class probabilities `[K, ..., C]`, K of at least 1.

    Returns:
        Shape `[...]`, in nats, within [0, log min(K, C)], in float32 or wider. Exactly 0 for one sample. For
        more samples, rounding may give negative values, larger than -1e-6.

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


def _check_samples(samples: Tensor) -> None:
    if samples.dim() < 2 or len(samples) == 0:
        raise ValueError(
            "Expected argument `samples` to be of shape [K, ..., C] with K of at least 1, but got "
            f"{tuple(samples.shape)}"
        )
