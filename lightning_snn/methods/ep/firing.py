"""The same neurons without chance: each hands on the probability of its spike, and backpropagation can train them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_choice
from lightning_snn.functional.ep import Activation, log_odds_of_spike, spike_probability
from lightning_snn.nn.registry import is_spiking_layer


class FiringProbability(nn.Module):
    """The probability of a spike at potential u: ``Phi(u / sqrt(8 / pi))`` for "probit", the logistic for "sigmoid".

    Args:
        activation: "probit" or "sigmoid"; "heaviside" has no slope to train by.

    Raises:
        ValueError: for another activation.
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
    """The log-odds of a spike, ``log p - log(1 - p)``.

    Their softmax is the class, given that exactly one of independent outputs spikes:
    ``P(c) ~ p_c prod_{k != c} (1 - p_k) ~ p_c / (1 - p_c)``.
    """

    def forward(self, u: Tensor) -> Tensor:
        return log_odds_of_spike(u, torch.zeros_like(u), self.activation)


def firing_network(network: nn.Module, activation: Activation = "probit", outputs_spike: bool = True) -> nn.Module:
    """A copy of a network whose spiking layers hand on firing probabilities.

    Args:
        network: ends in a layer that does not spike; the weights of the copy start where its own are.
        activation: of all neurons.
        outputs_spike: whether outputs are the log-odds of spikes, or the potentials themselves.

    Raises:
        ValueError: for an activation that `FiringProbability` does not have.
    """
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if is_spiking_layer(child):
                setattr(parent, name, FiringProbability(activation))
    return nn.Sequential(network, SpikeLogOdds(activation)) if outputs_spike else network
