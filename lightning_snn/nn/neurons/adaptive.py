"""Neurons whose threshold rises with their own spikes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_snn.checks import check_choice
from lightning_snn.functional.dynamics import RESETS, Reset, reset_membrane
from lightning_snn.functional.surrogate import Surrogate, SurrogateName
from lightning_snn.nn.neurons.base import Neuron
from lightning_snn.nn.stateful import PerChannel


class AdaptiveState(NamedTuple):
    """State of `AdaptiveLIF`.

    Attributes:
        membrane: membrane potential, `[B, ...]`.
        adaptation: decaying count of the neuron's own spikes, `[B, ...]`.
    """

    membrane: Tensor
    adaptation: Tensor


class AdaptiveLIF(Neuron):
    r"""LIF neurons with an adaptive threshold (after Bellec et al. 2018; norse's LSNN).

    .. math::
        v_t = \beta u_{t-1} + x_t, \quad s_t = H(v_t - \theta - b\, a_{t-1}), \quad a_t = \rho\, a_{t-1} + s_t

    with u the membrane potential after its reset, which subtracts theta alone. A spike raises the threshold by b, and
    the rise decays by rho per step: a memory that outlasts the membrane potential.

    Args:
        beta: decay of the membrane potential per step, in [0, 1], in (0, 1) if it is learned; a number, or one per
            channel.
        threshold: firing threshold at rest, larger than 0; a number, or one per channel.
        rho: decay of the adaptation per step, in the range of `beta`.
        strength: rise of the threshold per spike, larger than 0, in units of the membrane potential.
        reset: "subtract" the threshold after a spike, or set the membrane potential to "zero".
        detach_reset: no gradient flows through the reset; it still flows through the adaptation.
        surrogate: derivative of the spike, see `LIF`.
        learn_beta: train the decay of the membrane potential (its logit).
        learn_threshold: train the threshold (its logarithm).
        learn_rho: train the decay of the adaptation (its logit).
        learn_strength: train the rise of the threshold (its logarithm).
        channels: number of channels if a number should become one value per channel.

    Raises:
        ValueError: if an argument is outside its range.

    Shape:
        input and output `[T*B, C, ...]`.

    Example:
        >>> layer = AdaptiveLIF(beta=0.0, rho=0.5, strength=1.0)
        >>> lightning_snn.run(layer, torch.full((4, 1, 1), 1.4)).flatten()
        tensor([1., 0., 0., 1.])
    """

    gain = 1.0

    def __init__(
        self,
        beta: PerChannel = 0.9,
        threshold: PerChannel = 1.0,
        rho: PerChannel = 0.97,
        strength: PerChannel = 0.2,
        reset: Reset = "subtract",
        detach_reset: bool = False,
        surrogate: SurrogateName | Surrogate = "arctangent",
        learn_beta: bool = False,
        learn_threshold: bool = False,
        learn_rho: bool = False,
        learn_strength: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__(surrogate)
        check_choice("reset", reset, RESETS)
        self.reset_mode: Reset = reset
        self.detach_reset = detach_reset
        self.declare("beta", beta, learn_beta, channels)
        self.declare("threshold", threshold, learn_threshold, channels, "positive")
        self.declare("rho", rho, learn_rho, channels)
        self.declare("strength", strength, learn_strength, channels, "positive")

    def initial_state(self, x: Tensor) -> AdaptiveState:
        return AdaptiveState(torch.zeros_like(x), torch.zeros_like(x))

    def charge(self, x: Tensor, state: AdaptiveState) -> AdaptiveState:
        return AdaptiveState(self.value("beta", x) * state.membrane + x, state.adaptation)

    def firing_threshold(self, state: AdaptiveState) -> Tensor:
        adaptation = state.adaptation
        return self.value("threshold", adaptation) + self.value("strength", adaptation) * adaptation

    def after_spikes(self, state: AdaptiveState, spikes: Tensor) -> AdaptiveState:
        threshold = self.value("threshold", spikes)
        return AdaptiveState(
            reset_membrane(state.membrane, spikes, threshold, self.reset_mode, self.detach_reset),
            self.value("rho", spikes) * state.adaptation + spikes,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reset={self.reset_mode}"
