"""Optimizers and schedulers of a module, optimizers by name, and weight decay that acts on weights only."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from lightning_snn.checks import check_between, nearest_name

# a gradient whose square underflows in float16 is below 8e-3, so Adam's steps stay below 8 times the learning rate
_HALF_EPSILON = 1e-3

OptimizerFactory = Callable[[Any], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau | Mapping[str, Any]]


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


def make_optimizer(
    parameters: Sequence[Tensor], factory: OptimizerFactory | None = None, learning_rate: float | None = None
) -> Optimizer:
    """Return the optimizer of a factory, or Adam, for parameters.

    The default epsilon of Adam, 1e-8, is 0 in float16, so weights without a gradient would become NaN. For parameters
    in float16 it is 1e-3, with a warning.

    Args:
        parameters: parameters to train.
        factory: returns the optimizer for the parameters; None is Adam.
        learning_rate: learning rate of all parameters; None is that of the factory, or 1e-3.

    Raises:
        ValueError: if the optimizer of the factory holds other parameters, or its epsilon is 0 in their dtype.

    Example:
        >>> make_optimizer(list(torch.nn.Linear(2, 3).parameters()), torch.optim.RMSprop, 0.5).param_groups[0]["lr"]
        0.5
    """
    if factory is None:
        rate = 1e-3 if learning_rate is None else learning_rate
        if all(parameter.dtype != torch.float16 for parameter in parameters):
            return torch.optim.Adam(parameters, rate)
        warnings.warn(
            f"The epsilon of Adam, 1e-8, is 0 in float16, the dtype of the parameters, so it is {_HALF_EPSILON:g}. "
            "Pass an optimizer with another one, or train with Trainer(precision='bf16-true')",
            stacklevel=2,
        )
        return torch.optim.Adam(parameters, rate, eps=_HALF_EPSILON)
    optimizer = factory(parameters)
    own = {id(parameter) for parameter in parameters}
    if any(id(each) not in own for group in optimizer.param_groups for each in group["params"]):
        raise ValueError(
            "Expected argument `optimizer` to return an optimizer of the parameters that it is given, but it holds "
            "others. The module trains its own copy of the network, `module.network`"
        )
    _check_epsilon(optimizer)
    if learning_rate is not None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
    return optimizer


def _check_epsilon(optimizer: Optimizer) -> None:
    """Raise a ValueError if an optimizer of torch would divide by an epsilon that is 0 in float16."""
    if not any(kind.__module__.startswith("torch.optim.") for kind in type(optimizer).__mro__ if kind is not Optimizer):
        return  # others may keep weights and states in a wider dtype
    for group in optimizer.param_groups:
        epsilon, kind = group.get("eps"), type(optimizer).__name__
        narrow = any(parameter.dtype == torch.float16 for parameter in group["params"])
        if narrow and isinstance(epsilon, float) and torch.tensor(epsilon, dtype=torch.float16) == 0:
            raise ValueError(
                "Expected an optimizer with an epsilon above 0 in float16, the dtype of the parameters, but got "
                f"{kind} with eps={epsilon:g}. Pass `optimizer=lambda parameters: {kind}(parameters, "
                f"eps={_HALF_EPSILON:g})`, or train with Trainer(precision='bf16-true')"
            )


def scheduler_configuration(
    scheduler: SchedulerFactory | Mapping[str, Any], optimizer: Optimizer, monitor: str
) -> dict[str, Any]:
    """Return Lightning's dictionary of a scheduler.

    Args:
        scheduler: returns a scheduler for the optimizer, or Lightning's dictionary with one; or such a dictionary with
            a function as "scheduler".
        optimizer: the optimizer.
        monitor: metric that `ReduceLROnPlateau` monitors unless the dictionary or the scheduler names another.

    Example:
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(2, 3).parameters(), 0.1)
        >>> scheduler_configuration(ReduceLROnPlateau, optimizer, "val/nll")["monitor"]
        'val/nll'
    """
    options: dict[str, Any] = dict(scheduler) if isinstance(scheduler, Mapping) else {}
    made: Any = options.get("scheduler", scheduler)(optimizer)
    options |= made if isinstance(made, Mapping) else {"scheduler": made}
    if isinstance(options["scheduler"], ReduceLROnPlateau):
        options.setdefault("monitor", getattr(options["scheduler"], "monitor", monitor))
    return options


def end_with_run(scheduler: CosineAnnealingLR, steps: int) -> None:
    """Let a cosine schedule that was restored from a run of another length decrease to its end with this run.

    Args:
        scheduler: the schedule, whose past steps count.
        steps: steps of the whole run.
    """
    if scheduler.T_max == steps:
        return
    scheduler.T_max = steps
    share = (1 + math.cos(math.pi * scheduler.last_epoch / steps)) / 2
    for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = scheduler.eta_min + (base - scheduler.eta_min) * share
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def refuse_learning_rate_finder(trainer: pl.Trainer, method: str) -> None:
    """Raise an error if a Trainer searches a learning rate for a method that has its own optimizer.

    The search would compare objectives, which are not always losses, and what it found would not be used.

    Args:
        trainer: the Trainer; `Tuner.lr_find` adds the callback `LearningRateFinder` to it.
        method: name of the method, for the message.

    Raises:
        ValueError: if it has a `LearningRateFinder`.
    """
    if _has_learning_rate_finder(trainer):
        raise ValueError(
            f"Expected a method without an optimizer of its own for the learning rate finder, but got {method}, whose "
            "step size is an argument of the method. Remove `LearningRateFinder` or the call of `Tuner.lr_find`, and "
            "choose that argument on validation data"
        )


def start_from_found_learning_rate(trainer: pl.Trainer) -> None:
    """Let schedules start from the learning rate that a `LearningRateFinder` found.

    It sets that of the optimizer, which schedules that remember the initial one, such as `LambdaLR`, would replace in
    their first step.

    Args:
        trainer: the Trainer, at the start of training.
    """
    if not _has_learning_rate_finder(trainer):
        return
    for config in trainer.lr_scheduler_configs:
        found = [group["lr"] for group in config.scheduler.optimizer.param_groups]
        for scheduler in getattr(config.scheduler, "_schedulers", [config.scheduler]):
            if isinstance(scheduler, LRScheduler) and scheduler.get_last_lr() != found:
                scheduler.base_lrs = list(found)


def _has_learning_rate_finder(trainer: pl.Trainer) -> bool:
    return any(isinstance(callback, LearningRateFinder) for callback in trainer.callbacks)  # type: ignore[attr-defined]


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
