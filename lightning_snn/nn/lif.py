"""Leaky integrate-and-fire layers: thin modules over `functional.lif`. State lives inside the scan, never on the
module."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_between, check_fraction, check_integer, check_positive
from lightning_snn.functional.lif import Dynamics, Order, Reset, leaky_integrate, lif, lif_step
from lightning_snn.functional.noisy_lif import noisy_lif
from lightning_snn.functional.surrogate import Surrogate, SurrogateName, surrogate_named
from lightning_snn.nn.folding import unfold
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.noise import spike_noise

PerChannel = float | Sequence[float] | Tensor


class LeakyLayer(nn.Module):
    """What every layer with a leaking membrane shares: a decay, fixed or learned, one number or one a channel.

    A fixed number stays a Python number, exact in every dtype. Fixed channels are a buffer. A learned decay is stored
    as its logit, so that no step can take it out of (0, 1).
    """

    beta_channels: Tensor

    def __init__(self, beta: PerChannel, learn_beta: bool, channels: int | None) -> None:
        super().__init__()
        if channels is not None:
            check_integer("channels", channels)
        values = _values("beta", beta, channels)
        for value in values.flatten().tolist():
            if learn_beta:
                check_fraction("beta", value)
            else:
                check_between("beta", value, 0.0, 1.0)
        self.learn_beta = learn_beta
        self._beta: float | None = None
        if learn_beta:
            self.beta_logit = nn.Parameter(torch.logit(values).float())
        elif values.dim() == 0:
            self._beta = values.item()
        else:
            self.register_buffer("beta_channels", values.float())

    @property
    def beta(self) -> float | Tensor:
        """Decay of the membrane in a step, in [0, 1]: a number, or a tensor of shape `[]` or `[channels]`."""
        if self._beta is not None:
            return self._beta
        return torch.sigmoid(self.beta_logit) if self.learn_beta else self.beta_channels

    def _describe_beta(self) -> str:
        return _describe("beta", self.beta, self.learn_beta)


class LIF(LeakyLayer):
    r"""Leaky integrate-and-fire neurons, where a ReLU would stand.

    .. math:: v_t = \beta u_{t-1} + x_t, \quad s_t = H(v_t - \theta), \quad u_t = v_t - \theta s_t \;\text{or}\; (1 -
    s_t) v_t

    Called inside `lightning_snn.run` on a folded input of shape `[T*B, C, ...]`; spikes in {0, 1} of the same shape
    come back. Driven by the `Moments` of a Bayesian layer the neurons fire by that noise (`functional.noisy_lif`),
    and the surrogate plays no part.

    Args:
        beta: decay of the membrane per step, in [0, 1], in (0, 1) if it is learned; a number, or one a channel.
        threshold: firing threshold, larger than 0; a number, or one a channel.
        reset: "subtract" the threshold after a spike, or set the membrane to "zero".
        detach_reset: no gradient through the reset.
        surrogate: derivative of the spike: a `Surrogate`, or its name ("arctangent", "fast_sigmoid", "sigmoid",
            "triangular").
        learn_beta: train the decay (its logit).
        learn_threshold: train the threshold (its logarithm).
        channels: number of channels (dimension 1 of the input) when a number should become one value a channel.
        order: "reset_then_leak" (SpikingJelly's), or "leak_then_reset": snntorch's order, where the reset comes after
            the next leak.

    Raises:
        ValueError: if an argument is outside its range.

    Shape:
        input and output `[T*B, C, ...]`.
    """

    threshold_channels: Tensor

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
        super().__init__(beta, learn_beta, channels)
        self.dynamics = Dynamics(reset, order, detach_reset, surrogate_named(surrogate)).check()
        values = _values("threshold", threshold, channels)
        for value in values.flatten().tolist():
            check_positive("threshold", value)
        self.learn_threshold = learn_threshold
        self._threshold: float | None = None
        if learn_threshold:
            self.threshold_log = nn.Parameter(values.log().float())
        elif values.dim() == 0:
            self._threshold = values.item()
        else:
            self.register_buffer("threshold_channels", values.float())

    @property
    def threshold(self) -> float | Tensor:
        """Firing threshold, larger than 0: a number, or a tensor of shape `[]` or `[channels]`."""
        if self._threshold is not None:
            return self._threshold
        return self.threshold_log.exp() if self.learn_threshold else self.threshold_channels

    def forward(self, x: Tensor | Moments) -> Tensor:
        return self._scan(x).flatten(0, 1)

    def _scan(
        self, x: Tensor | Moments, recurrent: Tensor | None = None, recurrent_variance: Tensor | None = None
    ) -> Tensor:
        if not isinstance(x, Moments):
            sequence = unfold(x, self)
            return lif(sequence, *self.parameters_for(sequence[0]), self.dynamics, recurrent=recurrent)[0]
        noise = spike_noise()
        if noise is None:
            raise RuntimeError(f"{type(self).__name__} was driven by a Gaussian current outside `posterior_noise`")
        mean, variance = unfold(x.mean, self), unfold(x.variance, self)
        spikes, standardized = noisy_lif(
            mean,
            variance,
            *self.parameters_for(mean[0]),
            self.dynamics,
            noise.estimator,
            noise.mode,
            recurrent,
            recurrent_variance,
            noise.generator,
        )
        if noise.observe is not None:
            noise.observe(self, standardized.flatten(0, 1))
        return spikes

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step for streaming: input `[B, ...]` and the last state, None at rest, to spikes and next state."""
        return lif_step(x, state, *self.parameters_for(x), self.dynamics)

    def parameters_for(self, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Decay and threshold, shaped to broadcast to one step `x` of shape `[B, C, ...]`."""
        return over_channels(self.beta, x), over_channels(self.threshold, x)

    def extra_repr(self) -> str:
        parts = [self._describe_beta(), _describe("threshold", self.threshold, self.learn_threshold)]
        parts += [f"reset={self.dynamics.reset}", f"surrogate={self.dynamics.surrogate}"]
        if self.dynamics.detach_reset:
            parts.append("detach_reset=True")
        if self.dynamics.order != "reset_then_leak":
            parts.append(f"order={self.dynamics.order}")
        return ", ".join(parts)


class RecurrentLIF(LIF):
    r"""LIF neurons that also hear their own layer: ``v_t = beta u_{t-1} + x_t + W s_{t-1}``.

    Args:
        features: number of neurons N; the input is `[T*B, N]`.
        options: as in `LIF`, except that the order is "reset_then_leak".

    The weight `[N, N]` starts uniform in +-1/sqrt(N).
    """

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
        check_integer("features", features)
        super().__init__(beta, threshold, reset, detach_reset, surrogate, learn_beta, learn_threshold, channels)
        self.features = features
        self.weight = nn.Parameter(torch.empty(features, features))
        nn.init.uniform_(self.weight, -1 / math.sqrt(features), 1 / math.sqrt(features))

    def forward(self, x: Tensor | Moments) -> Tensor:
        return self._scan(x, self.weight).flatten(0, 1)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # type: ignore[override]
        """One time step for streaming; the state is the membrane and the last spikes, each `[B, N]`."""
        membrane, before = (None, None) if state is None else state
        current = x if before is None else x + nn.functional.linear(before, self.weight)
        spikes, membrane = lif_step(current, membrane, *self.parameters_for(x), self.dynamics)
        return spikes, (membrane, spikes)

    def extra_repr(self) -> str:
        return f"{self.features}, {super().extra_repr()}"


class LeakyIntegrator(LeakyLayer):
    r"""A membrane that never spikes, ``u_t = beta u_{t-1} + x_t``: the usual last layer before a readout.

    Args:
        beta: decay of the membrane per step, in [0, 1], in (0, 1) if it is learned; a number, or one a channel.
        learn_beta: train the decay (its logit).
        channels: number of channels when a number should become one value a channel.

    Shape:
        input and output `[T*B, C, ...]`.
    """

    def __init__(self, beta: PerChannel = 0.9, learn_beta: bool = False, channels: int | None = None) -> None:
        super().__init__(beta, learn_beta, channels)

    def forward(self, x: Tensor | Moments) -> Tensor | Moments:
        if isinstance(x, Moments):
            beta = over_channels(self.beta, x.mean)
            return Moments(self._integrate(x.mean, beta), self._integrate(x.variance, beta * beta))
        return self._integrate(x, over_channels(self.beta, x))

    def _integrate(self, x: Tensor, beta: float | Tensor) -> Tensor:
        return leaky_integrate(unfold(x, self), beta).flatten(0, 1)

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step for streaming: input `[B, ...]` to the membrane, which is the state too."""
        membrane = x.clone() if state is None else over_channels(self.beta, x) * state + x
        return membrane, membrane

    def extra_repr(self) -> str:
        return self._describe_beta()


def over_channels(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A value a channel, shaped to broadcast over dimension 1 of `x` `[B, C, ...]`; numbers and scalars pass through.

    Raises:
        ValueError: if the number of channels differs.
    """
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if x.dim() < 2 or x.shape[1] != value.shape[0]:
        raise ValueError(
            f"Expected an input with {value.shape[0]} channels in dimension 1, but got the shape {tuple(x.shape)}"
        )
    return value.view(-1, *(1,) * (x.dim() - 2))


def _values(name: str, value: PerChannel, channels: int | None) -> Tensor:
    expected = "a number or one a channel" if channels is None else f"a number or {channels} numbers"
    try:
        values = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"Expected argument `{name}` to be {expected}, but got {value!r}") from error
    if values.dim() > 1 or (values.dim() == 1 and channels not in (None, values.shape[0])):
        raise ValueError(f"Expected argument `{name}` to be {expected}, but got the shape {tuple(values.shape)}")
    return values.expand(channels).clone() if channels is not None else values


def _describe(name: str, value: float | Tensor, learned: bool) -> str:
    if not isinstance(value, Tensor):
        text = f"{value:g}"
    elif value.dim() == 0:
        text = f"{value.item():.3g}"
    else:
        text = f"[{value.shape[0]} channels]"
    return f"{name}={text}" + (" (learned)" if learned else "")
