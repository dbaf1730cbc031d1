r"""The neuron: a state and three equations, from which everything else follows.

.. math::
    c_t &= \mathrm{charge}(x_t, z_{t-1}), \qquad s_t = H(v(c_t) - \theta(c_t)), \\
    z_t &= \mathrm{after\_spikes}(c_t, s_t)

with z the state, c the charged state, v the membrane potential (the first tensor of a state) and theta the firing
threshold. A subclass defines `charge`, `firing_threshold` and `after_spikes`, and `initial_state` if it does not rest
at zero. It can then be scanned, streamed, observed, made noisy and differentiated by every method that can represent
it, and a faster `scan` changes none of this.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_snn.functional.lif import check_input
from lightning_snn.functional.noisy_lif import NoiseMode
from lightning_snn.functional.noisy_spike import drawn_current
from lightning_snn.functional.scalars import value_like
from lightning_snn.functional.surrogate import Surrogate, SurrogateName, surrogate_named
from lightning_snn.nn.folding import unfold
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.neurons.firing import fire, fire_by_noise, membrane, step_of
from lightning_snn.nn.noise import SpikeNoise, spike_noise
from lightning_snn.nn.phase import has_instance_forward
from lightning_snn.nn.stateful import StatefulLayer
from lightning_snn.nn.states import State

EQUATIONS = ("initial_state", "charge", "firing_threshold", "after_spikes")
# follows from the equations of a class, so it is not inherited by a subclass with other equations
_DERIVED = ("scan", "step", "potentials", "noisy_scan", "gain", "noise_modes")


class InitialStateError(ValueError):
    """A state of rest whose tensors have another shape, dtype or device than a step."""


class Neuron(StatefulLayer):
    """Base of the neurons: subclasses define `charge`, `firing_threshold` and `after_spikes`.

    A state is a tensor or a NamedTuple of states. Each of its tensors has the shape of a step `[B, ...]` and the dtype
    of the current that the equations receive, float32 or wider; the first one is the membrane potential. The equations
    are pure, deterministic and out of place, and elementwise in current and spikes: neuron i reads entry i.

    Args:
        surrogate: derivative of the spike: a `Surrogate`, or its name ("arctangent", "fast_sigmoid", "sigmoid",
            "triangular"). Its width is in units of the membrane potential.

    Attributes:
        gain: derivative of the membrane potential with respect to the current of the same step where it is a constant;
            None if it is found by forward-mode differentiation, which takes twice the time under noise.
        independent: False if neurons receive each other's spikes from step to step.
        noise_modes: noise modes that the neuron supports, see `functional.noisy_lif`.
        noisy_weights: True if the neuron has a posterior of its own, so it fires by noise for any input.
        compiles_steps: whether a scan by the equations compiles its step, see `nn.compile_steps`.

    Shape:
        input and output `[T*B, C, ...]`.

    Example:
        >>> class Threshold(Neuron):
        ...     def charge(self, x, state):
        ...         return x
        ...
        ...     def firing_threshold(self, state):
        ...         return 1.0
        ...
        ...     def after_spikes(self, state, spikes):
        ...         return state
        >>> Threshold().step(torch.tensor([[0.5, 2.0]]))[0]
        tensor([[0., 1.]])
    """

    gain: float | Tensor | None = None
    independent: bool = True
    noise_modes: tuple[NoiseMode, ...] = ("step",)
    noisy_weights: bool = False
    compiles_steps: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Restore the generic form of everything that a class with equations of its own does not define itself."""
        super().__init_subclass__(**options)
        for name in _DERIVED:
            for kind in cls.__mro__:  # a mixin that is no neuron may define an equation, too
                if name in vars(kind):
                    break
                if any(equation in vars(kind) for equation in EQUATIONS):
                    setattr(cls, name, vars(Neuron).get(name, getattr(Neuron, name)))
                    break

    def __init__(self, surrogate: SurrogateName | Surrogate = "arctangent") -> None:
        super().__init__()
        self.surrogate = surrogate_named(surrogate)
        for name in EQUATIONS[1:]:
            if getattr(type(self), name) is getattr(Neuron, name):
                raise TypeError(
                    f"{type(self).__name__} defines no {name}: a neuron defines charge, firing_threshold and "
                    "after_spikes"
                )

    def initial_state(self, x: Tensor) -> State:
        """Return the state of rest for a step `x` `[B, ...]`: zero, unless a subclass defines another."""
        return torch.zeros_like(x)

    def charge(self, x: Tensor, state: State) -> State:
        """Return the state after receiving the current `x` `[B, ...]`, before any spike."""
        raise NotImplementedError(f"{type(self).__name__} defines no charge")

    def firing_threshold(self, state: State) -> float | Tensor:
        """Return the firing threshold for a charged state: a number, or a tensor that broadcasts to `[B, ...]`.

        The neuron spikes where its membrane potential is strictly larger. NaN on either side gives a spike of NaN.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no firing_threshold")

    def after_spikes(self, state: State, spikes: Tensor) -> State:
        """Return the state after the spikes `[B, ...]` of a charged state: reset, adaptation, feedback to itself."""
        raise NotImplementedError(f"{type(self).__name__} defines no after_spikes")

    def forward(self, x: Tensor | Moments) -> Tensor:
        """Run the neurons inside `lightning_snn.run`.

        Args:
            x: folded input current `[T*B, ...]`; neurons that receive `Moments` fire by that noise
                (`noisy_scan`), and the surrogate is not used.

        Returns:
            spikes in {0, 1} of the same shape.

        Raises:
            RuntimeError: if the number of time steps is unknown, or the current is Gaussian outside `posterior_noise`.
        """
        if isinstance(x, Moments):
            return self._fire_by_noise(x.expectation, x.variance)
        if self.noisy_weights and spike_noise() is not None:
            return self._fire_by_noise(x, torch.zeros_like(x))
        return super().forward(x)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Run one time step.

        Args:
            x: input current, shape `[B, ...]`, any floating dtype.
            state: state that a previous call returned; None is the state of rest.

        Returns:
            spikes in {0, 1} of the shape and dtype of `x`, and the next state, float32 or wider.
        """
        _check_floating(x)
        with without_autocast(x):
            current = widened(x)
            state = self.checked_initial_state(current) if state is None else state
            spikes, state = fire(self, current, state)
            return spikes.to(x.dtype), state

    def scan(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Run a sequence, step by step.

        Args:
            x: input current, shape `[T, B, ...]`, any floating dtype. The state is held in float32 or wider.
            state: state that a previous call returned; None is the state of rest.

        Returns:
            spikes in {0, 1} of the shape and dtype of `x`, and the state after the last step.

        Raises:
            ValueError: if `x` has no time axis, is not floating point, or `initial_state` returns tensors of another
                shape, dtype or device than a step.
        """
        check_input(x)
        spikes = []
        step = step_of(self, fire, x)
        with without_autocast(x):
            currents = widened(x)
            state = self.checked_initial_state(currents[0].detach()) if state is None else state
            # unbind, because the backward pass of an index allocates a zero tensor of the whole sequence
            for current in currents.unbind(0):
                fired, state = step(self, current, state)
                spikes.append(fired)
            return torch.stack(spikes).to(x.dtype), state

    @torch.no_grad()
    def potentials(self, x: Tensor, spikes: Tensor, state: State = None) -> tuple[Tensor, float | Tensor]:
        """Return membrane potentials and firing thresholds of a run whose spikes are known, without a graph.

        Args:
            x: input current, shape `[T, B, ...]`.
            spikes: of the same shape.
            state: state before the first step; None is the state of rest.

        Returns:
            membrane potentials before reset `[T, B, ...]`, float32 or wider, and their firing thresholds: a number, or
            a tensor that broadcasts to the potentials, with a time dimension if it varies over time.
        """
        check_input(x)
        found, thresholds = [], []
        with without_autocast(x):
            currents = widened(x)
            state = self.checked_initial_state(currents[0]) if state is None else state
            for current, fired in zip(currents, spikes.to(currents.dtype), strict=True):
                state = self.charge(current, state)
                found.append(membrane(state))
                thresholds.append(self.firing_threshold(state))
                state = self.after_spikes(state, fired)
        potentials = torch.stack(found)
        if all(_equal(threshold, thresholds[0]) for threshold in thresholds):
            return potentials, thresholds[0]
        rows = [value_like(threshold, potentials) for threshold in thresholds]
        return potentials, torch.stack([row.expand_as(potentials[0]) for row in rows])

    def noisy_scan(self, mean: Tensor, variance: Tensor, noise: SpikeNoise) -> tuple[Tensor, Tensor]:
        r"""Fire by the noise of a Gaussian current, with the gradient of an estimator in place of a surrogate.

        All currents ``x_t = mean_t + sigma_t e_t`` are drawn beforehand and the neuron runs on them by its own
        equations. With g its `gain`, the gradient of the spike is that of the estimator, to

        .. math:: z_t = (v_t - \theta_t) / (g \sigma_t) - e_t

        which is the expected distance to the threshold over its standard deviation, given the past. Exact in the spikes
        for any neuron; where the potential is not linear in the current, the gradient linearizes it.

        Args:
            mean: mean of the input current, `[T, B, ...]`.
            variance: its variance, of the same shape, at least 0; noise is white in time.
            noise: the estimator of the gradient and the source of the noise.

        Returns:
            spikes in {0, 1} in the dtype of `mean` and z in float32 or wider, both differentiable, of the shape of
            `mean`.

        Raises:
            ValueError: if the neuron does not support the mode of the noise.
        """
        if (reason := noise_refusal(self, noise.mode)) is not None:
            raise ValueError(
                f"Expected neurons that support noise mode {noise.mode!r}, but {type(self).__name__} {reason}"
            )
        check_input(mean)
        spikes, standardized = [], []
        with without_autocast(mean):
            current, std, draws = drawn_current(widened(mean), widened(variance), noise.generator)
            if (receive := noise.receiver(self)) is not None:
                receive(current.detach())
            state = self.checked_initial_state(current[0].detach())
            # a compiler cannot follow what a generator draws within a step
            random = noise.estimator.random
            step, generator = (fire_by_noise, noise.generator) if random else (step_of(self, fire_by_noise, mean), None)
            for x, sigma, draw in zip(current.unbind(0), std.unbind(0), draws.unbind(0), strict=True):
                fired, z, state = step(self, noise.estimator, x, sigma, draw, state, generator)
                spikes.append(fired)
                standardized.append(z)
            return torch.stack(spikes).to(mean.dtype), torch.stack(standardized)

    def _fire_by_noise(self, mean: Tensor, variance: Tensor) -> Tensor:
        noise = spike_noise()
        if noise is None:
            raise RuntimeError(f"{type(self).__name__} received a Gaussian current outside `posterior_noise`")
        spikes, standardized = self.noisy_scan(unfold(mean, self), unfold(variance, self), noise)
        if noise.observe is not None:
            noise.observe(self, standardized.flatten(0, 1))
        return spikes.flatten(0, 1)

    def checked_initial_state(self, step: Tensor) -> State:
        """Return `initial_state` of a step `[B, ...]`, checked.

        Raises:
            InitialStateError: if one of its tensors has another shape, dtype or device than the step.
        """
        state = self.initial_state(step)
        for leaf in tree_leaves(state):
            expected = (step.shape, step.dtype, step.device)
            if not isinstance(leaf, Tensor) or (leaf.shape, leaf.dtype, leaf.device) != expected:
                got = f"{tuple(leaf.shape)} and {leaf.dtype}" if isinstance(leaf, Tensor) else repr(leaf)
                elsewhere = isinstance(leaf, Tensor) and leaf.device != step.device
                places = (f" on {step.device}", f" on {leaf.device}") if elsewhere else ("", "")
                raise InitialStateError(
                    f"Expected {type(self).__name__}.initial_state to return tensors of the shape {tuple(step.shape)} "
                    f"and dtype {step.dtype}{places[0]}, but got {got}{places[1]}"
                )
        return state


def runs_by_its_equations(neuron: Neuron) -> bool:
    """Return whether calling the neurons runs their equations: False with a `forward` of their own."""
    return type(neuron).forward is Neuron.forward and not has_instance_forward(neuron)


def _equal(one: float | Tensor, other: float | Tensor) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def noise_refusal(neuron: Neuron, mode: NoiseMode) -> str | None:
    """Return why a neuron cannot fire by noise of a mode, and what to choose instead; None if it can."""
    if mode in neuron.noise_modes:
        return None
    if not neuron.noise_modes:
        return "does not fire by noise"
    names = " or ".join(f'"{each}"' for each in neuron.noise_modes)
    return f'fires by noise in mode {names} only: noise_mode="{neuron.noise_modes[0]}"'


def widened(x: Tensor) -> Tensor:
    """Return `x` in float32, or as it is if it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Return a context without autocast on the device of `x`, so that matrix products of a neuron keep their dtype."""
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def _check_floating(x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"Expected argument `x` to be of a floating dtype, but got {x.dtype}")
