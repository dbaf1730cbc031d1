"""Which modules spike: one answer for our layers, snntorch's, SpikingJelly's and any that a user registers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from lightning_snn.nn.lif import LIF

# by qualified name, so that nothing is imported that the user did not
_FOREIGN = {"snntorch._neurons.neurons.SpikingNeuron", "spikingjelly.activation_based.neuron.base_node.BaseNode"}
_REGISTERED: set[type[nn.Module]] = set()


def register_spiking_layer(kind: type[nn.Module]) -> type[nn.Module]:
    """Make callbacks and metrics treat modules of this type, and of its subclasses, as spiking. Usable as a decorator.

    Raises:
        TypeError: if `kind` is not a subclass of `nn.Module`.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"Expected argument `kind` to be a subclass of nn.Module, but got {kind!r}")
    _REGISTERED.add(kind)
    return kind


def is_spiking_layer(module: nn.Module) -> bool:
    """Whether the module emits spikes."""
    if isinstance(module, (LIF, *_REGISTERED)):
        return True
    return any(f"{base.__module__}.{base.__qualname__}" in _FOREIGN for base in type(module).__mro__)


def spiking_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of all spiking layers of a network, in order of registration."""
    return ((name, module) for name, module in network.named_modules() if is_spiking_layer(module))
