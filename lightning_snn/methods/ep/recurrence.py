"""Recurrent neurons for message passing: their weights, whose prior is a latch, and the network around them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_snn.functional.ep import Activation
from lightning_snn.methods.ep.chain import Block, Chain, MessageNetwork
from lightning_snn.methods.ep.layers import MessageLayer
from lightning_snn.methods.ep.neurons import MessageNeuron, SpikeOutput, ValueOutput
from lightning_snn.methods.ep.weights import GaussianWeights, Natural
from lightning_snn.nn.registry import register_spiking_layer
from lightning_snn.nn.stateful import StatefulLayer


class LatchedWeights(GaussianWeights):
    r"""Gaussian weights of recurrent neurons, whose prior means are a latch.

    Columns are those of the inputs, of the N neurons and of the bias. The prior means of the last two are
    :math:`E[W_\text{rec}] = a I` and :math:`E[b] = -a / 2`: without input a spike is likely to be followed by a spike,
    and no spike by none. They are in addition to those of `GaussianWeights`.

    Args:
        variance: as in `GaussianWeights`.
        split: as in `GaussianWeights`.
        latch: a, at least 0.

    Example:
        >>> weights = LatchedWeights(variance=1.0, split=0.0, latch=4.0)
        >>> weights.moments(weights.prior(torch.empty(2, 4)))[0]
        tensor([[ 0.,  4.,  0., -2.],
                [ 0.,  0.,  4., -2.]])
    """

    def __init__(self, variance: float, split: float, latch: float) -> None:
        super().__init__(variance, split)
        self.latch = latch

    def prior(self, like: Tensor) -> Natural:
        """Return the natural parameters of the prior for weights like `[N, I + N + 1]`."""
        precision, precision_mean = super().prior(like)
        mean = torch.zeros_like(like)
        mean[:, -len(like) - 1 : -1].diagonal().fill_(self.latch)
        mean[:, -1] = -self.latch / 2
        return Natural(precision, precision_mean + precision * mean)

    def __repr__(self) -> str:
        return f"LatchedWeights(variance={self.variance:g}, split={self.split:g}, latch={self.latch:g})"


@register_spiking_layer
class RecurrentMessageLayer(StatefulLayer):
    """Weights and neurons of ``u_t = W x_t + W_rec s_{t-1} + b`` with ``P(s_t) = f(u_t)``, trained by messages.

    A call runs the layer over a sequence with the means of its weights, and spikes where a spike is at least as likely
    as none. Between steps it keeps the spikes, and no membrane potential.

    Args:
        weights: one row per neuron; columns are the inputs, the neurons and the bias.
        activation: "heaviside", "probit" or "sigmoid".

    Shape:
        input `[T*B, I]`, output `[T*B, N]`.
    """

    def __init__(self, weights: MessageLayer, activation: Activation) -> None:
        super().__init__()
        self.weights = weights
        self.activation: Activation = activation

    @property
    def features(self) -> int:
        """Number of neurons N."""
        return len(self.weights.precision)

    @property
    def neuron(self) -> MessageNeuron:
        """Factor between the potentials and the spikes of a step."""
        return MessageNeuron(self.activation)

    def initial_state(self, x: Tensor) -> Tensor:
        """Return no spikes, `[B, N]`."""
        return x.new_zeros(len(x), self.features)

    def scan(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the spikes `[T, B, N]` for inputs `[T, B, I]`, and those of the last step."""
        spikes = self.initial_state(x[0]) if state is None else state
        outputs = []
        for step in x.unbind(0):
            spikes, _ = self.step(step, spikes)
            outputs.append(spikes)
        return torch.stack(outputs), spikes

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the spikes `[B, N]` for inputs `[B, I]`, twice: they are the state, too."""
        spikes = self.initial_state(x) if state is None else state
        spikes = self.neuron(self.weights(torch.cat([x, spikes.to(x.dtype)], 1)))
        return spikes, spikes

    def extra_repr(self) -> str:
        return self.activation


@dataclass(frozen=True)
class SequenceChain(Chain):
    """Two blocks: recurrent weights and neurons, and a readout of the spikes of the last step.

    The weights of the first block have one column per input, per neuron, and for the bias.
    """

    @property
    def features(self) -> int:
        """Number of recurrent neurons."""
        return len(self.blocks[0].layer.precision)


class RecurrentMessageNetwork(MessageNetwork):
    """Recurrent network prepared for message passing: recurrent layer, readout, output."""

    @property
    def chain(self) -> SequenceChain:
        """Blocks and output of the network."""
        recurrent, readout, output = self
        assert isinstance(recurrent, RecurrentMessageLayer)
        assert isinstance(readout, MessageLayer)
        assert isinstance(output, (SpikeOutput, ValueOutput))
        return SequenceChain((Block((), recurrent.weights, recurrent.neuron), Block((), readout, None)), output)
