"""Base of the methods that learn online: the loss of each step, and gradients that are summed step by step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_snn.functional.traced import with_gradients
from lightning_snn.methods.base import Method, Step
from lightning_snn.methods.noisy import NOISE_RULES, NoiseRule
from lightning_snn.methods.tasks import Task
from lightning_snn.nn.inputs import first_input
from lightning_snn.nn.layer_rules import COMPILED, Refusal, is_compiled, refuse
from lightning_snn.nn.stateful import StatefulLayer
from lightning_snn.nn.time_wrappers import TimeWrapper


class OnlineMethod(Method):
    r"""Base of the methods whose error at a step is that of the loss of this step alone.

    The objective is :math:`\tfrac{1}{T} \sum_t L(o_t, y)`, with :math:`o_t` the output of step t, which the readout
    reads as if all steps had it. With the readout "last" it is :math:`L(o_T, y)`. The loss that is logged is that of
    the readout of all steps, as for other methods.

    For sequences of different lengths the objective is the mean, over samples, of each sample's mean over its valid
    steps, or with the readout "last" of the loss at its last valid step. The losses are those of the task's steps.

    Args:
        streaming: whether gradients are computed and summed step by step, so memory does not grow with T.
    """

    def __init__(self, streaming: bool) -> None:
        super().__init__()
        self.streaming = streaming

    @property
    def penalty_refusal(self) -> str | None:  # type: ignore[override]
        """Why the method cannot add penalties: with `streaming`, no spikes are kept with a gradient."""
        if not self.streaming:
            return None
        return "with streaming=True the spikes of past steps have no gradient. Use streaming=False"

    def task_refusal(self, task: Task) -> str | None:
        """Return why the method cannot learn a task: the maximum over time is of no single step."""
        if task.readout == "max" and not task.per_step:
            return (
                "its loss is that of the maximum over time, and the method learns from single steps. Use "
                'readout="mean", "sum", "last" or a function of all steps, or a task with a loss of each step, such as '
                "TemporalEfficient"
            )
        if self.streaming and any(parameter.requires_grad for parameter in task.parameters()):
            return (
                "its loss has parameters, and gradients of single steps are those of the network. Use streaming=False"
            )
        return None

    def prepare(self, network: nn.Module) -> nn.Module:
        """Return the network itself.

        Raises:
            ValueError: if the method cannot train some layers; names them.
        """
        refuse(type(self).__name__, self.refusals(network))
        return network

    def refusals(self, network: nn.Module) -> list[Refusal]:
        """Return the layers that the method cannot train, with the reasons; here those that hide how they use time."""
        found = NOISE_RULES.refusals(network, _reason)
        return [
            each._replace(reason=self._compiled_reason()) if each.reason == COMPILED else each
            for each in found
            if not _has_known_state(each.layer)
        ]

    def check_not_compiled(self, network: nn.Module) -> None:
        """Raise a ValueError that names the compiled parts of a network, in which no calls of layers are replaced."""
        compiled = [(name, layer) for name, layer in network.named_modules() if is_compiled(layer)]
        refuse(type(self).__name__, [Refusal(name, layer, self._compiled_reason()) for name, layer in compiled])

    def _compiled_reason(self) -> str:
        name = type(self).__name__
        return f"it is compiled, but {name} replaces the calls of its layers: train it without `torch.compile`"

    def learned_steps(self, time_steps: int) -> list[int]:
        """Return the time steps whose losses are averaged, in order: those of the task."""
        return self.task.learned_steps(time_steps)

    def mean_step_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean of the losses of the steps that are learned from, of outputs `[T, B, ...]`."""
        time_steps = len(outputs)
        losses = [self.task.step_loss(outputs[step], y, step, time_steps) for step in self.learned_steps(time_steps)]
        return torch.stack(losses).mean()

    def step_on_objective(self, objective: Tensor, outputs: Tensor, y: Tensor) -> Step:
        """Return a step with an objective and the loss of the outputs of all steps `[T, B, ...]`."""
        with torch.no_grad():
            output, loss = self.task.output_and_loss(outputs.detach(), y)
        return Step(objective, loss, output)

    def check_precision(self, x: Tensor) -> None:
        """Raise a ValueError if gradients of single steps would underflow, before a GradScaler can scale the loss."""
        device = first_input(x).device.type
        if self.streaming and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
            raise ValueError(
                f"Expected no autocast to float16 for {type(self).__name__}(streaming=True), whose gradients of single "
                'steps come before the scale of the loss. Use Trainer(precision="bf16-mixed"), or streaming=False'
            )


class GradientSum:
    """Gradients of parameters that are summed step by step, in float32 or wider.

    Args:
        parameters: the parameters; those that are not trained are left out.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad]
        self._sums = {
            parameter: torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
            for parameter in self.parameters
        }

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        """Add a part of the gradient of a parameter; ignored if the parameter is not trained."""
        if parameter in self._sums:
            self._sums[parameter] += gradient

    def add_gradients_of(self, loss: Tensor) -> None:
        """Add the gradients of a scalar, whose graph is freed."""
        if not loss.requires_grad:
            return
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, found, strict=True):
            if gradient is not None:
                self._sums[parameter] += gradient

    def objective(self, value: Tensor) -> Tensor:
        """Return a scalar with these gradients."""
        return with_gradients(value, self.parameters, [self._sums[parameter] for parameter in self.parameters])


def _reason(rule: NoiseRule, layer: nn.Module) -> str | None:
    if isinstance(layer, TimeWrapper):
        return "its module takes whole sequences: train it by SurrogateGradient"
    return None if isinstance(layer, StatefulLayer) else rule(layer, "step")


def _has_known_state(layer: nn.Module | str) -> bool:
    """Return whether a layer takes and returns its state, so that steps can be cut from each other."""
    return isinstance(layer, StatefulLayer) and type(layer).forward is StatefulLayer.forward
