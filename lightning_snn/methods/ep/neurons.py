"""Neurons and outputs of message passing: factors between a potential and a spike, or a value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_snn.functional.ep import (
    Activation,
    Message,
    Potential,
    log_odds_of_spike,
    spike_message,
    spike_probability,
    value_message,
)
from lightning_snn.methods.ep.transforms import Signal
from lightning_snn.nn.registry import register_spiking_layer


@register_spiking_layer
class MessageNeuron(nn.Module):
    """Neurons that spike once or not at all: ``P(spike) = f(u)``, a step or a sigmoid.

    Called on potentials they spike where that is at least as likely as not, ``u >= 0``.

    Args:
        activation: "heaviside", "probit" or "sigmoid".
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation

    def forward(self, u: Tensor) -> Tensor:
        return (u >= 0).to(u.dtype)

    def probability(self, potential: Potential) -> Tensor:
        """Probability of a spike, potentials being Gaussian."""
        return spike_probability(potential.mean, potential.variance, self.activation)

    def signal(self, potential: Potential) -> Signal:
        """Mean and variance of the spikes, potentials being Gaussian."""
        p = self.probability(potential)
        return Signal(p, p * (1 - p))

    def draw(self, u: Tensor) -> Tensor:
        """Spikes drawn for given potentials."""
        return torch.bernoulli(spike_probability(u, torch.zeros_like(u), self.activation))

    def message(self, potential: Potential, log_odds: Tensor) -> Message:
        """What the log-odds of a spike, by the layers after it, say about its potential."""
        return spike_message(potential.mean, potential.variance, log_odds, self.activation)

    def extra_repr(self) -> str:
        return self.activation


class SpikeOutput(nn.Module):
    """One output neuron a class, each a spike by itself; the one of the label spikes and no other.

    Class probabilities are those of exactly one spike: the softmax of the neurons' log-odds. Called on potentials
    `[B, C]` it gives these log-odds, or, of neurons without noise, the potentials.

    Args:
        activation: "heaviside", "probit" or "sigmoid".
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation

    def forward(self, u: Tensor) -> Tensor:
        return u if self.activation == "heaviside" else self.read(_certain(u))

    def read(self, potential: Potential) -> Tensor:
        """Log-odds `[B, C]` of a spike of each output."""
        return log_odds_of_spike(potential.mean, potential.variance, self.activation)

    def message(self, potential: Potential, labels: Tensor) -> Message:
        """What labels `[B]` say about the potentials `[B, C]`.

        Raises:
            ValueError: for potentials of another shape, as of a convolution at the end, or labels that are no integers.
        """
        if potential.mean.dim() != 2:
            raise ValueError(
                f"Expected one output a class, of shape (batch, classes), but got {tuple(potential.mean.shape)}"
            )
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(
                f"Expected an integer label a sample, of shape (batch,), but got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        spikes = torch.zeros_like(potential.mean, dtype=torch.bool).scatter_(1, labels.long()[:, None], True)
        log_odds = torch.where(spikes, torch.inf, -torch.inf).to(potential.mean.dtype)
        return spike_message(potential.mean, potential.variance, log_odds, self.activation)

    def extra_repr(self) -> str:
        return self.activation


class ValueOutput(nn.Module):
    """Potentials read out as values with Gaussian noise.

    Args:
        noise_variance: of the observations, larger than 0.
        learned: let the noise variance follow the data, by expectation maximization.
    """

    noise_variance: Tensor

    def __init__(self, noise_variance: Tensor, learned: bool) -> None:
        super().__init__()
        self.learned = learned
        if learned:
            self.noise_variance = nn.Parameter(noise_variance)
        else:
            self.register_buffer("noise_variance", noise_variance)

    def forward(self, u: Tensor) -> Tensor:
        return u

    def read(self, potential: Potential) -> Tensor:
        """Mean values `[B, ...]`."""
        return potential.mean

    def message(self, potential: Potential, values: Tensor) -> Message:
        """What observed values `[B, ...]` say about the potentials.

        Raises:
            ValueError: for values of another shape than the potentials, as without the axis of the output units.
        """
        if values.shape != potential.mean.shape:
            raise ValueError(
                f"Expected the values of a regression to be of the output's shape {tuple(potential.mean.shape)}, but "
                f"got {tuple(values.shape)}"
            )
        return value_message(potential.mean, potential.variance, values, self.noise_variance.detach())

    def expected_noise(self, potential: Potential, message: Message, values: Tensor) -> Tensor:
        """The noise variance that explains observations best, given what they say: ``E[(y - u)^2]``."""
        mean = potential.mean + potential.variance * message.score
        variance = potential.variance - potential.variance.square() * message.curvature
        return ((values - mean).square() + variance).mean()

    def extra_repr(self) -> str:
        return f"learned={self.learned}"


def _certain(u: Tensor) -> Potential:
    nothing = torch.zeros_like(u)
    return Potential(u, nothing, nothing, u)
