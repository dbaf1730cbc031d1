"""Optimizers by name, and optimizers whose weight decay acts on weights only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_snn.checks import check_between, check_choice


def decay_weights_only(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups for a torch optimizer in which only weights decay.

    Weights are parameters of at least two dimensions: those of linear layers and convolutions. Biases, normalization
    scales, and the decays and thresholds of neurons have fewer dimensions and do not decay.

    Args:
        parameters: parameters of a network.
        weight_decay: weight decay of the weights, at least 0.

    Returns:
        One group of weights and one of all other parameters. Empty groups are left out.

    Raises:
        ValueError: if `weight_decay` is outside its range.

    Example:
        >>> groups = decay_weights_only(torch.nn.Linear(2, 3).parameters(), 0.1)
        >>> [(group["weight_decay"], len(group["params"])) for group in groups]
        [(0.1, 1), (0.0, 1)]
    """
    check_between("weight_decay", weight_decay, 0, float("inf"))
    parameters = list(parameters)
    groups = (
        {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


class SGD(torch.optim.SGD):
    """`torch.optim.SGD` with momentum, in which only weights decay.

    Args:
        params: parameters of a network; see `decay_weights_only`.
        lr: learning rate, at least 0.
        momentum: momentum factor, at least 0.
        weight_decay: weight decay of the weights, at least 0.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4
    ) -> None:
        super().__init__(decay_weights_only(params, weight_decay), lr, momentum)


def optimizer_named(name: str) -> Callable[[Any], torch.optim.Optimizer]:
    """Return the optimizer of torch with a name, in any case, such as "adamw".

    Raises:
        ValueError: if torch has none of that name.

    Example:
        >>> optimizer_named("adamw")
        <class 'torch.optim.adamw.AdamW'>
    """
    kinds = {
        key.lower(): kind
        for key, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    check_choice("optimizer", name.lower(), sorted(kinds))
    return kinds[name.lower()]
