"""Neurons that receive the spikes of their own layer, one step later."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from lightning_snn.checks import check_integer
from lightning_snn.functional.dynamics import PendingState, Reset, reset_membrane
from lightning_snn.functional.lif import lif
from lightning_snn.functional.noisy_lif import NoiseMode
from lightning_snn.functional.surrogate import Surrogate, SurrogateName
from lightning_snn.nn.neurons.base import Neuron, runs_by_its_equations
from lightning_snn.nn.neurons.lif import LIF
from lightning_snn.nn.noise import SpikeNoise
from lightning_snn.nn.stateful import PerChannel
from lightning_snn.nn.states import State


class RecurrentState(NamedTuple):
    """State of `Recurrent`.

    Attributes:
        neuron: state of the wrapped neuron.
        spikes: spikes of the last step, `[B, N]`.
    """

    neuron: State
    spikes: Tensor


class Recurrent(Neuron):
    r"""Neurons of any kind that receive the spikes of their own layer: the current is :math:`x_t + W s_{t-1}`.

    Args:
        neuron: the neurons, which become part of the layer.
        features: number of neurons N; the input is `[T*B, N]`.

    The weight `[N, N]` starts uniform in +-1/sqrt(N).

    Raises:
        TypeError: if `neuron` is not a `Neuron`.
        ValueError: if `neuron` has a `forward` of its own, which would not be called.

    Shape:
        input and output `[T*B, N]`.

    Example:
        >>> layer = Recurrent(lightning_snn.nn.AdaptiveLIF(), features=8)
        >>> lightning_snn.run(layer, torch.rand(5, 2, 8)).shape
        torch.Size([5, 2, 8])
    """

    independent = False

    def __init__(self, neuron: Neuron, features: int) -> None:
        if not isinstance(neuron, Neuron):
            raise TypeError(f"Expected argument `neuron` to be a Neuron, but got {type(neuron).__name__}")
        if not runs_by_its_equations(neuron):
            raise ValueError(
                "Expected argument `neuron` to run by its equations, but got "
                f"{type(neuron).__name__} with a forward of its own"
            )
        super().__init__(neuron.surrogate)
        self.neuron = neuron
        self.features = features
        self.weight = recurrent_weight(features)

    @property
    def gain(self) -> float | Tensor | None:  # type: ignore[override]
        """Derivative of the membrane potential with respect to the current: that of the wrapped neuron."""
        return self.neuron.gain

    def initial_state(self, x: Tensor) -> RecurrentState:
        return RecurrentState(self.neuron.initial_state(x), torch.zeros_like(x))

    def charge(self, x: Tensor, state: RecurrentState) -> RecurrentState:
        current = x + F.linear(state.spikes, self.weight.to(x.dtype))
        return RecurrentState(self.neuron.charge(current, state.neuron), state.spikes)

    def firing_threshold(self, state: RecurrentState) -> float | Tensor:
        return self.neuron.firing_threshold(state.neuron)

    def after_spikes(self, state: RecurrentState, spikes: Tensor) -> RecurrentState:
        return RecurrentState(self.neuron.after_spikes(state.neuron, spikes), spikes)

    def extra_repr(self) -> str:
        return f"features={self.features}"


class RecurrentLIF(LIF):
    r"""LIF neurons that receive the spikes of their own layer: ``v_t = beta u_{t-1} + x_t + W s_{t-1}``.

    The same as `Recurrent` around a `LIF`, with a fused scan.

    Args:
        features: number of neurons N; the input is `[T*B, N]`.
        beta: as in `LIF`.
        threshold: as in `LIF`.
        reset: as in `LIF`.
        detach_reset: as in `LIF`.
        surrogate: as in `LIF`.
        learn_beta: as in `LIF`.
        learn_threshold: as in `LIF`.
        channels: as in `LIF`.

    The weight `[N, N]` starts uniform in +-1/sqrt(N).

    Example:
        >>> layer = RecurrentLIF(8, beta=0.8)
        >>> lightning_snn.run(layer, torch.rand(5, 2, 8)).shape
        torch.Size([5, 2, 8])
    """

    independent = False
    gain = 1.0

    def __init__(
        self,
        features: int,
        beta: PerChannel = 0.9,
        threshold: PerChannel = 1.0,
        reset: Reset = "subtract",
        detach_reset: bool = False,
        surrogate: SurrogateName | Surrogate = "arctangent",
        learn_beta: bool = False,
        learn_threshold: bool = False,
        channels: int | None = None,
    ) -> None:
        super().__init__(beta, threshold, reset, detach_reset, surrogate, learn_beta, learn_threshold, channels)
        self.features = features
        self.weight = recurrent_weight(features)

    @classmethod
    def around(cls, neuron: LIF, features: int, **options: Any) -> Self:
        """Return recurrent neurons with the constants, decays and thresholds of a `LIF`; learned ones are copied.

        The weights have the device and dtype of the tensors of `neuron`, if it has any.

        Args:
            neuron: the neurons.
            features: number of neurons.
            options: further arguments of the class.
        """
        made = cls(
            features,
            reset=neuron.reset_mode,
            detach_reset=neuron.detach_reset,
            surrogate=neuron.surrogate,
            **options,
        )
        like = next((value for value in (*neuron.parameters(), *neuron.buffers()) if value.is_floating_point()), None)
        if like is not None:
            made.to(like)
        made.take_values(neuron)
        return made

    @property
    def noise_modes(self) -> tuple[NoiseMode, ...]:  # type: ignore[override]
        """Noise modes that the neurons support; "trace" does not exist for recurrent weights."""
        return ("moment", "step")

    def initial_state(self, x: Tensor) -> PendingState:
        return PendingState(torch.zeros_like(x), torch.zeros_like(x))

    def charge(self, x: Tensor, state: PendingState) -> PendingState:
        # in the order of the fused scan, so that both round alike
        current = self.value("beta", x) * state.membrane + x
        return PendingState(torch.addmm(current, state.spikes, self.weight.t().to(x.dtype)), state.spikes)

    def after_spikes(self, state: PendingState, spikes: Tensor) -> PendingState:
        threshold = self.value("threshold", spikes)
        return PendingState(
            reset_membrane(state.membrane, spikes, threshold, self.reset_mode, self.detach_reset), spikes
        )

    def scan(self, x: Tensor, state: PendingState | None = None) -> tuple[Tensor, PendingState]:
        return lif(x, *self.parameters_for(x[0]), self.dynamics, state, self.weight)  # type: ignore[return-value]

    def noisy_scan(self, mean: Tensor, variance: Tensor, noise: SpikeNoise) -> tuple[Tensor, Tensor]:
        return self._fused_noisy_scan(mean, variance, noise, self.weight)

    def extra_repr(self) -> str:
        return f"{self.features}, {super().extra_repr()}"


def recurrent(neuron: Neuron, features: int) -> Neuron:
    """Return neurons with recurrent weights: `RecurrentLIF` for a `LIF`, whose scan is fused, else `Recurrent`.

    Args:
        neuron: the neurons, whose values are used.
        features: number of neurons.

    Example:
        >>> type(recurrent(LIF(), 8)).__name__, type(recurrent(lightning_snn.nn.AdaptiveLIF(), 8)).__name__
        ('RecurrentLIF', 'Recurrent')
    """
    if type(neuron) is LIF and neuron.order == "reset_then_leak":
        return RecurrentLIF.around(neuron, features)
    return Recurrent(neuron, features)


def recurrent_weight(features: int) -> nn.Parameter:
    """Return weights `[N, N]`, uniform in +-1/sqrt(N)."""
    check_integer("features", features)
    return nn.Parameter(torch.empty(features, features).uniform_(-1 / math.sqrt(features), 1 / math.sqrt(features)))
