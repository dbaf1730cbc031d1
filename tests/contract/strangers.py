"""Spiking layers that no method was made for, and their equations written out once more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_snn.nn import LIF, membrane, unfold

DECAY = 0.8


def arctangent(distance: Tensor) -> Tensor:
    """Heaviside forward, the derivative of the default surrogate backward, by plain autograd."""
    slope = 1 / (1 + (torch.pi * distance.detach()) ** 2)
    return (distance > 0).to(distance.dtype) + slope * (distance - distance.detach())


class OwnEquations(LIF):
    """A subclass of LIF whose threshold rises with its potential."""

    def __init__(self) -> None:
        super().__init__(DECAY)

    def firing_threshold(self, state: Tensor) -> Tensor:
        return 1.0 + 0.5 * torch.tanh(membrane(state))


class OwnForward(LIF):
    """A subclass of LIF that doubles its current in `forward`."""

    def __init__(self) -> None:
        super().__init__(DECAY)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class WithStep(nn.Module):
    """A plain module with a `step`, on which its `forward` is built."""

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        potential = x if state is None else DECAY * state + x
        spikes = arctangent(potential - 0.9)
        return spikes, potential * (1 - spikes)

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in unfold(x, self).unbind(0):
            spikes, state = self.step(step, state)
            outputs.append(spikes)
        return torch.stack(outputs).flatten(0, 1)


class Unfolding(nn.Module):
    """A plain module that unfolds time in its `forward`, and defines nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        potential, outputs = torch.zeros(()), []
        for step in unfold(x, self).unbind(0):
            potential = DECAY * potential + step
            spikes = arctangent(potential - 1.1)
            potential = potential - 1.1 * spikes
            outputs.append(spikes)
        return torch.stack(outputs).flatten(0, 1)


def by_hand(name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, potentials and thresholds `[T, B, ...]` of a stranger."""
    carried, found = torch.zeros_like(x[0]), []
    for step in x.unbind(0):
        potential = DECAY * carried + (2 * step if name == "own_forward" else step)
        level = {"own_forward": 1.0, "with_step": 0.9, "unfolding": 1.1}.get(name)
        threshold = 1.0 + 0.5 * torch.tanh(potential) if level is None else torch.full_like(potential, level)
        spikes = arctangent(potential - threshold)
        reset = 1.0 if name == "own_equations" else threshold
        carried = potential * (1 - spikes) if name == "with_step" else potential - reset * spikes
        found.append((spikes, potential, threshold))
    spikes, potentials, thresholds = (torch.stack(parts) for parts in zip(*found, strict=True))
    return spikes, potentials, thresholds


@dataclass(frozen=True)
class Stranger:
    """A stranger as it is put to the test.

    Attributes:
        name: what the tests call it.
        make: builds the layer.
        refused_by: methods of `tests.contract.test_neurons` that refuse it, and a pattern of the reason.
        seen: "all" if observers find its spikes and potentials, "spikes" if they find its spikes alone, "nothing" if
            they do not take it for a spiking layer.
    """

    name: str
    make: Callable[[], nn.Module]
    refused_by: Mapping[str, str] = field(default_factory=dict)
    seen: str = "all"


def everywhere(reason: str, *but: str) -> dict[str, str]:
    methods = (
        *("rate_backprop", "rate_backprop_step", "spiking_bayes", "spiking_bayes_step", "noisy_spikes_step"),
        *("time_to_first_spike", "expectation_propagation"),
    )
    return {method: reason for method in methods if method not in but}


OWN_FORWARD = "a forward of its own, so it needs a rule of its own"
STRANGERS = (
    Stranger(
        "own_equations",
        OwnEquations,
        {
            "spiking_bayes": 'fires by noise in mode "step" only: noise_mode="step"',
            "time_to_first_spike": "no first spike time in closed form",
            "expectation_propagation": "at rest its distance to the threshold is not its current plus a constant",
        },
    ),
    Stranger("own_forward", OwnForward, everywhere(OWN_FORWARD), seen="spikes"),
    Stranger(
        "with_step",
        WithStep,
        everywhere(".+", "rate_backprop", "rate_backprop_step"),
        seen="nothing",
    ),
    Stranger("unfolding", Unfolding, everywhere(".+"), seen="nothing"),
)
