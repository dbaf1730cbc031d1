"""Neurons with a synaptic current: the input decays before it reaches the membrane."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_snn.functional.dynamics import Dynamics, LIFState, Order, Reset, lif_after_spikes, lif_charge, lif_rest
from lightning_snn.functional.surrogate import Surrogate, SurrogateName
from lightning_snn.nn.neurons.base import Neuron
from lightning_snn.nn.neurons.firing import membrane
from lightning_snn.nn.stateful import PerChannel


class SynapticState(NamedTuple):
    """State of `SynapticLIF`.

    Attributes:
        neuron: state of the membrane, as that of `LIF`.
        current: synaptic current, `[B, ...]`.
    """

    neuron: LIFState
    current: Tensor


class SynapticLIF(Neuron):
    r"""LIF neurons whose input passes a synaptic current (snntorch's Synaptic, NIR's CubaLIF).

    .. math:: i_t = \alpha i_{t-1} + x_t, \quad v_t = \beta u_{t-1} + i_t, \quad s_t = H(v_t - \theta)

    with u the membrane potential after its reset; the synaptic current is not reset.

    Args:
        alpha: decay of the synaptic current per step, in [0, 1], in (0, 1) if it is learned; a number, or one per
            channel.
        beta: decay of the membrane potential per step, in the same range.
        threshold: firing threshold, larger than 0; a number, or one per channel.
        reset: "subtract" the threshold after a spike, or set the membrane potential to "zero".
        detach_reset: no gradient flows through the reset.
        surrogate: derivative of the spike, see `LIF`.
        learn_alpha: train the decay of the synaptic current (its logit).
        learn_beta: train the decay of the membrane potential (its logit).
        learn_threshold: train the threshold (its logarithm).
        channels: number of channels if a number should become one value per channel.
        order: "reset_then_leak", or "leak_then_reset", snntorch's default for "subtract".

    Raises:
        ValueError: if an argument is outside its range.

    Shape:
        input and output `[T*B, C, ...]`.

    Example:
        >>> layer = SynapticLIF(alpha=0.5, beta=0.5)
        >>> lightning_snn.run(layer, torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)).flatten()
        tensor([0., 0., 0.])
        >>> lightning_snn.run(layer, torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)).flatten()
        tensor([0., 1., 0.])
    """

    gain = 1.0

    def __init__(
        self,
        alpha: PerChannel = 0.8,
        beta: PerChannel = 0.9,
        threshold: PerChannel = 1.0,
        reset: Reset = "subtract",
        detach_reset: bool = False,
        surrogate: SurrogateName | Surrogate = "arctangent",
        learn_alpha: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        channels: int | None = None,
        order: Order = "reset_then_leak",
    ) -> None:
        super().__init__(surrogate)
        self.dynamics = Dynamics(reset, order, detach_reset, self.surrogate).check()
        self.declare("alpha", alpha, learn_alpha, channels)
        self.declare("beta", beta, learn_beta, channels)
        self.declare("threshold", threshold, learn_threshold, channels, "positive")

    def initial_state(self, x: Tensor) -> SynapticState:
        rest = lif_rest(x, self.dynamics)
        return SynapticState(rest, membrane(rest))

    def charge(self, x: Tensor, state: SynapticState) -> SynapticState:
        current = self.value("alpha", x) * state.current + x
        return SynapticState(
            lif_charge(current, state.neuron, self.value("beta", x), self.value("threshold", x)), current
        )

    def firing_threshold(self, state: SynapticState) -> float | Tensor:
        return self.value("threshold", state.current)

    def after_spikes(self, state: SynapticState, spikes: Tensor) -> SynapticState:
        threshold = self.value("threshold", state.current)
        return SynapticState(lif_after_spikes(membrane(state), spikes, threshold, self.dynamics), state.current)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reset={self.dynamics.reset}, order={self.dynamics.order}"
