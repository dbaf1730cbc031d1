"""Optimizers whose weight decay acts on weights only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_snn.checks import check_between


def decay_weights_only(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for any optimizer of torch: weights decay, all else does not.

    Weights are the parameters of two dimensions and more: of linear layers and convolutions. Biases, the scales of
    normalization, decays and thresholds of neurons have fewer.

    Args:
        parameters: the parameters of a network.
        weight_decay: of the weights, at least 0.
    """
    check_between("weight_decay", weight_decay, 0, float("inf"))
    parameters = list(parameters)
    groups = (
        {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


class SGD(torch.optim.SGD):
    """Stochastic gradient descent with momentum, as torch's, except that only weights decay.

    Args:
        params: the parameters, see `decay_weights_only`.
        lr: learning rate, at least 0.
        momentum: share of the last step that the next one keeps, at least 0.
        weight_decay: of the weights, at least 0.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4
    ) -> None:
        super().__init__(decay_weights_only(params, weight_decay), lr, momentum)
