"""Which modules spike, and where they keep their state: one answer for our layers, snntorch's, SpikingJelly's and any
that a user registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from lightning_snn.nn.neurons import Neuron


class Conventions(NamedTuple):
    """How the neurons of a library are read from outside.

    Attributes:
        membrane: attribute that holds the membrane `[B, ...]` after a call; None if there is none.
        threshold: attribute that holds the firing threshold; None if there is none.
        all_steps: whether a call takes all time steps, `[T, B, ...]`, and not one, `[B, ...]`. Inside
            `lightning_snn.run` calls are folded, `[T*B, ...]`, whatever stands here.
    """

    membrane: str | None = None
    threshold: str | None = None
    all_steps: bool = False


# by qualified name, so that nothing is imported that the user did not
_SNNTORCH = "snntorch._neurons"
_SPIKINGJELLY = "spikingjelly.activation_based.neuron"
_FOREIGN = {
    f"{_SNNTORCH}.neurons.SpikingNeuron": Conventions("mem", "threshold"),
    f"{_SNNTORCH}.stateleaky.StateLeaky": Conventions(None, "threshold", all_steps=True),
    f"{_SPIKINGJELLY}.base_node.BaseNode": Conventions("v", "v_threshold"),
    f"{_SPIKINGJELLY}.base_node.SimpleBaseNode": Conventions("v", "v_threshold"),
}
_REGISTERED: dict[type[nn.Module], Conventions] = {}


def register_spiking_layer(
    kind: type[nn.Module], membrane: str | None = None, threshold: str | None = None, all_steps: bool = False
) -> type[nn.Module]:
    """Make callbacks and metrics treat modules of this type, and of its subclasses, as spiking. Usable as a decorator.

    A module's output, or the first part of it, is taken for its spikes: any value but 0 is one.

    Args:
        kind: the type.
        membrane: attribute of its modules that holds the membrane `[B, ...]` after a call.
        threshold: attribute of its modules that holds the firing threshold, a number or a tensor that broadcasts to
            the membrane.
        all_steps: whether a call takes all time steps, `[T, B, ...]`, and not one, `[B, ...]`.

    Raises:
        TypeError: if `kind` is not a subclass of `nn.Module`.

    Example:
        >>> register_spiking_layer(MyNeuron, membrane="v", threshold="v_threshold")
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"Expected argument `kind` to be a subclass of nn.Module, but got {kind!r}")
    _REGISTERED[kind] = Conventions(membrane, threshold, all_steps)
    return kind


def conventions_of(module: nn.Module) -> Conventions | None:
    """How a spiking layer of another library is read, by the nearest of its base classes that is known; None if none
    is. Of our own layers it is none: they keep nothing on the module.
    """
    for base in type(module).__mro__:
        found = _REGISTERED.get(base) or _FOREIGN.get(f"{base.__module__}.{base.__qualname__}")
        if found is not None:
            return found
    return None


def is_spiking_layer(module: nn.Module) -> bool:
    """Whether the module emits spikes."""
    return isinstance(module, Neuron) or conventions_of(module) is not None


def spiking_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and modules of all spiking layers of a network, in order of registration.

    A neuron within another neuron, as in `Recurrent`, is a part of it and not yielded.
    """
    neurons = [module for module in network.modules() if isinstance(module, Neuron)]
    inside = {part for neuron in neurons for part in neuron.modules() if part is not neuron}
    return (
        (name, module) for name, module in network.named_modules() if is_spiking_layer(module) and module not in inside
    )
