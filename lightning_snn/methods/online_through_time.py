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

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from lightning_snn.checks import check_integer
from lightning_snn.functional.traced import InputTrace, Kernel, input_traces, traced_map
from lightning_snn.methods.base import Step
from lightning_snn.methods.online import GradientSum, OnlineMethod
from lightning_snn.nn.folding import as_input, check_samples, run, unfold
from lightning_snn.nn.layer_rules import LayerRules, Refusal, is_compiled, refuse
from lightning_snn.nn.module_tree import unnested
from lightning_snn.nn.neurons import (
    LIF,
    AdaptiveLIF,
    LeakyIntegrator,
    Neuron,
    Recurrent,
    RecurrentLIF,
    widened,
    without_autocast,
)
from lightning_snn.nn.registry import parts_of_neurons
from lightning_snn.nn.run_context import forward_replaced
from lightning_snn.nn.stateful import StatefulLayer


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
            cannot train, or the readout is the maximum over time.

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

    def prepare(self, network: nn.Module) -> nn.Module:
        if self.steps is not None and self.task.readout == "last":
            raise ValueError(
                'Expected argument `readout` other than "last" for OnlineThroughTime(steps=...), which draws the steps '
                "that have a loss, but got 'last'. Use steps=None"
            )
        return super().prepare(network)

    def refusals(self, network: nn.Module) -> list[Refusal]:
        refused = super().refusals(network)
        return refused or (trace_refusals(network) if self.trace else [])

    def check_time_steps(self, time_steps: int) -> None:
        if self.steps is not None and self.steps > time_steps:
            raise ValueError(
                f"Expected argument `steps` to be at most the number of time steps {time_steps}, but got {self.steps}"
            )

    def learned_steps(self, time_steps: int) -> list[int]:
        if self.steps is None:
            return super().learned_steps(time_steps)
        drawn: list[int] = torch.randperm(time_steps)[: self.steps].tolist()
        return sorted(drawn)

    def training_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        check_samples(x)
        self.check_time_steps(len(x))
        self.check_precision(x)
        compiled = [(name, layer) for name, layer in network.named_modules() if is_compiled(layer)]
        refuse(type(self).__name__, [Refusal(name, layer, self.compiled_reason()) for name, layer in compiled])
        x = as_input(network, x)
        if self.streaming or self.steps is not None:
            return self._step_by_step(network, x, y)
        outputs = CutRun(network, self.trace).advance(x)
        self.task.read(outputs)  # which checks that it is one tensor
        objective = self.mean_step_loss([outputs[step] for step in self.learned_steps(len(x))], y, len(x))
        return self.step_on_objective(objective, outputs, y)

    def _step_by_step(self, network: nn.Module, x: Tensor, y: Tensor) -> Step:
        steps, cut = self.learned_steps(len(x)), CutRun(network, self.trace)
        objective = torch.zeros((), device=x.device)
        outputs: Tensor | None = None
        gradients: GradientSum | None = None
        for index, current in enumerate(x.split(1)):
            with torch.set_grad_enabled(index in steps):
                output = cut.advance(current)[0]
                if index in steps:
                    loss = self.step_loss(output, y, len(x)) / len(steps)
                    if self.streaming:
                        gradients = GradientSum(network) if gradients is None else gradients
                        gradients.add_gradients_of(loss)
                        loss = loss.detach()
                    objective = objective + loss
                outputs = output.new_empty(len(x), *output.shape) if outputs is None else outputs
                outputs[index] = output.detach()
        assert outputs is not None
        return self.step_on_objective(objective if gradients is None else gradients.objective(objective), outputs, y)

    def extra_repr(self) -> str:
        parts = [f"trace={self.trace}"]
        parts += [f"steps={self.steps}"] if self.steps is not None else []
        parts += ["streaming=True"] if self.streaming else []
        return ", ".join(parts)


class CutRun:
    """A run of a network in pieces, in which no gradient passes from step to step.

    The outputs are those of `run`, but for batch normalization, which uses the statistics of single steps. States and
    traces of the layers are in this object, without a graph.

    Args:
        network: a plain module that maps `[T*B, ...]` to `[T*B, ...]`.
        trace: whether linear maps before membranes learn from traces of their inputs.

    Example:
        >>> cut = CutRun(network, trace=True)
        >>> outputs = torch.cat([cut.advance(piece) for piece in x.split(1)])
        >>> torch.allclose(outputs, run(network, x))
        True
    """

    def __init__(self, network: nn.Module, trace: bool) -> None:
        self.network = network
        inside = parts_of_neurons(network)
        self._membranes = _membranes(network)
        self._owners = _decay_owners(network) if trace else {}
        layers = [layer for layer in network.modules() if isinstance(layer, StatefulLayer) and layer not in inside]
        norms = [layer for layer in network.modules() if _uses_batch_statistics(layer)]
        self._replaced = [*layers, *norms, *self._owners]
        self._trace = trace
        self._states: list[tuple[nn.Module, Any]] = []
        self._next, self._records = 0, True
        self._waiting: list[nn.Module] = []  # maps that no membrane has followed yet

    def advance(self, x: Tensor) -> Tensor:
        """Run the next steps of the sequence.

        Args:
            x: inputs `[t, B, ...]`.

        Returns:
            outputs `[t, B, ...]`.

        Raises:
            RuntimeError: if the network calls its layers in another order than before, or than that in which their
                membranes are registered.
        """
        self._next, self._waiting, self._records = 0, [], torch.is_grad_enabled()
        with forward_replaced(self._replaced, self._call):
            outputs: Tensor = run(self.network, x)
        self._check_followed(None)
        return outputs

    def _call(self, layer: nn.Module, x: Tensor) -> Tensor:
        place, self._next = self._next, self._next + 1
        if place == len(self._states):
            self._states.append((layer, None))
        expected, state = self._states[place]
        if expected is not layer:
            raise RuntimeError(
                f"Expected the network to call its layers in the same order at every step, but call {place} is of "
                f"{type(layer).__name__} and was of {type(expected).__name__}"
            )
        if torch.is_grad_enabled() != self._records:
            raise RuntimeError(
                f"Expected no activation checkpointing around {type(layer).__name__} with OnlineThroughTime, which "
                "cuts gradients between steps. Remove it; with streaming=True memory does not grow with T"
            )
        sequence = unfold(x, layer)
        if layer in self._owners:
            self._waiting.append(layer)
            decay = _decay(self._owners[layer])
            outputs, state = _traced(layer, sequence, decay, state)
        elif isinstance(layer, StatefulLayer):
            if self._trace and layer in self._membranes:
                self._check_followed(layer)
            outputs, state = _cut(layer, sequence, self._trace, state)
        else:
            outputs = torch.stack([type(layer).forward(layer, step) for step in sequence.unbind(0)])
        self._states[place] = (layer, state)
        return outputs.flatten(0, 1)

    def _check_followed(self, membrane: nn.Module | None) -> None:
        """Raise a RuntimeError if the maps before a membrane, or the end, have the traces of other decays."""
        for layer in self._waiting:
            owner = self._owners[layer]
            if membrane is None or (owner is not membrane and _key(owner) != _key(membrane)):
                names = {module: name for name, module in self.network.named_modules()}
                follower = "the output" if membrane is None else names[membrane]
                raise RuntimeError(
                    f"Expected layers to be registered in the order in which they are called, since {names[layer]} has "
                    f"the trace of {names[owner]}, but it was followed by {follower}. Register them in that order, or "
                    "use OnlineThroughTime(trace=False)"
                )
        self._waiting = []


def trace_refusals(network: nn.Module) -> list[Refusal]:
    """Return the layers for which traces are not defined, with the reasons.

    Example:
        >>> lightning_snn.methods.online_through_time.trace_refusals(nn.Sequential(nn.Linear(4, 8), LIF()))
        []
    """
    names = {module: name for name, module in network.named_modules()}
    inside, membranes = parts_of_neurons(network), _membranes(network)
    refused = []
    for layer in membranes:
        if _DECAYS.find(layer) is None:
            refused.append(Refusal(names[layer], layer, _DECAYS.unknown))
        elif isinstance(decay := _decay(layer), Tensor) and decay.dim() > 0:
            reason = "one decay per channel, so each weight would need a trace of its own: use trace=False"
            refused.append(Refusal(names[layer], layer, reason))
    known = {part for layer in network.modules() if _KERNELS.find(layer) is not None for part in layer.modules()}
    for layer in network.modules():
        if layer in known or layer in inside or isinstance(layer, Neuron):
            continue
        if any(each.dim() > 1 and each.requires_grad for each in layer.parameters(recurse=False)):
            refused.append(Refusal(names[layer], layer, _KERNELS.unknown))
    parts = unnested(network)
    if not refused and len(set(map(_key, membranes))) > 1 and not all(layer in parts for layer in membranes):
        reason = "layers of several decays, which are known to be in the order of their calls in an nn.Sequential only"
        refused.append(Refusal("", network, f"{reason}: use trace=False"))
    return refused


_DECAYS: LayerRules[Callable[[Any], float | Tensor]] = LayerRules(
    unknown="no decay of the membrane potential alone, by which traces of its inputs decay: use trace=False"
)
for _kind in (LIF, RecurrentLIF, AdaptiveLIF, LeakyIntegrator):
    _DECAYS.register(_kind, lambda layer: layer.value("beta"))
_DECAYS.register(Recurrent, lambda layer: _decay(layer.neuron))


def _convolution(layer: Any) -> Kernel:
    padded = _padded_before(layer)
    none = (0,) * len(layer.kernel_size)
    padding = none if padded else layer.padding
    return Kernel(layer.stride, padding, layer.dilation, layer.groups, layer.transposed, layer.output_padding)


_KERNELS: LayerRules[Callable[[Any], Kernel | None]] = LayerRules(
    unknown="no trace of the inputs of its weights: use trace=False"
)
_KERNELS.register(nn.Linear, lambda layer: None)
for _layer in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    _KERNELS.register(_layer, _convolution)


def _padded_before(layer: Any) -> bool:
    """Return whether the inputs of a convolution are padded before it, other than by zeros on both sides alike."""
    return isinstance(layer.padding, str) or layer.padding_mode != "zeros"


def _membranes(network: nn.Module) -> list[nn.Module]:
    """Return the layers with a membrane potential, in order of registration."""
    inside = parts_of_neurons(network)
    return [
        layer for layer in network.modules() if isinstance(layer, (Neuron, LeakyIntegrator)) and layer not in inside
    ]


def _decay_owners(network: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return the linear maps before a membrane, with the next one, whose decay their traces have."""
    inside, membranes = parts_of_neurons(network), set(_membranes(network))
    owners: dict[nn.Module, nn.Module] = {}
    following = None
    for layer in reversed(list(network.modules())):
        if layer in membranes:
            following = layer
        elif following is not None and layer not in inside and _KERNELS.find(layer) is not None:
            owners[layer] = following
    return owners


def _decay(membrane: nn.Module) -> float | Tensor:
    rule = _DECAYS.find(membrane)
    assert rule is not None
    decay = rule(membrane)
    return decay.detach() if isinstance(decay, Tensor) else decay


def _key(membrane: nn.Module) -> float | nn.Module:
    """Return what is equal for two membranes if their decays are and remain equal."""
    decay = _decay(membrane)
    return membrane if isinstance(decay, Tensor) else decay


def _uses_batch_statistics(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)


def _traced(layer: Any, x: Tensor, decay: float | Tensor, state: InputTrace | None) -> tuple[Tensor, InputTrace]:
    rule = _KERNELS.find(layer)
    assert rule is not None
    kernel = rule(layer)
    if kernel is not None and _padded_before(layer):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x.flatten(0, 1), layer._reversed_padding_repeated_twice, mode).unflatten(0, x.shape[:2])
    traces, ones, state = input_traces(x.detach(), decay, state)
    mapped = traced_map(x.flatten(0, 1), traces.flatten(0, 1), ones, layer.weight, layer.bias, kernel)
    return mapped.unflatten(0, x.shape[:2]), state


def _cut(layer: StatefulLayer, x: Tensor, trace: bool, state: Any) -> tuple[Tensor, Any]:
    """Run a layer step by step, with each state as a constant of the next step."""
    recurrent = trace and isinstance(layer, (Recurrent, RecurrentLIF))
    inner, spikes_trace = (None, None) if state is None else state
    outputs = []
    for current in x.unbind(0):
        if recurrent and inner is not None:
            spikes_trace = inner.spikes if spikes_trace is None else _decay(layer) * spikes_trace + inner.spikes
            current = current + _of_past(layer.weight, spikes_trace - inner.spikes, current)  # type: ignore[arg-type]
        if isinstance(layer, Neuron):
            output, inner = layer.step(current, inner)
        else:
            output, inner = layer.scan(current[None], inner)
            output = output[0]
        inner = tree_map(Tensor.detach, inner)
        outputs.append(output)
    return torch.stack(outputs), (inner, spikes_trace)


def _of_past(weight: Tensor, spikes: Tensor, like: Tensor) -> Tensor:
    """Return zeros with the gradient of a recurrent weight by a sum of earlier spikes."""
    with without_autocast(like):
        mapped = F.linear(spikes, weight.to(widened(spikes).dtype))
        return (mapped - mapped.detach()).to(like.dtype)
