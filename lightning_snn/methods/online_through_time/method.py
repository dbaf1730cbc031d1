r"""Online training through time: errors go back through space only, and inputs arrive as traces.

With :math:`\lambda` the decay of the membrane potentials and h the surrogate derivative of the spike,

.. math:: \nabla W_l = \sum_t \delta_{l,t}\, a_{l-1,t}^\top, \quad a_{l,t} = \lambda a_{l,t-1} + s_{l,t}, \quad
    \delta_{l,t} = (W_{l+1}^\top \delta_{l+1,t}) \odot h(v_{l,t} - \theta)

and the objective is the mean over time of the loss of each step's output. Without traces, :math:`a_t = s_t` (SLTT).
The gradient of a bias has the trace of ones, that of recurrent weights the trace of the last spikes. Learned constants
of neurons and of normalizations get the gradient of single steps.

Exact, that is equal to backpropagation through time of the same objective: at T = 1, and with traces for the weights of
a network with one hidden layer of neurons that subtract the threshold with ``detach_reset=True``, before a readout
without a memory. Otherwise it neglects errors that pass from step to step: through resets, adaptation, delays,
recurrence and, below the last hidden layer, membrane potentials. Without traces it neglects every path through time, so
it learns nothing of a cause that comes before the steps that it affects.

Batch normalization uses the statistics of single steps while training, and updates its running statistics at each.

Cost: one forward and one backward pass in O(T) time. With ``streaming=True`` the memory for the backward pass does not
grow with T: it is that of one step, the states and traces of one step, and a copy of the gradients; outputs `[T, B, C]`
are kept without a graph. With ``steps=K`` only K of the T steps have a backward pass, and their memory.

OTTT after Xiao et al. 2022 (arXiv 2210.04195), SLTT and the choice of K steps after Meng et al. 2023 (arXiv
2302.14311); traces of biases and recurrent weights are additions of this library. Not to be confused with
`SurrogateGradient(truncate=1)`, which keeps the memory of all steps, nor with `RateBackprop(window="step")`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_integer
from lightning_snn.methods.base import Step
from lightning_snn.methods.online import GradientSum, OnlineMethod
from lightning_snn.methods.online_through_time.cut_run import CutRun
from lightning_snn.methods.online_through_time.traces import trace_refusals
from lightning_snn.methods.tasks import Task
from lightning_snn.nn.folding import as_input, check_samples
from lightning_snn.nn.inputs import first_input, split_inputs
from lightning_snn.nn.layer_rules import Refusal, refuse
from lightning_snn.nn.lengths import later_steps, normalizing_refusals


class OnlineThroughTime(OnlineMethod):
    """Online training through time (OTTT, SLTT); the objective is the mean of the losses of single steps.

    Args:
        trace: whether weights learn from traces of their inputs (OTTT), or from the inputs of single steps (SLTT).
            Traces need one decay per layer, fixed or learned, and weights of linear layers and convolutions.
        steps: number K of steps, drawn anew for each batch, whose losses are averaged; None is all. The network is
            called once per step.
        streaming: whether the network is called once per step and gradients are summed step by step: slower, but memory
            does not grow with T.

    Raises:
        ValueError: if an argument is outside its range; from `prepare`, if the network has layers that the method
            cannot train; from `set_task`, if the readout is the maximum over time.

    Example:
        >>> method = OnlineThroughTime()
        >>> step = method.training_step(method.prepare(network), x, y)
        >>> step.objective.backward()
    """

    citation = """@inproceedings{xiao2022online,
  title = {Online Training Through Time for Spiking Neural Networks},
  author = {Xiao, Mingqing and Meng, Qingyan and Zhang, Zongpeng and He, Di and Lin, Zhouchen},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2022},
  note = {arXiv:2210.04195; without traces: Meng et al., Towards Memory- and Time-Efficient Backpropagation for
    Training Spiking Neural Networks, ICCV 2023, arXiv:2302.14311}
}"""

    def __init__(self, trace: bool = True, steps: int | None = None, streaming: bool = False) -> None:
        super().__init__(streaming)
        if steps is not None:
            check_integer("steps", steps)
        self.trace, self.steps = trace, steps

    def task_refusal(self, task: Task) -> str | None:
        if self.steps is not None and task.readout == "last" and not task.per_step:
            return (
                "its loss is that of the last step, and OnlineThroughTime(steps=...) draws the steps that have one. "
                "Use steps=None, or another readout"
            )
        return super().task_refusal(task)

    def refusals(self, network: nn.Module) -> list[Refusal]:
        refused = super().refusals(network)
        return refused or (trace_refusals(network) if self.trace else [])

    def check_time_steps(self, time_steps: int) -> None:
        if self.steps is not None and self.steps > time_steps:
            raise ValueError(
                f"Expected argument `steps` to be at most the number of time steps {time_steps}, but got {self.steps}"
            )

    def check_lengths(self, network: nn.Module) -> None:
        """Check that the loss of each step can leave out padding.

        Raises:
            ValueError: with `steps`, which are the same for all samples, or batch normalization while training.
        """
        super().check_lengths(network)
        if self.steps is not None:
            raise ValueError(
                "Expected argument `steps` to be None for OnlineThroughTime on batches with `lengths`, because the "
                f"steps that are drawn may all be padding of a sample, but got {self.steps}"
            )
        refuse("OnlineThroughTime on batches with `lengths`", normalizing_refusals(network))

    def learned_steps(self, time_steps: int) -> list[int]:
        if self.steps is None:
            return super().learned_steps(time_steps)
        drawn: list[int] = torch.randperm(time_steps)[: self.steps].tolist()
        return sorted(drawn)

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        check_samples(x)
        self.check_time_steps(len(first_input(x)))
        self.check_precision(x)
        self.check_not_compiled(network)
        x = as_input(network, x)
        if self.streaming or self.steps is not None:
            return self._step_by_step(network, x, y)
        outputs = CutRun(network, self.trace).advance(x)
        self.task.read(outputs)  # which checks that it is one tensor
        return self.step_on_objective(self.mean_step_loss(outputs, y), outputs, y)

    def _step_by_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        time_steps = len(first_input(x))
        steps, cut = self.learned_steps(time_steps), CutRun(network, self.trace)
        objective = torch.zeros((), device=first_input(x).device)
        outputs: Tensor | None = None
        gradients: GradientSum | None = None
        for index, current in enumerate(split_inputs(x, 1)):
            with torch.set_grad_enabled(index in steps):
                with later_steps(index):
                    output = cut.advance(current)[0]
                if index in steps:
                    loss = self.task.step_loss(output, y, index, time_steps) / len(steps)
                    if self.streaming:
                        gradients = GradientSum(network.parameters()) if gradients is None else gradients
                        gradients.add_gradients_of(loss)
                        loss = loss.detach()
                    objective = objective + loss
                outputs = output.new_empty(time_steps, *output.shape) if outputs is None else outputs
                outputs[index] = output.detach()
        assert outputs is not None
        return self.step_on_objective(objective if gradients is None else gradients.objective(objective), outputs, y)

    def extra_repr(self) -> str:
        parts = [f"trace={self.trace}"]
        parts += [f"steps={self.steps}"] if self.steps is not None else []
        parts += ["streaming=True"] if self.streaming else []
        return ", ".join(parts)
