r"""Base class of the tasks: what is learned, apart from how.

A method runs a network over `[T, B, ...]` and hands the outputs of all time steps to its task, which knows the readout,
the loss and what a prediction is. A loss has one of two forms:

- The loss of the readout, :math:`L(\mathrm{read}(o_1, ..., o_T), y)`, the default.
- With `per_step`, the mean over time of the losses of single steps, :math:`\tfrac{1}{T} \sum_t L(o_t, y_t)`.

A task defines the losses of single samples, `losses`. The means over samples and valid steps are taken here, so padding
counts in no task: within `nn.sequence_lengths`, a loss of steps is :math:`\tfrac{1}{B} \sum_b \tfrac{1}{T_b}
\sum_{t < T_b} L(o_{t,b}, y_{t,b})`, and each sample has the same weight however long it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_snn.checks import check_choice
from lightning_snn.functional.readout import READOUTS, ReadoutName, apply_to_valid, readout, readout_of_prefixes
from lightning_snn.methods.tasks.prediction import Prediction
from lightning_snn.nn.lengths import lengths_of, over_steps, valid_steps
from lightning_snn.nn.run_context import run_values

Readout = ReadoutName | Callable[[Tensor], Tensor]
# from outputs [T, B, ...] and targets [B, ...] to a scalar
Loss = Callable[[Tensor, Tensor], Tensor]
Kind = Literal["classification", "multi_label", "regression", "own"]


class Task(nn.Module):
    """Base class of the tasks: a readout over time, a loss and a prediction.

    A task of your own defines `losses` and `predict`, and `check_targets` if shapes can be wrong.

    Attributes:
        kind: what a prediction is, which decides on the metrics: "classification" (class probabilities),
            "multi_label" (a probability per label), "regression" (values) or "own" (no metrics by default).
        per_step: whether the loss is that of single steps and not that of the readout.
        batch_axis: axis of the samples in what `read` returns, 0; or 1 if there is one output per time step.
        num_classes: number of outputs that are compared with; None accepts any.

    Args:
        readout: "mean", "max", "last", "sum", or a function `[T, B, ...] -> [B, ...]`.

    Example:
        >>> Task("sum").read(torch.ones(4, 2, 3))[0]
        tensor([4., 4., 4.])
    """

    kind: ClassVar[Kind] = "own"
    batch_axis: int = 0

    def __init__(self, readout: Readout = "mean") -> None:
        super().__init__()
        if not callable(readout):
            check_choice("readout", readout, READOUTS)
        self.readout = readout
        self.num_classes: int | None = None
        self.per_step = False

    def configured(self, readout: Readout | None = None, num_classes: int | None = None) -> Task:
        """Return a copy with a readout and a number of classes, where they are given.

        Args:
            readout: as in the constructor; None keeps it.
            num_classes: number of classes; None keeps it.

        Raises:
            ValueError: if `readout` is unknown.
        """
        if readout is not None and not callable(readout):
            check_choice("readout", readout, READOUTS)
        task = copy.deepcopy(self)
        if readout is not None:
            task.readout = readout
        if num_classes is not None:
            task.num_classes = num_classes
        return task

    def read(self, outputs: Tensor) -> Tensor:
        """Reduce the outputs of all time steps `[T, B, ...]` to one per sample `[B, ...]`, in float32 or wider.

        Within `nn.sequence_lengths` only valid steps count. A function receives those of samples of equal length.

        Raises:
            ValueError: if the network returned something other than a tensor.
        """
        outputs = widened(outputs)
        lengths = lengths_of(outputs.shape[1])
        if not callable(self.readout):
            return readout(outputs, self.readout, lengths)
        return self.readout(outputs) if lengths is None else apply_to_valid(self.readout, outputs, lengths)

    def read_prefixes(self, outputs: Tensor) -> Tensor:
        """Compute the readout after each time step: row t is `read(outputs[: t + 1])`.

        Within `nn.sequence_lengths` the rows of a sample are equal from its length on.

        A named readout takes one pass over time. A function is called T times, on every prefix.

        Args:
            outputs: outputs of all time steps, `[T, B, ...]`, T of at least 1.

        Returns:
            A tensor `[T, B, ...]` in float32 or wider, which `predict` and `combine` accept like the result of `read`.

        Raises:
            ValueError: if there is no time step.
        """
        if len(outputs) == 0:
            raise ValueError(
                f"Expected argument `outputs` to have at least one time step, but got {tuple(outputs.shape)}"
            )
        outputs = widened(outputs)
        if callable(self.readout):
            return torch.stack([self.read(outputs[: step + 1]) for step in range(len(outputs))])
        return readout_of_prefixes(outputs, self.readout, lengths_of(outputs.shape[1]))

    def losses(self, output: Tensor, y: Any) -> Tensor:
        """Compute the loss of each sample, `[B]`, whose mean over samples is the loss.

        Args:
            output: readouts from `read`, or outputs of a step if `per_step`, `[B, ...]`.
            y: targets `[B, ...]`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no losses")

    def loss(self, output: Tensor, y: Any, weights: Tensor | None = None) -> Tensor:
        """Compute the loss of outputs `[B, ...]`, a scalar: the mean over samples.

        Args:
            output: as in `losses`.
            y: as in `losses`.
            weights: factor of each sample, `[B]`, of a sum instead of the mean. Samples of factor 0 do not count
                whatever their outputs.
        """
        if weights is None:
            return self.losses(output, y).mean()
        counts = weights != 0
        losses = self.losses(torch.where(over_steps(counts[None], output[None])[0], output, 0), y)
        return torch.where(counts, weights * losses, 0).sum()

    def output_and_loss(self, outputs: Tensor, y: Any) -> tuple[Tensor, Tensor]:
        """Return the readout and the loss of the outputs of all time steps.

        Args:
            outputs: outputs of all time steps, `[T, B, ...]`.
            y: targets from `targets`.

        Returns:
            The readout, and the loss, a scalar for logging and early stopping.
        """
        output = self.read(outputs)
        if not self.per_step:
            return output, self.loss(output, y)
        outputs, steps = widened(outputs), len(outputs)
        lengths, weights = lengths_of(outputs.shape[1]), None
        if lengths is not None:
            weights = torch.cat([self.weights_of_step(lengths, step, outputs) for step in range(steps)]) / steps
        of_steps = tree_map(lambda values: values.flatten(0, 1), self.targets_of_steps(y, steps))
        return output, self.loss(outputs.flatten(0, 1), of_steps, weights)

    def sequence_loss(self, outputs: Tensor, y: Any) -> Tensor:
        """Return the loss of `output_and_loss` alone."""
        return self.output_and_loss(outputs, y)[1]

    def learned_steps(self, time_steps: int) -> list[int]:
        """Return the steps whose losses, from `step_loss`, are averaged by methods that learn while a sequence runs.

        These are all steps, or the last one if only that is read out.
        """
        is_last = self.readout == "last" and not self.per_step and run_values().lengths is None
        return [time_steps - 1] if is_last else list(range(time_steps))

    def step_loss(self, output: Tensor, y: Any, step: int, time_steps: int) -> Tensor:
        """Return the loss of the output of a single step, for methods that learn while a sequence runs.

        It is the loss of the step if `per_step`, and otherwise that of the readout as if all steps had this output. In
        sequences of different lengths each sample is weighted by T over its number of valid steps, and by 0 in padded
        steps.

        Args:
            output: output of the step, `[B, ...]`.
            y: targets from `targets`.
            step: index of the step.
            time_steps: number of steps T.
        """
        read = widened(output)
        lengths, weights = lengths_of(len(read)), None
        every = read.expand(time_steps, *read.shape)
        if lengths is not None:
            weights = self.weights_of_step(lengths, step, every)
        if self.per_step:
            of_step = tree_map(lambda values: values[step], self.targets_of_steps(y, time_steps))
            return self.loss(read, of_step, weights)
        if callable(self.readout):
            return self.loss(self.read(every), y, weights)
        if self.readout == "sum":
            read = read * (time_steps if lengths is None else over_steps(lengths[None], read[None])[0].to(read.dtype))
        return self.loss(read, y, weights)

    def weights_of_step(self, lengths: Tensor, step: int, outputs: Tensor) -> Tensor:
        """Return the factor of each sample in the loss of a step, `[B]`, whose mean over steps has a sum of 1.

        Args:
            lengths: number of valid steps of each sample, integers `[B]`.
            step: index of the step.
            outputs: outputs of all time steps, `[T, B, ...]`, whose dtype the factors have.
        """
        time_steps, samples = outputs.shape[:2]
        if self.readout == "last" and not self.per_step:
            return (lengths == step + 1).to(outputs.dtype) * (time_steps / samples)
        return (step < lengths).to(outputs.dtype) / lengths * (time_steps / samples)

    def targets(self, x: Tensor, y: Any) -> Any:
        """Return what the loss compares outputs with: by default the targets of the batch.

        `SpikingModule` calls it once per training step, before the method.

        Args:
            x: inputs `[T, B, ...]`.
            y: targets of the batch.
        """
        return y

    def targets_of_steps(self, y: Any, time_steps: int) -> Any:
        """Return the targets of each step, `[T, B, ...]`: by default those of the sample at every step."""
        return tree_map(lambda values: values.expand(time_steps, *values.shape), y)

    def check_targets(self, output: Tensor, y: Any) -> None:
        """Check that targets belong to a readout or a prediction; by default nothing.

        Args:
            output: readout or mean of a prediction, `[B, ...]`.
            y: targets.

        Raises:
            ValueError: if there is no sample, or the targets are of another shape.
        """

    def predict(self, output: Tensor) -> Prediction:
        """Return the prediction from the readout `[B, ...]`."""
        raise NotImplementedError(f"{type(self).__name__} defines no prediction")

    def combine(self, predictions: list[Prediction]) -> Prediction:
        """Return the mixture of K predictions, whose samples are their means."""
        samples = torch.stack([prediction.mean for prediction in predictions])
        first = predictions[0]
        return Prediction(samples.mean(0), None, samples, first.categorical, per_step=first.per_step)

    def evaluated(self, mean: Tensor, y: Any) -> tuple[Tensor, Tensor]:
        """Return predictions and targets as metrics take them, without those of padding.

        Args:
            mean: mean of a prediction.
            y: targets of the batch.

        Raises:
            ValueError: as `check_targets`.
        """
        self.check_targets(mean, y)
        if self.batch_axis == 0:
            return mean, y
        valid = valid_steps(*mean.shape[:2])
        # contiguous, because metrics take views
        return (mean.contiguous(), y.contiguous()) if valid is None else (mean[valid], y[valid])

    def extra_repr(self) -> str:
        return f"readout={self.readout!r}"


def check_is_tensor(y: object) -> None:
    """Raise a ValueError if targets are no tensor, such as an array of NumPy."""
    if not isinstance(y, Tensor):
        raise ValueError(
            f"Expected argument `y` to be a tensor, but got a {type(y).__name__}. Convert it with `torch.as_tensor`"
        )


def check_shape(output: Tensor, y: Tensor, kind: str, expected: tuple[int, ...], hint: str = "") -> None:
    """Raise a ValueError unless there are samples and targets have a shape.

    Args:
        output: readout `[B, ...]`.
        y: targets.
        kind: what targets are, for the message, with a space behind it.
        expected: their shape.
        hint: further sentence of the message.
    """
    if output.numel() == 0:
        raise ValueError(
            f"Expected at least one sample in a batch with targets, but got a readout of shape {tuple(output.shape)}. "
            "Leave empty batches out of the data"
        )
    if tuple(y.shape) != expected:
        raise ValueError(
            f"Expected argument `y` to be {kind}of shape {expected}, since the readout is of shape "
            f"{tuple(output.shape)}, but got {tuple(y.shape)}. Inputs are [T, B, ...] with time first and targets "
            f"[B, ...]{hint}"
        )


def widened(outputs: Tensor) -> Tensor:
    """Return the outputs of a network in float32 or wider.

    Raises:
        ValueError: if the network returned something other than a tensor.
    """
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"Expected argument `network` to return one tensor [T*B, ...], but got a {type(outputs).__name__}. Return "
            "the outputs alone, for example by a module that selects them"
        )
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
