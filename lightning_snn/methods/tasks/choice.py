"""The task of a module from what was asked for: a name, a task, or a loss function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from lightning_snn.checks import check_integer
from lightning_snn.methods.tasks.base import Readout, Task
from lightning_snn.methods.tasks.classification import Classification
from lightning_snn.methods.tasks.regression import Regression
from lightning_snn.methods.tasks.wrapped import CustomLoss

TaskChoice = Literal["classification", "regression"] | Task | Callable[[Tensor, Tensor], Tensor]

_NAMED: dict[str, type[Task]] = {"classification": Classification, "regression": Regression}


def chosen_task(task: TaskChoice, readout: Readout | None = None, num_classes: int | None = None) -> Task:
    """Return a task of its own for a module.

    Args:
        task: "classification", "regression", a `Task`, which is copied, or a function from outputs `[B, ...]` and
            targets to a loss, as for `CustomLoss`.
        readout: readout over time; None is that of the task.
        num_classes: number of classes or labels C; None is that of the task.

    Raises:
        ValueError: if the task is none of these, or has classes or labels and their number is missing or below 2 or
            another one than that of the task.

    Example:
        >>> chosen_task("classification", "sum", num_classes=3)
        Classification(readout='sum')
    """
    if isinstance(task, str) and task in _NAMED:
        chosen = _NAMED[task]()
    elif isinstance(task, Task):
        chosen = task
    elif callable(task) and not isinstance(task, type):
        chosen = CustomLoss(task)
    else:
        raise ValueError(
            "Expected argument `task` to be one of 'classification', 'regression', a Task or a function of outputs and "
            f"targets, but got {task!r}"
        )
    if num_classes is not None and chosen.num_classes not in (None, num_classes):
        raise ValueError(
            f"Expected argument `num_classes` to be {chosen.num_classes} as in `task`, but got {num_classes}"
        )
    chosen = chosen.configured(readout, num_classes)
    if chosen.kind in ("classification", "multi_label"):
        if chosen.num_classes is None:
            raise ValueError(
                "Expected argument `num_classes` to be the number of outputs of the network, but got None. Pass it, or "
                'task="regression" for targets that are no classes'
            )
        check_integer("num_classes", chosen.num_classes, 2 if chosen.kind == "classification" else 1)
    return chosen
