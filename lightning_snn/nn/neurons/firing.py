"""One step of a neuron by its equations: on a current, by noise, and compiled."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_snn.functional.estimators import Estimator
from lightning_snn.functional.noisy_spike import noisy_spike
from lightning_snn.functional.spike import spike
from lightning_snn.functional.surrogate import propagate_nan
from lightning_snn.functional.tracing import plain_operations
from lightning_snn.nn.stateful import over_channels
from lightning_snn.nn.states import State

if TYPE_CHECKING:
    from lightning_snn.nn.neurons.base import Neuron

Step = TypeVar("Step", bound=Callable[..., Any])

_MOST_VARIANTS = 32
# of a code object: sizes of a batch, states from rest and others, with a gradient and without; beyond it is an error
_OPTIONS: dict[str, Any] = (
    {"recompile_limit": 64} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
)

_compiled: WeakKeyDictionary[Neuron, dict[tuple[Any, ...], Callable[..., Any]]] = WeakKeyDictionary()


def membrane(state: State) -> Tensor:
    """Return the membrane potential of a state: its first tensor.

    Example:
        >>> state = lightning_snn.nn.SynapticLIF().step(torch.full((1, 2), 0.5))[1]
        >>> membrane(state)
        tensor([[0.5000, 0.5000]])
    """
    while not isinstance(state, Tensor):
        state = state[0]
    return state


def fire(neuron: Neuron, current: Tensor, state: State) -> tuple[Tensor, State]:
    """Return the spikes of one step `[B, ...]`, and the state after it."""
    charged = neuron.charge(current, state)
    spikes = spike(membrane(charged), neuron.firing_threshold(charged), neuron.surrogate)
    return spikes, state_after(neuron, charged, spikes)


def fire_by_noise(
    neuron: Neuron,
    estimator: Estimator,
    current: Tensor,
    std: Tensor,
    draw: Tensor,
    state: State,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, State]:
    """Return the spikes of one step on a drawn current, with the gradient of an estimator.

    Args:
        neuron: the neurons.
        estimator: of the gradient.
        current: drawn current of the step, `[B, ...]`.
        std: its standard deviation.
        draw: its standard normal draw.
        state: state before the step.
        generator: source of randomness of a `random` estimator; None is torch's default.

    Returns:
        spikes, the standardized distance to the threshold, and the state after the step.
    """
    charged, gain = _charge_with_gain(neuron, current, state)
    potential, threshold = membrane(charged), neuron.firing_threshold(charged)
    z = (potential - threshold) / (gain * std) - draw
    fired = propagate_nan((potential > threshold).to(z.dtype), z.detach())
    spikes = noisy_spike(z, fired, estimator, generator)
    return spikes, z, state_after(neuron, charged, spikes)


def _charge_with_gain(neuron: Neuron, current: Tensor, state: State) -> tuple[State, float | Tensor]:
    if neuron.gain is not None:
        return neuron.charge(current, state), over_channels(neuron.gain, current)

    def potential(current: Tensor) -> tuple[Tensor, State]:
        after = neuron.charge(current, state)
        return membrane(after), after

    _, gain, after = torch.func.jvp(potential, (current,), (torch.ones_like(current),), has_aux=True)  # type: ignore[misc]
    return after, gain


def state_after(neuron: Neuron, charged: State, spikes: Tensor) -> State:
    """Return the state after the spikes of a charged state.

    Raises:
        TypeError: if `after_spikes` returns no state.
    """
    state = neuron.after_spikes(charged, spikes)
    if state is None:
        raise TypeError(f"Expected {type(neuron).__name__}.after_spikes to return the state, but got None")
    return state


def step_of(neuron: Neuron, step: Step, like: Tensor, static: bool = False) -> Step:
    """Return a function that runs one step of a neuron, compiled if the neuron compiles its steps.

    Args:
        neuron: the neurons.
        step: function of a module, without a closure, of one step of the neurons.
        like: input current of the steps, `[t, B, ...]`.
        static: whether code is compiled for each shape of a step, because the compiler cannot make it for several.
    """
    if not neuron.compiles_steps or plain_operations():
        return step
    variants = _compiled.setdefault(neuron, {})
    # the compiler limits the variants of a code object, so each of these has a copy of its own
    variant: tuple[Any, ...] = (step.__name__, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    variant += (like.requires_grad, like.dtype, like.device, like.shape[1:] if static else None)
    if variant not in variants:
        if len(variants) == _MOST_VARIANTS:
            _warn_of_variants(neuron)
            return step
        copied = FunctionType(step.__code__.replace(), step.__globals__, step.__name__, step.__defaults__)
        variants[variant] = torch.compile(copied, fullgraph=True, **_OPTIONS)
    return variants[variant]  # type: ignore[return-value]


def _warn_of_variants(neuron: Neuron) -> None:
    warnings.warn(
        f"{type(neuron).__name__} has compiled its step for {_MOST_VARIANTS} shapes and dtypes, and runs further ones "
        "without the compiler. Use batches of one size, for example with `DataLoader(..., drop_last=True)`",
        stacklevel=2,
    )
