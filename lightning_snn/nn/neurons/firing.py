"""One step of a neuron by its equations, as it is and compiled."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lightning_snn.functional.spike import spike
from lightning_snn.nn.states import State

if TYPE_CHECKING:
    from lightning_snn.nn.neurons.base import Neuron

Fire = Callable[..., tuple[Tensor, State]]

_compiled: WeakKeyDictionary[Neuron, Fire] = WeakKeyDictionary()


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


def state_after(neuron: Neuron, charged: State, spikes: Tensor) -> State:
    """Return the state after the spikes of a charged state.

    Raises:
        TypeError: if `after_spikes` returns no state.
    """
    state = neuron.after_spikes(charged, spikes)
    if state is None:
        raise TypeError(f"Expected {type(neuron).__name__}.after_spikes to return the state, but got None")
    return state


def compiled_fire(neuron: Neuron) -> Fire:
    """Return `fire`, compiled for a neuron."""
    if neuron not in _compiled:
        # a copy of the code, because the compiler limits the variants of a code object, which are those of one neuron
        copied = FunctionType(fire.__code__.replace(), fire.__globals__, fire.__name__)
        _compiled[neuron] = torch.compile(copied, fullgraph=True)
    return _compiled[neuron]
