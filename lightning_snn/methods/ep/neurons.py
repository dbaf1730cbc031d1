"""Neurons and outputs for message passing: factors between a potential and a spike, or a value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_snn.functional.ep import (
    WINNER_NOISE,
    Activation,
    Message,
    OutputActivation,
    Potential,
    log_odds_of_spike,
    soft_spike_message,
    spike_message,
    spike_probability,
    value_message,
    winner_log_probabilities,
    winner_message,
)
from lightning_snn.functional.surrogate import propagate_nan
from lightning_snn.methods.ep.transforms import Signal
from lightning_snn.nn.registry import register_spiking_layer


@register_spiking_layer
class MessageNeuron(nn.Module):
    """Neurons that spike at most once: ``P(spike) = f(u)``, with f a step or a sigmoid.

    A call returns a spike where it is at least as likely as no spike, ``u >= 0``, and NaN where u is NaN.

    Args:
        activation: "heaviside", "probit" or "sigmoid".

    Example:
        >>> MessageNeuron("probit")(torch.tensor([-0.5, 0.0, 2.0]))
        tensor([0., 1., 1.])
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation

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

    def extra_repr(self) -> str:
        return self.activation


class SpikeOutput(nn.Module):
    """One output neuron per class; the neuron of the label spikes and no other.

    Independent neurons, "heaviside", "probit" and "sigmoid", each spike by their own potential. Class probabilities are
    those of exactly one spike: the softmax of the neurons' log-odds. A call on potentials `[B, C]` returns these
    log-odds, or the potentials of neurons without noise.

    Of the neurons of "winner" the one with the largest noisy potential spikes and inhibits all others, see
    `functional.ep.winner_message`. A call on potentials `[B, C]` returns the log-probabilities of the classes.

    Args:
        activation: "heaviside", "probit", "sigmoid" or "winner".
        noise_variance: of each potential of "winner", larger than 0. Less noise gives more confident predictions.

    Attributes:
        restarts: whether the iterations of a batch that returns start at its cavity and not at the present posterior.
            The scores that the posterior contains follow from it only for independent outputs: those of "winner" depend
            on each other, and their equations are nearly singular for little noise.

    Example:
        >>> SpikeOutput("sigmoid")(torch.tensor([[-2.0, 0.5]])).round(decimals=4)
        tensor([[-2.0000,  0.5000]])
        >>> SpikeOutput("winner", noise_variance=0.5)(torch.tensor([[1.0, 0.0]])).exp()
        tensor([[0.8413, 0.1587]])
    """

    def __init__(self, activation: OutputActivation, noise_variance: float = WINNER_NOISE) -> None:
        super().__init__()
        self.activation: OutputActivation = activation
        self.noise_variance = noise_variance
        self.restarts = activation == "winner"

    def forward(self, u: Tensor) -> Tensor:
        if self.activation == "heaviside":
            return u
        nothing = torch.zeros_like(u)
        return self.read(Potential(u, nothing, nothing, u))

    def read(self, potential: Potential) -> Tensor:
        """Return the log-odds `[B, C]` of a spike of each output, or the log-probabilities that each wins.

        Their softmax are the class probabilities.

        Raises:
            ValueError: for potentials of another shape of "winner".
        """
        if self.activation == "winner":
            _check_potential(potential)
            return winner_log_probabilities(potential.mean, potential.variance, self.noise_variance)
        return log_odds_of_spike(potential.mean, potential.variance, self.activation)

    def spike_probabilities(self, readout: Tensor) -> Tensor:
        """Return the probability `[..., C]` of a spike of each output from `read`; those of "winner" sum to 1."""
        return readout.softmax(-1) if self.activation == "winner" else readout.sigmoid()

    def message(self, potential: Potential, labels: Tensor) -> Message:
        """Return the message from labels `[B]` to the potentials `[B, C]`.

        Raises:
            ValueError: for potentials of another shape, for example of a convolution at the end, or labels that are not
                integers.
        """
        _check_potential(potential)
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(
                f"Expected one integer label per sample, of shape (batch,), but got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        if self.activation == "winner":
            return winner_message(potential.mean, potential.variance, labels, self.noise_variance)
        spikes = torch.zeros_like(potential.mean, dtype=torch.bool).scatter_(1, labels.long()[:, None], True)
        log_odds = torch.where(spikes, torch.inf, -torch.inf).to(potential.mean.dtype)
        return spike_message(potential.mean, potential.variance, log_odds, self.activation)

    def extra_repr(self) -> str:
        return self.activation + (f", noise_variance={self.noise_variance:g}" if self.activation == "winner" else "")


class ValueOutput(nn.Module):
    """Potentials as values with Gaussian noise.

    Args:
        noise_variance: of the observations, larger than 0.
        learned: fit the noise variance to the data by expectation maximization.

    Attributes:
        restarts: False; see `SpikeOutput`.

    Example:
        >>> ValueOutput(torch.tensor(0.01), learned=False)(torch.tensor([[0.5]]))
        tensor([[0.5000]])
    """

    noise_variance: Tensor
    restarts = False

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


def _check_potential(potential: Potential) -> None:
    if potential.mean.dim() != 2:
        raise ValueError(
            f"Expected one output per class, of shape (batch, classes), but got {tuple(potential.mean.shape)}"
        )
