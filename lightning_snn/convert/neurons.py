"""Neurons with the resets and recurrences of snntorch that the neurons of `lightning_snn.nn` do not have."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.checks import check_choice
from lightning_snn.functional.noisy_lif import NoiseMode
from lightning_snn.functional.surrogate import Surrogate, SurrogateName
from lightning_snn.nn.neurons import Neuron
from lightning_snn.nn.stateful import PerChannel

SnntorchReset = Literal["subtract", "zero", "none"]
RESETS = ("subtract", "zero", "none")


class SnntorchState(NamedTuple):
    """State of `SnntorchLIF`.

    Attributes:
        membrane: membrane potential, `[B, ...]`.
        current: synaptic current, `[B, ...]`; zero without one.
        spikes: spikes of the last step, `[B, ...]`.
        resets: 1 where this step was reset by the spike of the step before, `[B, ...]`, without a gradient.
    """

    membrane: Tensor
    current: Tensor
    spikes: Tensor
    resets: Tensor


class SnntorchLIF(Neuron):
    r"""Neurons that repeat snntorch's Leaky, Lapicque, Synaptic, RLeaky and RSynaptic operation by operation.

    .. math:: r_t = H(m_{t-1} - \theta), \quad i_t = \alpha i_{t-1} + x_t + V s_{t-1}, \quad
        b_t = \beta m_{t-1} + i_t, \quad v_t = b_t - \theta r_t \;\text{or}\; (1 - r_t) b_t \;\text{or}\; b_t

    and :math:`s_t = H(v_t - \theta)`. With `reset_delay` :math:`m_t = v_t`. Without it the reset is at once, less the
    one that the step has had: :math:`m_t = v_t - (s_t - r_t) \theta` or :math:`(1 - s_t + r_t) v_t`.

    `LIF`, `SynapticLIF` and `Recurrent` are faster and known to more methods. `from_snntorch` uses them where they give
    the same spikes and gradients. These neurons are for the rest: no reset; a subtraction without delay, where snntorch
    resets twice if the membrane potential is above the threshold after its reset; a delayed reset to zero that drops
    the input of its step, as all of snntorch's neurons but Leaky have it; recurrent weights with a bias, of a
    convolution, or of each neuron to itself.

    Args:
        beta: decay of the membrane potential per step, in [0, 1], in (0, 1) if it is learned; a number, or one per
            channel.
        threshold: firing threshold, larger than 0; a number, or one per channel.
        alpha: decay of the synaptic current per step, in the range of `beta`; None for no synaptic current.
        reset: "subtract" the threshold, set to "zero", or "none".
        reset_delay: whether the reset is applied by the next step.
        recurrent_weight: weights V: `[N, N]` for an input `[T*B, N]`, `[C, C, K, L]` of a convolution for
            `[T*B, C, H, W]`, one of each neuron to itself `[N]` or `[C, 1, 1]`, or a number; None for no recurrence.
        recurrent_bias: bias of the recurrence, `[N]` or `[C]`.
        surrogate: derivative of the spike, see `LIF`.
        learn_beta: train the decay of the membrane potential (its logit).
        learn_threshold: train the threshold (its logarithm).
        learn_alpha: train the decay of the synaptic current (its logit).
        learn_recurrent: train recurrent weights and bias.

    Raises:
        ValueError: if an argument is outside its range.

    Shape:
        input and output `[T*B, C, ...]`.

    Example:
        >>> layer = SnntorchLIF(beta=0.5, reset="none")
        >>> lightning_snn.run(layer, torch.full((4, 1, 1), 0.6)).flatten()
        tensor([0., 0., 1., 1.])
    """

    def __init__(
        self,
        beta: PerChannel = 0.9,
        threshold: PerChannel = 1.0,
        alpha: PerChannel | None = None,
        reset: SnntorchReset = "subtract",
        reset_delay: bool = True,
        recurrent_weight: Tensor | None = None,
        recurrent_bias: Tensor | None = None,
        surrogate: SurrogateName | Surrogate = "arctangent",
        learn_beta: bool = False,
        learn_threshold: bool = False,
        learn_alpha: bool = False,
        learn_recurrent: bool = True,
    ) -> None:
        super().__init__(surrogate)
        check_choice("reset", reset, RESETS)
        self.reset_mode: SnntorchReset = reset
        self.reset_delay = reset_delay
        self.declare("beta", beta, learn_beta)
        self.declare("threshold", threshold, learn_threshold, kind="positive")
        self.synaptic = alpha is not None
        if alpha is not None:
            self.declare("alpha", alpha, learn_alpha)
        self.recurrent_weight = _recurrent_parameter(recurrent_weight, learn_recurrent)
        self.recurrent_bias = _recurrent_parameter(recurrent_bias, learn_recurrent)

    @property
    def independent(self) -> bool:  # type: ignore[override]
        """False if neurons receive each other's spikes: with recurrent weights between them."""
        return self.recurrent_weight is None or self.recurrent_weight.dim() not in (2, 4)

    @property
    def drops_input(self) -> bool:
        """True if the step after a spike does not depend on its input."""
        return self.reset_mode == "zero" and self.reset_delay

    @property
    def gain(self) -> float | None:  # type: ignore[override]
        """Derivative of the membrane potential with respect to the current; None where a reset drops the input."""
        return None if self.drops_input else 1.0

    @property
    def noise_modes(self) -> tuple[NoiseMode, ...]:  # type: ignore[override]
        """Noise modes that the neurons support; none where a reset drops the input and its noise."""
        return () if self.drops_input else ("step",)

    def initial_state(self, x: Tensor) -> SnntorchState:
        rest = x.new_zeros(x.shape)
        return SnntorchState(rest, rest, rest, rest)

    def charge(self, x: Tensor, state: SnntorchState) -> SnntorchState:
        threshold = self.value("threshold", x)
        resets = (state.membrane > threshold).to(x.dtype)
        if self.synaptic:
            current = self._with_recurrence(self.value("alpha", x) * state.current + x, state.spikes)
            membrane = self.value("beta", x) * state.membrane + current
        else:
            current = state.current
            membrane = self._with_recurrence(self.value("beta", x) * state.membrane + x, state.spikes)
        if self.reset_mode == "subtract":
            membrane = membrane - resets * threshold
        elif self.reset_mode == "zero":
            membrane = membrane - resets * membrane
        return SnntorchState(membrane, current, state.spikes, resets)

    def firing_threshold(self, state: SnntorchState) -> float | Tensor:
        return self.value("threshold", state.membrane)

    def after_spikes(self, state: SnntorchState, spikes: Tensor) -> SnntorchState:
        membrane = state.membrane
        if not self.reset_delay and self.reset_mode != "none":
            amount = self.value("threshold", membrane) if self.reset_mode == "subtract" else membrane
            membrane = membrane - (spikes - state.resets) * amount
        return state._replace(membrane=membrane, spikes=spikes)

    def _with_recurrence(self, current: Tensor, spikes: Tensor) -> Tensor:
        if self.recurrent_weight is None:
            return current
        weight = self.recurrent_weight.to(current.dtype)
        bias = None if self.recurrent_bias is None else self.recurrent_bias.to(current.dtype)
        if weight.dim() == 2:
            return current + F.linear(spikes, weight, bias)
        if weight.dim() == 4:
            padding = [size // 2 for size in weight.shape[2:]]
            return current + F.conv2d(spikes, weight, bias, padding=padding)
        return current + spikes * weight

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"reset={self.reset_mode}", f"reset_delay={self.reset_delay}"]
        if self.recurrent_weight is not None:
            parts.append(f"recurrent_weight={list(self.recurrent_weight.shape)}")
        return ", ".join([*parts, f"surrogate={self.surrogate}"])


def _recurrent_parameter(value: Tensor | None, learned: bool) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(value.detach().clone(), requires_grad=learned)
