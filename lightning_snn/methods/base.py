"""Base class of the learning rules.

A method prepares a network for training, computes the objective of a training step, and predicts. It has no access to
the Trainer. `SpikingModule` hands it a task, which it may refuse, and sets its `progress` before every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_snn.methods.penalties import Penalty, PenaltyCollector, check_penalties, check_penalties_mask
from lightning_snn.methods.tasks import Classification, Prediction, Task
from lightning_snn.nn.folding import run
from lightning_snn.nn.layer_rules import refuse, row_refusals
from lightning_snn.nn.observation import named_spiking_layers


@dataclass(frozen=True)
class Step:
    """Result of a training step.

    Attributes:
        objective: scalar whose autograd gradient is the method's update. It is not always a loss, so do not log it as
            one.
        loss: task loss, a detached scalar for logging and early stopping.
        output: readout `[B, ...]`, detached.
        metrics: further detached scalars by name. The module logs them under `train/`.

    Example:
        >>> step = module.method.training_step(module.network, x, y)
        >>> step.objective.requires_grad, step.loss.requires_grad
        (True, False)
    """

    objective: Tensor
    loss: Tensor
    output: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Training progress.

    Attributes:
        epoch: completed epochs, including the fraction of the current one if the loader has a length.
        train_size: samples per epoch over all processes; None if unknown.
        step: completed optimizer steps.
        samples: samples of all batches before this one, over all processes.
        has_length: whether the loader has a length; epochs of streams without one may never end.

    Example:
        >>> Progress(epoch=1.5, train_size=1000, step=30).epoch
        1.5
    """

    epoch: float = 0.0
    train_size: int | None = None
    step: int = 0
    samples: int = 0
    has_length: bool = True


class Method(nn.Module):
    """Base class of the learning rules.

    A new rule is one file or folder in `methods`, its mathematics in `functional`, and one row in the contract table.

    Attributes:
        citation: BibTeX entry of the method's publication.
        task: readout, loss and prediction, set by `set_task`; by default cross-entropy of the mean output.
        progress: training progress, set by `SpikingModule` before every step.
        penalties: penalties on the spikes of every spiking layer, by name, set by `set_penalties`.
        penalty_refusal: why the method cannot add penalties, and what to do; None if it can.
        compile_refusal: why training steps cannot be compiled, and what to do; None if they can.

    Example:
        >>> class Unrolled(Method):
        ...     def training_step(self, network, x, y):
        ...         return self.step_on_loss(run(network, x), y)
        >>> Unrolled().training_step(network, x, y).output.shape
        torch.Size([2, 3])
    """

    citation: ClassVar[str] = ""
    penalty_refusal: ClassVar[str | None] = None
    compile_refusal: ClassVar[str | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.task: Task = Classification()
        self.progress = Progress()
        self.penalties: Mapping[str, Penalty] = {}

    def prepare(self, network: nn.Module) -> nn.Module:
        """Return the network that this method trains, with layers replaced, fused or mapped as needed.

        `SpikingModule` calls it once, before training.

        Raises:
            ValueError: if the method cannot train some layers; names them. Here those that take rows for time steps.
        """
        refuse(type(self).__name__, row_refusals(network))
        return network

    def check_time_steps(self, time_steps: int) -> None:
        """Check that this method can train on sequences of `time_steps` steps.

        Raises:
            ValueError: if it cannot.
        """

    def check_lengths(self, network: nn.Module) -> None:
        """Check that this method can train on sequences of different lengths, which come with their lengths.

        `SpikingModule` calls it before each training step on such a batch, within `nn.sequence_lengths`. By default
        penalties are refused that count padding.

        Args:
            network: a network from `prepare`.

        Raises:
            ValueError: if it cannot; names what to do.
        """
        check_penalties_mask(self.penalties)

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        """Compute objective, loss and output of a batch.

        Args:
            network: a network from `prepare`.
            x: inputs `[T, B, ...]`.
            y: targets `[B, ...]`, as `task.targets` returns them.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no training_step")

    def task_refusal(self, task: Task) -> str | None:
        """Return why the method cannot learn a task, and what to do; None if it can, as by default."""
        return None

    def set_task(self, task: Task) -> None:
        """Set readout, loss and prediction, before `prepare`.

        Raises:
            ValueError: if the method cannot learn the task; says why, and what to do.
        """
        reason = self.task_refusal(task)
        if reason is not None:
            raise ValueError(
                f"Expected argument `task` to be one that {type(self).__name__} can learn, but got "
                f"{type(task).__name__}({task.extra_repr()}): {reason}"
            )
        self.task = task

    def set_penalties(self, network: nn.Module, penalties: Mapping[str, Penalty]) -> None:
        """Set the penalties that `penalized_step` adds to the objective.

        Args:
            network: a network from `prepare`.
            penalties: functions from the spikes `[T, B, ...]` of a layer to a scalar, by name. The sum over all spiking
                layers is added. With `RateBackprop`, they receive the means over windows.

        Raises:
            ValueError: if a penalty is not callable, the method cannot add penalties, or the network has no spiking
                layers.
        """
        check_penalties(type(self).__name__, network, penalties, self.penalty_refusal)
        self.penalties = dict(penalties)

    def penalized_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        """Return `training_step` with the penalties in its objective, and their values under ``penalty/NAME``."""
        if not self.penalties:
            return self.training_step(network, x, y)
        with PenaltyCollector(network, self.penalties) as collector:
            step = self.training_step(network, x, y)
        values = collector.values()
        objective = step.objective + torch.stack(list(values.values())).sum()
        logged = {f"penalty/{name}": value.detach() for name, value in values.items()}
        return replace(step, objective=objective, metrics={**step.metrics, **logged})

    def before_compiled_step(self) -> None:
        """Store what a compiled training step takes from `progress`, whose numbers are constants there.

        Numbers that change from step to step have to be tensors.
        """

    def intercepted_layers(self, network: nn.Module) -> Iterable[nn.Module]:
        """Return the layers whose calls a training step replaces or observes, which compiled code must be prepared for.

        By default the spiking layers if there are penalties.
        """
        return named_spiking_layers(network).values() if self.penalties else ()

    @property
    def compiles_lengths(self) -> bool:
        """True if training steps on sequences of different lengths can be compiled: they read no length on the host."""
        return True

    @property
    def compiles_predictions(self) -> bool:
        """True if `predict` can be compiled as a whole."""
        return True

    def warn_of_step(self, metrics: Mapping[str, Tensor]) -> None:
        """Warn about values that a training step logs; by default nothing.

        `training_step` calls it, except in compiled code, which cannot warn; then `SpikingModule` does.
        """

    def after_step(self, metrics: Mapping[str, Tensor]) -> None:
        """Adopt constants that a training step measured and logs, for the steps after it; by default nothing.

        `training_step` calls it, except in compiled code, which cannot read values; then `SpikingModule` does.
        """

    def step_on_loss(self, outputs: Tensor, y: Tensor) -> Step:
        """Compute the step whose objective is the task loss.

        Args:
            outputs: outputs of all time steps `[T, B, ...]`, with a gradient.
            y: targets `[B, ...]`.
        """
        output, loss = self.task.output_and_loss(outputs, y)
        return Step(loss, loss.detach(), output.detach())

    @torch.no_grad()
    def predict(self, network: nn.Module, x: Tensor) -> Prediction:
        """Return the prediction for `x [T, B, ...]`, by default from one run of the network, without a graph."""
        return self.task.predict(self.task.read(run(network, x)))

    @torch.no_grad()
    def predict_anytime(self, network: nn.Module, x: Tensor) -> Prediction:
        """Return the predictions after each time step of `x [T, B, ...]`, shape `[T, B, ...]`, from one run.

        Outputs do not depend on later inputs, so row t is the prediction for ``x[: t + 1]``.
        """
        return self.task.predict(self.task.read_prefixes(run(network, x)))

    def on_train_end(self) -> None:
        """Act on the end of training, for example warn about a fit that did not converge; by default nothing."""

    def configure_optimizer(self, network: nn.Module) -> Optimizer | None:
        """Return the optimizer that the method requires; None leaves the choice to the user."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"  # one line: the task is not an option of the method
