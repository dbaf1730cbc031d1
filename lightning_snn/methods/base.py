"""A method: how a network becomes trainable, what a step descends, how it predicts.

A method never reaches into the Trainer. What it may know of the run is told to it: the `task`, and before every step
the `progress`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_snn.methods.task import Classification, Prediction, Task
from lightning_snn.nn.folding import run


@dataclass(frozen=True)
class Step:
    """What a training step yields.

    Attributes:
        objective: the scalar whose autograd gradient is the method's update. Not always a loss: never log it as one.
        loss: the task loss, detached: what people read and stop early on.
        output: the readout `[B, ...]`, detached.
        metrics: what else is worth a curve, by name; scalars, detached. The module logs them under `train/`.
    """

    objective: Tensor
    loss: Tensor
    output: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    Attributes:
        epoch: epochs completed, with the fraction of the current one.
        train_size: samples in an epoch over all processes; None where it cannot be known.
        step: steps of the optimizer completed.
    """

    epoch: float = 0.0
    train_size: int | None = None
    step: int = 0


class Method(nn.Module):
    """Base of the learning rules. A new one is one file here, its mathematics in `functional`, one row in the
    contract table.

    Attributes:
        citation: BibTeX of what the method is after.
        task: readout, loss and prediction; `SpikingModule` sets it, cross-entropy of the mean output by default.
        progress: where training stands; `SpikingModule` sets it before every step.
    """

    citation: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        self.task: Task = Classification()
        self.progress = Progress()

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network as this method trains it: swap layers, fuse, map. Called once, before training.

        Raises:
            ValueError: naming the layers that the method cannot train.
        """
        return network

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        """Objective, loss and output of a batch `x [T, B, ...]`, `y [B, ...]`, for a prepared network."""
        raise NotImplementedError(f"{type(self).__name__} defines no training_step")

    def step_on_loss(self, outputs: Tensor, y: Tensor) -> Step:
        """The step whose objective is the loss itself, of outputs `[T, B, ...]` with a gradient."""
        output = self.task.read(outputs)
        loss = self.task.loss(output, y)
        return Step(loss, loss.detach(), output.detach())

    def predict(self, network: nn.Module, x: Tensor) -> Prediction:
        """The prediction for `x [T, B, ...]`, by default from one plain run of the network."""
        return self.task.predict(self.task.read(run(network, x)))

    def predict_anytime(self, network: nn.Module, x: Tensor) -> Prediction:
        """What `predict` would say after each time step of `x [T, B, ...]`: a prediction `[T, B, ...]` from one run.

        A network hears nothing of later steps, so row t is the prediction for ``x[: t + 1]``.
        """
        return self.task.predict(self.task.read_prefixes(run(network, x)))

    def configure_optimizer(self, network: nn.Module) -> Optimizer | None:
        """The optimizer that the method needs; None leaves the choice to the user."""
        return None
