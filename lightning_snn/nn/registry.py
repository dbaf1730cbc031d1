"""Registry of the modules that spike and of the attributes that hold their state.

It knows the layers of this library, of snntorch and of SpikingJelly, and the types that a user registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from lightning_snn.nn.conventions import REGISTERED, Conventions, conventions_of
from lightning_snn.nn.neurons import Neuron

_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))


def register_spiking_layer(
    kind: type[nn.Module], membrane: str | None = None, threshold: str | None = None, all_steps: bool = False
) -> type[nn.Module]:
    """Register a module type, so callbacks and metrics treat its modules and those of its subclasses as spiking.

    The output of such a module, or its first element if it is a tuple, holds the spikes: any value but 0 is a spike.
    Usable as a decorator.

    Args:
        kind: the module type.
        membrane: name of the attribute that holds the membrane potential `[B, ...]` after a call.
        threshold: name of the attribute that holds the firing threshold, a number or a tensor that broadcasts to the
            membrane potential.
        all_steps: True if a call takes all time steps, `[T, B, ...]`, False if it takes one, `[B, ...]`.

    Returns:
        `kind`.

    Raises:
        TypeError: if `kind` is not a subclass of `nn.Module`.

    Example:
        >>> @register_spiking_layer
        ... class Binary(nn.Module):
        ...     def forward(self, x):
        ...         return (x > 0).float()
        >>> is_spiking_layer(Binary())
        True
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"Expected argument `kind` to be a subclass of nn.Module, but got {kind!r}")
    REGISTERED[kind] = Conventions(membrane, threshold, all_steps)
    return kind


def is_spiking_layer(module: nn.Module) -> bool:
    """Return whether the module is a registered spiking layer or a `Neuron`.

    Example:
        >>> is_spiking_layer(LIF()), is_spiking_layer(nn.ReLU())
        (True, False)
    """
    return isinstance(module, Neuron) or conventions_of(module) is not None


def parts_of_neurons(network: nn.Module) -> set[nn.Module]:
    """Return the modules within the neurons of a network, such as the neuron within a `Recurrent`.

    Example:
        >>> layer = lightning_snn.nn.Recurrent(LIF(), 4)
        >>> parts_of_neurons(nn.Sequential(layer)) == {layer.neuron}
        True
    """
    neurons = [module for module in network.modules() if isinstance(module, Neuron)]
    return {part for neuron in neurons for part in neuron.modules() if part is not neuron}


def spiking_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return an iterator over names and modules of all spiking layers of a network, in order of registration.

    A neuron within another neuron, as in `Recurrent`, is a part of it and not listed.

    Example:
        >>> [name for name, layer in spiking_layers(nn.Sequential(nn.Linear(4, 8), LIF()))]
        ['1']
    """
    parts = parts_of_neurons(network)
    return (
        (name, module) for name, module in network.named_modules() if is_spiking_layer(module) and module not in parts
    )


def layers_in_plain_containers(network: nn.Module) -> list[str]:
    """Return the places of spiking layers that PyTorch does not know, because a plain list, tuple or dict holds them.

    Their parameters are not trained, moved or saved either. `nn.ModuleList` and `nn.ModuleDict` make them known.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8))
        >>> network.neurons = [LIF(), {"last": LIF()}]
        >>> layers_in_plain_containers(network)
        ['neurons[0]', "neurons[1]['last']"]
    """
    known, seen = set(network.modules()), set()

    def search(value: Any, place: str) -> Iterator[str]:
        if isinstance(value, nn.Module):
            if value not in known and any(True for _ in spiking_layers(value)):
                yield place
        elif isinstance(value, (list, tuple, dict)) and id(value) not in seen:
            seen.add(id(value))
            for key, each in value.items() if isinstance(value, dict) else enumerate(value):
                yield from search(each, f"{place}[{key!r}]")

    return [
        place
        for name, module in network.named_modules()
        for attribute, value in vars(module).items()
        # tables of PyTorch itself, such as `_modules` and those of hooks
        if attribute not in _OWN_ATTRIBUTES
        for place in search(value, f"{name}.{attribute}" if name else attribute)
    ]


def remedy_for_missing_layers(network: nn.Module) -> str:
    """Return what to do about a network without known spiking layers, a sentence for an error message."""
    hidden = layers_in_plain_containers(network)
    if hidden:
        return (
            f"PyTorch does not know those in plain lists or dicts, {', '.join(hidden)}, nor their parameters. Hold "
            "them in an `nn.ModuleList` or `nn.ModuleDict`."
        )
    return "Register other types with `register_spiking_layer`."
