"""Neurons and outputs for message passing: factors between a potential and a spike, or a value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_snn.functional.ep import (
    Activation,
    Message,
    Potential,
    log_odds_of_spike,
    soft_spike_message,
    spike_message,
    spike_probability,
    value_message,
)
from lightning_snn.functional.surrogate import propagate_nan
from lightning_snn.methods.ep.transforms import Signal
from lightning_snn.nn.registry import register_spiking_layer


class _SpikeFactor(nn.Module):
    """Factor ``P(spike | u) = f(u)`` between a membrane potential u and a spike."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation

    def extra_repr(self) -> str:
        return self.activation


@register_spiking_layer
class MessageNeuron(_SpikeFactor):
    """Neurons that spike at most once: ``P(spike) = f(u)``, with f a step or a sigmoid.

    A call returns a spike where it is at least as likely as no spike, ``u >= 0``, and NaN where u is NaN.

    Args:
        activation: "heaviside", "probit" or "sigmoid".

    Example:
        >>> MessageNeuron("probit")(torch.tensor([-0.5, 0.0, 2.0]))
        tensor([0., 1., 1.])
    """

    def forward(self, u: Tensor) -> Tensor:
        return propagate_nan((u >= 0).to(u.dtype), u)

    def probability(self, potential: Potential) -> Tensor:
        """Return the probability of a spike, given Gaussian potentials."""
        return spike_probability(potential.mean, potential.variance, self.activation)

    def signal(self, potential: Potential) -> Signal:
        """Return mean and variance of the spikes, given Gaussian potentials."""
        p = self.probability(potential)
        return Signal(p, p * (1 - p))

    def draw(self, u: Tensor) -> Tensor:
        """Sample spikes, given potentials; NaN for NaN, for which `torch.bernoulli` has no probability."""
        p = spike_probability(u, torch.zeros_like(u), self.activation)
        return propagate_nan(torch.bernoulli(p.nan_to_num(nan=0.0)), p)

    def message(self, potential: Potential, log_odds: Tensor) -> Message:
        """Return the message to the potentials, given the log-odds of spikes from the layers after them."""
        return soft_spike_message(potential.mean, potential.variance, log_odds, self.activation)


class SpikeOutput(_SpikeFactor):
    """One independent output neuron per class; the neuron of the label spikes and no other.

    Class probabilities are those of exactly one spike: the softmax of the neurons' log-odds. A call on potentials
    `[B, C]` returns these log-odds, or the potentials of neurons without noise.

    Args:
        activation: "heaviside", "probit" or "sigmoid".

    Example:
        >>> SpikeOutput("sigmoid")(torch.tensor([[-2.0, 0.5]])).round(decimals=4)
        tensor([[-2.0000,  0.5000]])
    """

    def forward(self, u: Tensor) -> Tensor:
        if self.activation == "heaviside":
            return u
        nothing = torch.zeros_like(u)
        return self.read(Potential(u, nothing, nothing, u))

    def read(self, potential: Potential) -> Tensor:
        """Return the log-odds `[B, C]` of a spike of each output."""
        return log_odds_of_spike(potential.mean, potential.variance, self.activation)

    def message(self, potential: Potential, labels: Tensor) -> Message:
        """Return the message from labels `[B]` to the potentials `[B, C]`.

        Raises:
            ValueError: for potentials of another shape, for example of a convolution at the end, or labels that are not
                integers.
        """
        if potential.mean.dim() != 2:
            raise ValueError(
                f"Expected one output per class, of shape (batch, classes), but got {tuple(potential.mean.shape)}"
            )
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(
                f"Expected one integer label per sample, of shape (batch,), but got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        spikes = torch.zeros_like(potential.mean, dtype=torch.bool).scatter_(1, labels.long()[:, None], True)
        log_odds = torch.where(spikes, torch.inf, -torch.inf).to(potential.mean.dtype)
        return spike_message(potential.mean, potential.variance, log_odds, self.activation)


class ValueOutput(nn.Module):
    """Potentials as values with Gaussian noise.

    Args:
        noise_variance: of the observations, larger than 0.
        learned: fit the noise variance to the data by expectation maximization.

    Example:
        >>> ValueOutput(torch.tensor(0.01), learned=False)(torch.tensor([[0.5]]))
        tensor([[0.5000]])
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
        """Return the mean values `[B, ...]`."""
        return potential.mean

    def message(self, potential: Potential, values: Tensor) -> Message:
        """Return the message from observed values `[B, ...]` to the potentials.

        Raises:
            ValueError: for values of another shape than the potentials, for example without the axis of output units.
        """
        if values.shape != potential.mean.shape:
            raise ValueError(
                f"Expected the values of a regression to have the output's shape {tuple(potential.mean.shape)}, but "
                f"got {tuple(values.shape)}"
            )
        return value_message(potential.mean, potential.variance, values, self.noise_variance.detach())

    def expected_noise(self, potential: Potential, message: Message) -> Tensor:
        r"""Return the noise variance that best explains observations after their message, ``E[(y - u)^2]``.

        With the noise variance :math:`\sigma^2` of the message it is the mean of
        :math:`(\sigma^2 g)^2 + \sigma^2 V G`, without the cancellation in means and variances of wide potentials.
        """
        noise = self.noise_variance.detach()
        return ((noise * message.score).square() + noise * potential.variance * message.curvature).mean()

    def extra_repr(self) -> str:
        return f"learned={self.learned}"
