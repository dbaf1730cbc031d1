"""Neurons of networks: any factory of neurons may replace `LIF`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_snn.nn.neurons import Neuron
from lightning_snn.nn.sign import Sign

NeuronFactory = Callable[[], Neuron]
NeuronOrSignFactory = Callable[[], Neuron] | Callable[[], Sign]


def make_neuron(neuron: Callable[..., nn.Module], **wanted: Any) -> Any:
    """Return neurons of a factory.

    Args:
        neuron: a class or function that makes neurons.
        wanted: keyword arguments, such as the decays that a network spreads over its channels. They override those that
            are set in the factory; those that it does not take are left out.

    Raises:
        TypeError: if `neuron` cannot be called, or does not return a module.
    """
    if isinstance(neuron, nn.Module) or not callable(neuron):
        raise TypeError(f"Expected argument `neuron` to be a function that makes neurons, but got {neuron!r}")
    # the command line's factory is a partial whose keywords, and not its signature, are the arguments of the class
    taken = {*inspect.signature(neuron).parameters, *getattr(neuron, "keywords", ())}
    made = neuron(**{name: value for name, value in wanted.items() if name in taken})
    if not isinstance(made, nn.Module):
        raise TypeError(f"Expected argument `neuron` to make modules, but got {type(made).__name__}")
    return made
