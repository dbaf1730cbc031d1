"""Leaky integrate-and-fire neurons: three equations, and the fused scans of `functional`."""

from __future__ import annotations

from torch import Tensor

from lightning_snn.functional.dynamics import (
    Dynamics,
    LIFState,
    Order,
    PendingState,
    Reset,
    lif_after_spikes,
    lif_charge,
    lif_rest,
)
from lightning_snn.functional.lif import lif
from lightning_snn.functional.noisy_lif import NoiseMode, noisy_lif
from lightning_snn.functional.surrogate import Sigmoid, Surrogate, SurrogateName
from lightning_snn.nn.neurons.base import Neuron
from lightning_snn.nn.neurons.firing import membrane
from lightning_snn.nn.noise import SpikeNoise
from lightning_snn.nn.stateful import PerChannel
from lightning_snn.nn.states import State


class LIF(Neuron):
    r"""Leaky integrate-and-fire neurons, which take the place of a ReLU.

    .. math:: v_t = \beta u_{t-1} + x_t, \quad s_t = H(v_t - \theta), \quad u_t = v_t - \theta s_t \;\text{or}\; (1 -
        s_t) v_t

    Called inside `lightning_snn.run` on a folded input of shape `[T*B, C, ...]`, the neurons return spikes in {0, 1} of
    the same shape. If they receive the `Moments` of a Bayesian layer, they fire by that noise (`functional.noisy_lif`),
    and the surrogate is not used.

    Args:
        beta: decay of the membrane potential per step, in [0, 1], in (0, 1) if it is learned; a number, or one per
            channel.
        threshold: firing threshold, larger than 0; a number, or one per channel.
        reset: "subtract" the threshold after a spike, or set the membrane potential to "zero".
        detach_reset: no gradient flows through the reset.
        surrogate: derivative of the spike: a `Surrogate`, or its name ("arctangent", "fast_sigmoid", "sigmoid",
            "triangular").
        learn_beta: train the decay (its logit).
        learn_threshold: train the threshold (its logarithm).
        channels: number of channels (dimension 1 of the input) if a number should become one value per channel.
        order: "reset_then_leak" (SpikingJelly's order), or "leak_then_reset": snntorch's order, where the reset comes
            after the next leak.

    Raises:
        ValueError: if an argument is outside its range.

    Shape:
        input and output `[T*B, C, ...]`.

    Example:
        >>> layer = LIF(beta=0.5, threshold=1.0)
        >>> lightning_snn.run(layer, torch.full((4, 1, 1), 0.75)).flatten()
        tensor([0., 1., 0., 1.])
    """

    gain = 1.0

    def __init__(
        self,
        beta: PerChannel = 0.9,
        threshold: PerChannel = 1.0,
        reset: Reset = "subtract",
        detach_reset: bool = False,
        surrogate: SurrogateName | Surrogate = "arctangent",
        learn_beta: bool = False,
        learn_threshold: bool = False,
        channels: int | None = None,
        order: Order = "reset_then_leak",
    ) -> None:
        super().__init__(surrogate)
        # not `reset`: SpikingJelly's reset_net calls an attribute of that name on every module
        self.reset_mode: Reset = reset
        self.order: Order = order
        self.detach_reset = detach_reset
        self.dynamics.check()
        self.declare("beta", beta, learn_beta, channels)
        self.declare("threshold", threshold, learn_threshold, channels, "positive")

    @property
    def dynamics(self) -> Dynamics:
        """Reset, order and surrogate, as `functional.lif` takes them."""
        return Dynamics(self.reset_mode, self.order, self.detach_reset, self.surrogate)

    @property
    def beta(self) -> float | Tensor:
        """Decay of the membrane potential per step, in [0, 1]: a number, or a tensor of shape `[]` or `[channels]`."""
        return self.value("beta")

    @property
    def threshold(self) -> float | Tensor:
        """Firing threshold, larger than 0: a number, or a tensor of shape `[]` or `[channels]`."""
        return self.value("threshold")

    @property
    def noise_modes(self) -> tuple[NoiseMode, ...]:  # type: ignore[override]
        """Noise modes that the neurons support, see `functional.noisy_lif`."""
        if self.order != "reset_then_leak":
            return ("step",)
        return ("moment", "step") if self.reset_mode == "zero" else ("moment", "step", "trace")

    def initial_state(self, x: Tensor) -> LIFState:
        return lif_rest(x, self.dynamics)

    def charge(self, x: Tensor, state: State) -> LIFState:
        potential = lif_charge(x, state, self.value("beta", x), self.value("threshold", x))
        return state._replace(membrane=potential) if isinstance(state, PendingState) else potential

    def firing_threshold(self, state: State) -> float | Tensor:
        return self.value("threshold", membrane(state))

    def after_spikes(self, state: State, spikes: Tensor) -> LIFState:
        potential = membrane(state)
        return lif_after_spikes(potential, spikes, self.value("threshold", potential), self.dynamics)

    def scan(self, x: Tensor, state: State = None) -> tuple[Tensor, LIFState]:
        return lif(x, *self.parameters_for(x[0]), self.dynamics, state)

    def noisy_scan(self, mean: Tensor, variance: Tensor, noise: SpikeNoise) -> tuple[Tensor, Tensor]:
        if self.order != "reset_then_leak":
            return super().noisy_scan(mean, variance, noise)
        return self._fused_noisy_scan(mean, variance, noise)

    def _fused_noisy_scan(
        self,
        mean: Tensor,
        variance: Tensor,
        noise: SpikeNoise,
        recurrent: Tensor | None = None,
        recurrent_variance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return noisy_lif(
            mean,
            variance,
            *self.parameters_for(mean[0]),
            self.dynamics,
            noise.estimator,
            noise.mode,
            recurrent,
            recurrent_variance,
            noise.generator,
            noise.receiver(self),
        )

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"reset={self.reset_mode}", f"surrogate={self.surrogate}"]
        parts += ["detach_reset=True"] if self.detach_reset else []
        parts += [f"order={self.order}"] if self.order != "reset_then_leak" else []
        return ", ".join(parts)

    def parameters_for(self, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Return decay and threshold, shaped to broadcast to one step `x` of shape `[B, C, ...]`."""
        return self.value("beta", x), self.value("threshold", x)


class IF(LIF):
    """Integrate-and-fire neurons without a leak: `LIF` with decay 1 (SpikingJelly's IFNode, sinabs' IAF).

    Args:
        threshold: firing threshold, larger than 0; a number, or one per channel.
        reset: "subtract" the threshold after a spike, or set the membrane potential to "zero".
        detach_reset: no gradient flows through the reset.
        surrogate: derivative of the spike, see `LIF`.
        learn_threshold: train the threshold (its logarithm).
        channels: number of channels if a number should become one value per channel.

    Example:
        >>> lightning_snn.run(IF(), torch.full((4, 1, 1), 0.5)).flatten()
        tensor([0., 0., 1., 0.])
    """

    def __init__(
        self,
        threshold: PerChannel = 1.0,
        reset: Reset = "subtract",
        detach_reset: bool = False,
        surrogate: SurrogateName | Surrogate = "arctangent",
        learn_threshold: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__(1.0, threshold, reset, detach_reset, surrogate, False, learn_threshold, channels)


class DetachedLIF(LIF):
    """`LIF` with the constants of batch-normalized networks: a short memory and a reset without a gradient.

    After Yu et al. 2024 (arXiv 2410.11488), whose surrogate is the derivative of ``sigmoid(4 x)``, of height 1.

    Args:
        beta: decay of the membrane potential per step, in [0, 1]; a number, or one per channel.
        threshold: firing threshold, larger than 0; a number, or one per channel.
        surrogate: derivative of the spike, see `LIF`.
        learn_beta: train the decay (its logit).
        learn_threshold: train the threshold (its logarithm).
        channels: number of channels if a number should become one value per channel.

    Example:
        >>> DetachedLIF().detach_reset
        True
    """

    def __init__(
        self,
        beta: PerChannel = 0.2,
        threshold: PerChannel = 1.0,
        surrogate: SurrogateName | Surrogate = Sigmoid(0.25),
        learn_beta: bool = False,
        learn_threshold: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__(beta, threshold, "subtract", True, surrogate, learn_beta, learn_threshold, channels)
