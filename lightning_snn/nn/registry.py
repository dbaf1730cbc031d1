"""Registry of the modules that spike and of the attributes that hold their state.

It knows the layers of this library, of snntorch and of SpikingJelly, and the types that a user registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from lightning_snn.nn.neurons import Neuron


class Conventions(NamedTuple):
    """Attribute names and call convention of the neurons of a library.

    Attributes:
        membrane: attribute that holds the membrane potential `[B, ...]` after a call; None if there is none.
        threshold: attribute that holds the firing threshold; None if there is none.
        all_steps: True if a call takes all time steps, `[T, B, ...]`, False if it takes one, `[B, ...]`. Inside
            `lightning_snn.run` calls are folded, `[T*B, ...]`, in both cases.
    """

    membrane: str | None = None
    threshold: str | None = None
    all_steps: bool = False


# by qualified name, so no library is imported that the user did not import
_SNNTORCH = "snntorch._neurons"
_SPIKINGJELLY = "spikingjelly.activation_based.neuron"
_THIRD_PARTY = {
    f"{_SNNTORCH}.neurons.SpikingNeuron": Conventions("mem", "threshold"),
    f"{_SNNTORCH}.stateleaky.StateLeaky": Conventions(None, "threshold", all_steps=True),
    f"{_SPIKINGJELLY}.base_node.BaseNode": Conventions("v", "v_threshold"),
    f"{_SPIKINGJELLY}.base_node.SimpleBaseNode": Conventions("v", "v_threshold"),
}
_REGISTERED: dict[type[nn.Module], Conventions] = {}


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
    _REGISTERED[kind] = Conventions(membrane, threshold, all_steps)
    return kind


def conventions_of(module: nn.Module) -> Conventions | None:
    """Return the conventions of a third-party spiking layer: those of its nearest base class that is registered.

    Returns:
        None if no base class is registered. This holds for the layers of this library, which keep no state on the
        module.
    """
    for base in type(module).__mro__:
        found = _REGISTERED.get(base) or _THIRD_PARTY.get(f"{base.__module__}.{base.__qualname__}")
        if found is not None:
            return found
    return None


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


def remedy_without_layers(network: nn.Module) -> str:
    """Return the sentence that helps a user whose network has no spiking layers that are found.

    Layers in a plain list, tuple, or dict are not part of a module for PyTorch, so no registration of their type helps.

    Example:
        >>> network = nn.Linear(4, 8)
        >>> network.neurons = [LIF()]
        >>> remedy_without_layers(network)
        'Put neurons[0] into an nn.ModuleList or nn.ModuleDict, because PyTorch finds no modules in a plain list.'
        >>> remedy_without_layers(nn.Linear(4, 8))
        'Register other types with `register_spiking_layer`.'
    """
    names = [
        f"{name}.{place}".lstrip(".")
        for name, module in network.named_modules()
        for attribute, value in vars(module).items()
        # PyTorch's own start with an underscore, as `_modules`
        if not attribute.startswith("_")
        for place in _spiking_layers_within(value, attribute)
    ]
    if not names:
        return "Register other types with `register_spiking_layer`."
    return (
        f"Put {', '.join(names)} into an nn.ModuleList or nn.ModuleDict, because PyTorch finds no modules in a plain "
        "list."
    )


def _spiking_layers_within(value: Any, place: str) -> Iterator[str]:
    """Yield the places of spiking layers in lists, tuples, and mappings."""
    if isinstance(value, nn.Module):
        if any(is_spiking_layer(part) for part in value.modules()):
            yield place
    elif isinstance(value, (list, tuple, Mapping)):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _spiking_layers_within(each, f"{place}[{key!r}]")
