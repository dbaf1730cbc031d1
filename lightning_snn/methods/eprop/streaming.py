"""E-prop step by step: a chain of layers with explicit eligibility traces, in memory that does not grow with T."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_snn.functional.dynamics import lif_after_spikes, lif_charge
from lightning_snn.functional.eprop import Eligibility, next_eligibility, sensitivity
from lightning_snn.functional.spike import spike
from lightning_snn.functional.traced import InputTrace, input_traces
from lightning_snn.methods.eprop.chain import Chain
from lightning_snn.methods.online import GradientSum
from lightning_snn.nn.folding import folded
from lightning_snn.nn.neurons import Neuron, Recurrent, RecurrentLIF, widened, without_autocast
from lightning_snn.nn.run_context import forward_replaced
from lightning_snn.nn.stateful import StatefulLayer
from lightning_snn.nn.states import State

Steps = Callable[..., tuple[Tensor, ...]]


class EligibilityRun:
    """A run of a chain step by step, which keeps the eligibility traces of its synapses.

    Args:
        chain: layers of a network that `chain_refusals` accepts with ``streaming=True``.

    Example:
        >>> run = EligibilityRun(Chain.of(nn.Sequential(nn.Linear(4, 8), LIF(), nn.Linear(8, 3))))
        >>> run.advance(torch.rand(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._stateful = [layer for layer in chain.layers if isinstance(layer, StatefulLayer)]
        self._states: dict[nn.Module, State] = {}
        self._traces: dict[int, Eligibility] = {}
        self._spikes: dict[int, Tensor] = {}  # of recurrent neurons
        self._readout: InputTrace | None = None
        self._inputs: dict[int, Tensor] = {}  # of linear layers in the present step
        self._place = 0

    @property
    def kappa(self) -> float:
        """Decay of the readout, by which traces are filtered."""
        integrator = self.chain.integrator
        beta = 0.0 if integrator is None else integrator.beta
        assert isinstance(beta, float)
        return beta

    @torch.no_grad()
    def advance(self, x: Tensor) -> Tensor:
        """Run the next step and update the traces.

        Args:
            x: input of the step `[B, ...]`.

        Returns:
            the output `[B, C]`.

        Raises:
            ValueError: if the inputs of a linear layer are not `[B, N]`.
        """
        chain = self.chain
        with folded(1), forward_replaced(self._stateful, self._call):
            for self._place, layer in enumerate(chain.layers):
                if isinstance(layer, nn.Linear):
                    if x.dim() != 2:
                        raise ValueError(
                            f"Expected inputs [B, N] of {type(layer).__name__} for EProp(streaming=True), but got "
                            f"{tuple(x.shape)}. Flatten them, or use streaming=False"
                        )
                    self._inputs[self._place] = x
                x = layer(x)
        _, _, self._readout = input_traces(self._inputs[chain.readout][None], self.kappa, self._readout)
        return x

    @torch.no_grad()
    def add_gradients(self, gradients: GradientSum, error: Tensor, feedback: Sequence[Tensor]) -> None:
        """Add the gradients of the loss of this step.

        Args:
            gradients: sum of gradients.
            error: derivative of the loss with respect to the output, `[B, C]`.
            feedback: feedback weights of each hidden layer, `[C, N]`.
        """
        chain, readout = self.chain, self.chain.readout_layer()
        assert self._readout is not None
        with without_autocast(error):
            error = widened(error)
            of_readout = error.t() @ self._readout.inputs
            gradients.add(readout.weight, of_readout)
            if readout.bias is not None:
                gradients.add(readout.bias, error.sum(0) * self._readout.ones)
            if feedback[-1] is not readout.weight:
                gradients.add(feedback[-1], of_readout)
            for place, weights in zip(chain.hidden, feedback, strict=True):
                signal = error @ weights.to(error.dtype)
                self._add_of_synapses(gradients, place, torch.einsum("bn,bnp->np", signal, self._traces[place].trace))

    def _add_of_synapses(self, gradients: GradientSum, place: int, found: Tensor) -> None:
        """Add the gradients `[N, P]` of the synapses of neurons, in the order of `_presynaptic`."""
        linear = self.chain.weights_of(place)
        assert linear is not None
        widths = [linear.in_features, 1, found.shape[1] - linear.in_features - 1]
        of_weight, of_bias, of_recurrent = found.split(widths, 1)
        gradients.add(linear.weight, of_weight)
        if linear.bias is not None:
            gradients.add(linear.bias, of_bias[:, 0])
        layer = self.chain.layers[place]
        if isinstance(layer, (Recurrent, RecurrentLIF)):
            gradients.add(layer.weight, of_recurrent)

    def _call(self, layer: nn.Module, x: Tensor) -> Tensor:
        if isinstance(layer, Neuron):
            return self._fire(layer, x)
        assert isinstance(layer, StatefulLayer)
        output, self._states[layer] = layer.scan(x[None], self._states.get(layer))
        return output[0]

    def _fire(self, neuron: Neuron, x: Tensor) -> Tensor:
        place = self._place
        with without_autocast(x):
            current = widened(x)
            inputs = self._presynaptic(neuron, current)
            if isinstance(neuron, (Recurrent, RecurrentLIF)):
                current = current + F.linear(self._spikes[place], neuron.weight.to(current.dtype))
            step, rest = _elementwise_step(neuron, current)
            state = self._states.get(neuron, rest)
            spikes, state, found = sensitivity(step, current, state)
            self._traces[place] = next_eligibility(inputs, found, self._traces.get(place), self.kappa)
        self._states[neuron] = state
        if not neuron.independent:
            self._spikes[place] = spikes
        return spikes.to(x.dtype)

    def _presynaptic(self, neuron: Neuron, current: Tensor) -> Tensor:
        """Return the presynaptic activity of a step `[B, P]`: inputs, the constant of biases, and the last spikes."""
        before = max(place for place in self._inputs if place < self._place)
        activity = [self._inputs[before].to(current.dtype), torch.ones_like(current[:, :1])]
        if not neuron.independent:
            activity.append(self._spikes.setdefault(self._place, torch.zeros_like(current)))
        return torch.cat(activity, 1)


def _elementwise_step(neuron: Neuron, current: Tensor) -> tuple[Steps, tuple[Tensor, ...]]:
    """Return a step without recurrence, from a current and the tensors of a state, and the tensors at rest."""
    if isinstance(neuron, Recurrent):
        return _elementwise_step(neuron.neuron, current)
    if isinstance(neuron, RecurrentLIF):
        # its state has the last spikes, which are part of the current here
        return (lambda x, u: _fire_lif(neuron, x, u)), (torch.zeros_like(current),)
    leaves, structure = tree_flatten(neuron.checked_initial_state(current))

    def step(x: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        spikes, state = neuron.step(x, tree_unflatten(leaves, structure))
        return spikes, *tree_flatten(state)[0]

    return step, tuple(leaves)


def _fire_lif(neuron: RecurrentLIF, x: Tensor, membrane: Tensor) -> tuple[Any, ...]:
    """Return spikes and membrane potential after a step of LIF neurons whose current has all inputs."""
    charged = lif_charge(x, membrane, neuron.value("beta", x), neuron.value("threshold", x))
    spikes = spike(charged, neuron.firing_threshold(charged), neuron.surrogate)
    return spikes, lif_after_spikes(charged, spikes, neuron.value("threshold", x), neuron.dynamics)
