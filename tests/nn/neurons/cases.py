"""The neurons that tests of the contract run through, ours and one of another kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_snn.nn import IF, LIF, AdaptiveLIF, Neuron, Recurrent, RecurrentLIF, SynapticLIF

FEATURES = 4


class Potentials(NamedTuple):
    v: Tensor
    memory: Tensor


class Quadratic(Neuron):
    """A membrane that is not linear in its state, with a number for a threshold and a gain that is not 1."""

    gain = 0.8

    def initial_state(self, x: Tensor) -> Potentials:
        return Potentials(torch.full_like(x, 0.1), torch.zeros_like(x))

    def charge(self, x: Tensor, state: Potentials) -> Potentials:
        v, memory = state
        return Potentials(0.7 * v + 0.1 * v * v - 0.2 * memory + self.gain * x, 0.9 * memory + 0.1 * v)

    def firing_threshold(self, state: Potentials) -> float:
        return 1.0

    def after_spikes(self, state: Potentials, spikes: Tensor) -> Potentials:
        return Potentials(state.v * (1 - spikes), state.memory + spikes)


def seeded(make: Callable[[], Neuron]) -> Callable[[], Neuron]:
    def build() -> Neuron:
        torch.manual_seed(5)
        return make()

    return build


PER_CHANNEL = {"channels": FEATURES, "learn_beta": True, "learn_threshold": True}
NEURONS: dict[str, Callable[[], Neuron]] = {
    "if": IF,
    "lif": LIF,
    "lif_zero": lambda: LIF(0.8, reset="zero"),
    "lif_leak_then_reset": lambda: LIF(0.8, order="leak_then_reset"),
    "lif_learned": lambda: LIF(0.8, 0.9, **PER_CHANNEL),
    "adaptive": lambda: AdaptiveLIF(0.8, rho=0.9),
    "adaptive_zero": lambda: AdaptiveLIF([0.6, 0.7, 0.8, 0.9], rho=0.9, reset="zero"),
    "adaptive_learned": lambda: AdaptiveLIF(0.8, rho=0.9, **PER_CHANNEL, learn_rho=True, learn_strength=True),
    "synaptic": lambda: SynapticLIF(0.5, 0.8),
    "synaptic_leak_then_reset": lambda: SynapticLIF(0.5, 0.8, order="leak_then_reset"),
    "synaptic_learned": lambda: SynapticLIF(0.5, 0.8, reset="zero", **PER_CHANNEL, learn_alpha=True),
    "recurrent_lif": seeded(lambda: RecurrentLIF(FEATURES, 0.8)),
    "recurrent_around_lif": seeded(lambda: Recurrent(LIF(0.8), FEATURES)),
    "recurrent_around_pending_lif": seeded(lambda: Recurrent(LIF(0.8, order="leak_then_reset"), FEATURES)),
    "recurrent_around_adaptive": seeded(lambda: Recurrent(AdaptiveLIF(0.8, rho=0.9), FEATURES)),
    "quadratic": Quadratic,
}


def current(steps: int = 25, batch: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Input `[T, B, 4]` on which every neuron spikes now and then."""
    generator = torch.Generator().manual_seed(seed)
    return (0.8 * torch.randn(steps, batch, FEATURES, generator=generator, dtype=torch.float64) + 0.4).to(dtype)
