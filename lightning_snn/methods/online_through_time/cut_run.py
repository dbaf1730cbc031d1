"""A run in pieces that are cut from each other in time, with the traces of the inputs of linear maps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from lightning_snn.methods.online_through_time.traces import (
    decay_key,
    decay_of,
    decay_owners,
    membranes_of,
    traced,
)
from lightning_snn.nn.folding import run, unfold
from lightning_snn.nn.neurons import Neuron, Recurrent, RecurrentLIF, widened, without_autocast
from lightning_snn.nn.registry import parts_of_neurons
from lightning_snn.nn.run_context import forward_replaced
from lightning_snn.nn.stateful import StatefulLayer


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
        self._membranes = membranes_of(network)
        self._owners = decay_owners(network) if trace else {}
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
            owner = self._owners[layer]
            if owner is None:
                return type(layer).forward(layer, x)  # type: ignore[no-any-return]
            outputs, state = traced(layer, sequence, decay_of(owner), state)
        elif isinstance(layer, StatefulLayer):
            if self._trace and layer in self._membranes:
                self._check_followed(layer)
            outputs, state = _cut(layer, sequence, self._trace, state)
        else:
            outputs = torch.stack([type(layer).forward(layer, step) for step in sequence.unbind(0)])
        self._states[place] = (layer, state)
        return outputs.flatten(0, 1)

    def _check_followed(self, membrane: nn.Module | None) -> None:
        """Raise a RuntimeError if a membrane, or the end, follows maps whose traces have another decay."""
        for layer in self._waiting:
            owner = self._owners[layer]
            if owner is membrane or (owner is not None and membrane is not None and _alike(owner, membrane)):
                continue
            names = {module: name for name, module in self.network.named_modules()}
            trace, follower = ("no membrane" if each is None else names[each] for each in (owner, membrane))
            raise RuntimeError(
                f"Expected layers to be registered in the order in which they are called, since {names[layer]} has the "
                f"trace of {trace}, but {follower} followed it. Register them in that order, or use "
                "OnlineThroughTime(trace=False)"
            )
        self._waiting = []


def _alike(one: nn.Module, other: nn.Module) -> bool:
    return decay_key(one) == decay_key(other)


def _uses_batch_statistics(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)


def _cut(layer: StatefulLayer, x: Tensor, trace: bool, state: Any) -> tuple[Tensor, Any]:
    """Run a layer step by step, with each state as a constant of the next step."""
    recurrent = trace and isinstance(layer, (Recurrent, RecurrentLIF))
    inner, spikes_trace = (None, None) if state is None else state
    outputs = []
    for current in x.unbind(0):
        if recurrent and inner is not None:
            spikes_trace = inner.spikes if spikes_trace is None else decay_of(layer) * spikes_trace + inner.spikes
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
