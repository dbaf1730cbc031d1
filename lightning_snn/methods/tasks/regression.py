"""Regression: values as targets, one per sample or one per time step."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_snn.methods.tasks.base import Readout, Task, check_is_tensor, check_shape, widened
from lightning_snn.methods.tasks.prediction import Prediction


class Regression(Task):
    """Regression: the readout is the predicted value, and the loss the mean squared error.

    Args:
        readout: see `Task`; with `per_step` it has no effect.
        per_step: whether targets are `[T, B, ...]`, one for each time step. Then the prediction is that of every step,
            `[T, B, ...]`, and the loss is the mean over steps.

    Example:
        >>> Regression().loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        tensor(2.)
        >>> Regression(per_step=True).sequence_loss(torch.zeros(2, 1, 1), torch.tensor([[[1.0]], [[3.0]]]))
        tensor(5.)
    """

    kind = "regression"

    def __init__(self, readout: Readout = "mean", per_step: bool = False) -> None:
        super().__init__(readout)
        self.per_step = per_step
        self.batch_axis = int(per_step)

    def read(self, outputs: Tensor) -> Tensor:
        """Reduce the outputs of all time steps as `Task.read`; with `per_step` return all of them, `[T, B, ...]`."""
        return widened(outputs) if self.per_step else super().read(outputs)

    def read_prefixes(self, outputs: Tensor) -> Tensor:
        return widened(outputs) if self.per_step else super().read_prefixes(outputs)

    def losses(self, output: Tensor, y: Tensor) -> Tensor:
        """Compute the squared error of each sample, the mean over its values, `[B]`.

        Args:
            output: values `[B, ...]`.
            y: targets of the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        self.check_targets(output, y)
        errors = F.mse_loss(output, y.to(output.dtype), reduction="none")
        return errors if errors.dim() == 1 else errors.flatten(1).mean(1)

    def targets_of_steps(self, y: Tensor, time_steps: int) -> Tensor:
        """Return the targets `[T, B, ...]`.

        Raises:
            ValueError: if there is not one per time step.
        """
        check_is_tensor(y)
        if y.dim() < 2 or len(y) != time_steps:
            raise ValueError(
                f"Expected argument `y` of shape [T, B, ...] with T = {time_steps} for Regression(per_step=True), but "
                f"got {tuple(y.shape)}. With one target per sample, use per_step=False"
            )
        return y

    def check_targets(self, output: Tensor, y: Tensor) -> None:
        check_is_tensor(y)
        hint = "" if self.per_step else ", or [T, B, ...] with Regression(per_step=True)"
        check_shape(output, y, "", tuple(output.shape), hint)

    def predict(self, output: Tensor) -> Prediction:
        return Prediction(output, categorical=False, per_step=self.per_step)

    def combine(self, predictions: list[Prediction]) -> Prediction:
        mixture = super().combine(predictions)
        assert mixture.samples is not None
        mixture.variance = mixture.samples.var(0, correction=0)
        return mixture

    def extra_repr(self) -> str:
        return "per_step=True" if self.per_step else super().extra_repr()
