"""Optimizers by name, and optimizers whose weight decay acts on weights only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_snn.checks import check_between, nearest_name


def optimizer_factory(name: str, **options: Any) -> Callable[[Iterable[Tensor]], Optimizer]:
    """Return a function that makes an optimizer of this name for parameters.

    Args:
        name: class in `torch.optim`, in any case, such as "adamw"; or an import path, such as
            "lightning_snn.optim.SGD".
        **options: its options, such as ``lr=1e-3``.

    Raises:
        ValueError: if there is no optimizer of this name, or it takes no option of a given name.

    Example:
        >>> optimizer_factory("adamw", lr=1e-3)(torch.nn.Linear(2, 3).parameters()).defaults["lr"]
        0.001
    """
    kind = _optimizer_class(name)
    accepted = inspect.signature(kind).parameters
    for option in options:
        if option not in accepted:
            raise ValueError(
                f"Expected options of {kind.__name__}, which takes {', '.join(list(accepted)[1:])}, but got "
                f"`{option}`{nearest_name(option, accepted)}"
            )
    return partial(kind, **options)


def _optimizer_class(name: str) -> type[Optimizer]:
    known: dict[str, type[Optimizer]] = {
        each: kind
        for each, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
    }
    module, _, attribute = name.rpartition(".")
    found: Any = {each.lower(): kind for each, kind in known.items()}.get(name.lower())
    if module:
        try:
            found = getattr(import_module(module), attribute, None)
        except ImportError:
            found = None
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ValueError(
            f"Expected an optimizer of torch.optim ({', '.join(sorted(known))}), or the import path of another one, "
            f"but got {name!r}{nearest_name(name, known)}"
        )
    return found


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
