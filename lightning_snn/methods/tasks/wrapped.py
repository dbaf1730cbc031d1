"""Tasks that differ from another one in their loss alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_snn.methods.tasks.base import Kind, Readout, Task
from lightning_snn.methods.tasks.classification import Classification
from lightning_snn.methods.tasks.prediction import Prediction
from lightning_snn.methods.tasks.regression import Regression


class WrappedTask(Task):
    """Base of the tasks whose readout and predictions are those of another task.

    Args:
        task: the other task, which is copied.
    """

    def __init__(self, task: Task) -> None:
        task = task.configured()
        super().__init__(task.readout)
        self.task = task
        self.num_classes, self.per_step, self.batch_axis = task.num_classes, task.per_step, task.batch_axis

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """Kind of the predictions, that of the other task."""
        return self.task.kind

    def configured(self, readout: Readout | None = None, num_classes: int | None = None) -> Task:
        copied = super().configured(readout, num_classes)
        assert isinstance(copied, WrappedTask)
        copied.task = self.task.configured(readout, num_classes)
        return copied

    def read(self, outputs: Tensor) -> Tensor:
        return self.task.read(outputs)

    def read_prefixes(self, outputs: Tensor) -> Tensor:
        return self.task.read_prefixes(outputs)

    def targets(self, x: Tensor, y: Any) -> Any:
        return self.task.targets(x, y)

    def targets_of_steps(self, y: Any, time_steps: int) -> Any:
        return self.task.targets_of_steps(y, time_steps)

    def check_targets(self, output: Tensor, y: Any) -> None:
        self.task.check_targets(output, y)

    def predict(self, output: Tensor) -> Prediction:
        return self.task.predict(output)

    def combine(self, predictions: list[Prediction]) -> Prediction:
        return self.task.combine(predictions)


class CustomLoss(WrappedTask):
    """A loss function of your own, with the readout and the predictions of another task.

    Args:
        function: from outputs `[B, ...]` and targets to a loss per sample, `[B, ...]`, or a scalar that is their mean.
            Sequences of different lengths need one per sample. Parameters of an `nn.Module` are trained.
        task: task of readout and predictions; None is a `Classification` if there is a number of classes, and otherwise
            a `Regression`. With `Regression(per_step=True)` the function gets outputs and targets of all steps as
            samples, or of one step.

    Raises:
        ValueError: if `function` is not callable.

    Example:
        >>> absolute = CustomLoss(torch.nn.L1Loss(reduction="none"), Regression())
        >>> absolute.loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor(2.)
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], task: Task | None = None) -> None:
        if not callable(function):
            raise ValueError(
                f"Expected argument `function` to be a function of outputs and targets, but got {function!r}"
            )
        super().__init__(Regression() if task is None else task)
        self.chosen = task is not None
        self.function = function

    def configured(self, readout: Readout | None = None, num_classes: int | None = None) -> Task:
        if num_classes is None or self.chosen:
            return super().configured(readout, num_classes)
        return CustomLoss(self.function, Classification(self.readout)).configured(readout, num_classes)

    def losses(self, output: Tensor, y: Any) -> Tensor:
        """Compute the loss of each sample, `[B]`, the mean over further axes.

        Raises:
            ValueError: if the function returns another number of losses.
        """
        losses = self._values(output, y)
        if losses.dim() == 0:
            raise ValueError(
                f"Expected the loss {self.extra_repr()} to return one loss per sample, of shape ({len(output)},), "
                'because samples have weights here, but got a scalar. Leave out its mean, as by reduction="none"'
            )
        return losses if losses.dim() == 1 else losses.flatten(1).mean(1)

    def loss(self, output: Tensor, y: Any, weights: Tensor | None = None) -> Tensor:
        if weights is not None:
            return super().loss(output, y, weights)
        return self._values(output, y).mean()

    def _values(self, output: Tensor, y: Any) -> Tensor:
        values = self.function(output, y)
        if not isinstance(values, Tensor) or values.shape[:1] not in ((), output.shape[:1]):
            got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise ValueError(
                f"Expected the loss {self.extra_repr()} to return a scalar or one loss per sample, of shape "
                f"({len(output)},), but got {got}"
            )
        return values

    def extra_repr(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))
