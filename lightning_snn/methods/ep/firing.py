"""Deterministic counterparts of one-spike neurons, which output spike probabilities and train by backpropagation."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_choice
from lightning_snn.functional.ep import Activation, log_odds_of_spike, spike_probability
from lightning_snn.nn.registry import is_spiking_layer


class FiringProbability(nn.Module):
    """Probability of a spike at membrane potential u: ``Phi(u / sqrt(8 / pi))`` or the logistic function.

    Args:
        activation: "probit" or "sigmoid"; "heaviside" has no slope for gradients.

    Raises:
        ValueError: for another activation.

    Example:
        >>> FiringProbability("sigmoid")(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.1192, 0.5000, 0.8808])
    """

    def __init__(self, activation: Activation = "probit") -> None:
        super().__init__()
        check_choice("activation", activation, ("probit", "sigmoid"))
        self.activation: Activation = activation

    def forward(self, u: Tensor) -> Tensor:
        return spike_probability(u, torch.zeros_like(u), self.activation)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class SpikeLogOdds(FiringProbability):
    """Log-odds of a spike, ``log p - log(1 - p)``.

    Their softmax is the probability of each class, given that exactly one of independent outputs spikes:
    ``P(c) ~ p_c prod_{k != c} (1 - p_k) ~ p_c / (1 - p_c)``.

    Args:
        activation: "probit" or "sigmoid".

    Raises:
        ValueError: for another activation.

    Example:
        >>> SpikeLogOdds("sigmoid")(torch.tensor([-2.0, 0.5])).round(decimals=4)
        tensor([-2.0000,  0.5000])
    """

    def forward(self, u: Tensor) -> Tensor:
        return log_odds_of_spike(u, torch.zeros_like(u), self.activation)


def firing_network(network: nn.Module, activation: Activation = "probit", outputs_spike: bool = True) -> nn.Module:
    """Return a copy of a network whose spiking layers output firing probabilities.

    Args:
        network: ends with a layer that does not spike. The copy starts with the same weights.
        activation: of all neurons.
        outputs_spike: whether outputs are the log-odds of spikes, or the potentials themselves.

    Raises:
        ValueError: for an activation that `FiringProbability` does not have.

    Example:
        >>> from lightning_snn.nn import LIF
        >>> network = firing_network(nn.Sequential(nn.Linear(8, 4), LIF(), nn.Linear(4, 3)))
        >>> network(torch.rand(2, 8)).shape
        torch.Size([2, 3])
    """
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if is_spiking_layer(child):
                setattr(parent, name, FiringProbability(activation))
    return nn.Sequential(network, SpikeLogOdds(activation)) if outputs_spike else network
