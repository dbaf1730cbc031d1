r"""Distillation: a network learns from the outputs of a teacher next to the targets.

.. math:: L = (1 - \alpha)\, L_\text{task} + \alpha\, \tau^2\, \mathrm{KL}(\pi^\text{teacher} \,\|\, \pi), \qquad
    \pi = \mathrm{softmax}(o / \tau)

with o the outputs that the loss of the task compares with targets: the readout, or those of each step. The factor
:math:`\tau^2` keeps the size of the gradient independent of the temperature.

After Hinton, Vinyals & Dean 2015, Distilling the Knowledge in a Neural Network (arXiv 1503.02531).
"""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_snn.checkpoint_io import read_torch
from lightning_snn.checks import check_between, check_choice, check_positive
from lightning_snn.functional.readout import readout
from lightning_snn.methods.tasks.base import Task
from lightning_snn.methods.tasks.classification import Classification
from lightning_snn.methods.tasks.wrapped import WrappedTask
from lightning_snn.nn.folding import run
from lightning_snn.nn.layer_rules import owned_copy
from lightning_snn.nn.lengths import lengths_of

_PREFIX = "network."  # of the parameters of a network in the checkpoint of its module


class TaughtTargets(NamedTuple):
    """Targets of a batch next to what the teacher returned for it.

    Attributes:
        y: targets `[B, ...]`.
        logits: readout of the teacher, `[B, C]`.
    """

    y: Any
    logits: Tensor


class Distillation(WrappedTask):
    r"""Classification that also learns the class probabilities of a teacher.

    The teacher is copied, runs in evaluation mode without gradients, and once per training step. It is neither trained
    nor part of `parameters()` and checkpoints: a run that is resumed needs it again, and predictions do not.

    Args:
        teacher: a network `[T*B, ...]` to `[T*B, C]`: the ReLU form of the network itself, or any other one, spiking or
            not. Networks that a method has converted, such as those of `SpikingBayes`, are not for plain runs.
        alpha: share :math:`\alpha` of the teacher in [0, 1]; 0 is the task alone.
        temperature: :math:`\tau`, larger than 0: the higher, the more classes of low probability count.
        task: the classification, such as `CrossEntropy` or `TemporalEfficient`; None is `Classification()`.
        teacher_input: "steps" runs the teacher at every time step and reads its outputs as those of the network; "mean"
            runs it once, on the mean over time of the input, which is all that a network without memory needs of a
            static image.
        checkpoint: file with the parameters of the teacher, of `torch.save` or of a `SpikingModule`; None keeps those
            that it has. On the command line, this is the only way to get a trained teacher.

    Raises:
        ValueError: if an argument is outside its range, the task is no classification, or the checkpoint does not fit.
        OSError: if the checkpoint cannot be read.

    Example:
        >>> task = Distillation(nn.Linear(4, 3), alpha=0.5, temperature=2.0)
        >>> x, y = torch.rand(6, 2, 4), torch.tensor([0, 2])
        >>> task.loss(torch.zeros(2, 3), task.targets(x, y)).shape
        torch.Size([])
    """

    def __init__(
        self,
        teacher: nn.Module,
        alpha: float = 0.5,
        temperature: float = 4.0,
        task: Task | None = None,
        teacher_input: Literal["steps", "mean"] = "steps",
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(teacher, nn.Module):
            raise ValueError(f"Expected argument `teacher` to be a Module, but got {teacher!r}")
        task = Classification() if task is None else task
        if task.kind != "classification":
            raise ValueError(
                f"Expected argument `task` to be a classification, whose probabilities a teacher has, too, but got "
                f"{type(task).__name__}"
            )
        super().__init__(task)
        check_between("alpha", alpha, 0.0, 1.0)
        check_positive("temperature", temperature)
        check_choice("teacher_input", teacher_input, ("steps", "mean"))
        self.alpha, self.temperature, self.teacher_input = alpha, temperature, teacher_input
        self.checkpoint = None if checkpoint is None else str(checkpoint)
        teacher = owned_copy(teacher)
        if checkpoint is not None:
            _load(teacher, checkpoint)
        # in a tuple, so that it is no submodule: neither trained, nor saved, nor observed
        self._teacher = (teacher.eval().requires_grad_(False),)

    @property
    def teacher(self) -> nn.Module:
        """The teacher."""
        return self._teacher[0]

    def targets(self, x: Tensor, y: Any) -> TaughtTargets:
        """Return targets and the readout of the teacher.

        Raises:
            ValueError: if the outputs of the teacher are not `[T, B, C]`, or several inputs have no mean.
        """
        if self.teacher_input == "mean" and not isinstance(x, Tensor):
            raise ValueError(
                f"Expected one tensor as input of a teacher with teacher_input='mean', but got a {type(x).__name__}. "
                "Use teacher_input='steps'"
            )
        with torch.no_grad():
            if self.teacher_input == "mean":
                logits = self.task.read(run(self.teacher, readout(x, "mean", lengths_of(x.shape[1]))[None]))
            else:
                logits = self.task.read(run(self.teacher, x))
        return TaughtTargets(self.task.targets(x, y), logits)

    def targets_of_steps(self, y: TaughtTargets, time_steps: int) -> TaughtTargets:
        logits = y.logits.expand(time_steps, *y.logits.shape)
        return TaughtTargets(self.task.targets_of_steps(y.y, time_steps), logits)

    def losses(self, output: Tensor, y: Any) -> Tensor:
        """Compute the loss of each sample, `[B]`.

        Args:
            output: logits `[B, C]`.
            y: from `targets`.

        Raises:
            ValueError: if the targets are not from `targets`, or teacher and network have other numbers of outputs.
        """
        if not isinstance(y, TaughtTargets):
            raise ValueError(
                f"Expected argument `y` to be what `Distillation.targets(x, y)` returns, but got a {type(y).__name__}"
            )
        if y.logits.shape != output.shape:
            raise ValueError(
                f"Expected argument `teacher` to return as many outputs per sample as the network, "
                f"{tuple(output.shape[1:])}, but got {tuple(y.logits.shape[1:])}"
            )
        learned = (output / self.temperature).log_softmax(1)
        taught = (y.logits.to(output.dtype) / self.temperature).log_softmax(1)
        divergence = (taught.exp() * (taught - learned)).sum(1)
        divergence = divergence if divergence.dim() == 1 else divergence.flatten(1).mean(1)
        task = self.task.losses(output, y.y)
        return (1 - self.alpha) * task + self.alpha * self.temperature**2 * divergence

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"teacher={type(self.teacher).__name__}, alpha={self.alpha:g}, temperature={self.temperature:g}"


def _load(teacher: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
    saved = read_torch(checkpoint, "cpu")
    state = saved.get("state_dict", saved)
    of_network = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    try:
        teacher.load_state_dict(of_network if "state_dict" in saved else state)
    except RuntimeError as error:
        raise ValueError(
            f"Expected {checkpoint} to hold the parameters of the teacher, a {type(teacher).__name__}, but: {error}"
        ) from error
