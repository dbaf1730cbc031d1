"""Attribute names, call conventions and state of the layers of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn


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
    f"{_SNNTORCH}.associative.AssociativeLeaky": Conventions(None, "threshold", all_steps=True),
    f"{_SPIKINGJELLY}.base_node.BaseNode": Conventions("v", "v_threshold"),
    f"{_SPIKINGJELLY}.base_node.SimpleBaseNode": Conventions("v", "v_threshold"),
}
_CONVERTERS = {"snntorch": "from_snntorch", "spikingjelly": "from_spikingjelly"}
REGISTERED: dict[type[nn.Module], Conventions] = {}
_SPIKINGJELLY_STATES = "_memories"  # attribute that holds the states of SpikingJelly's modules
_STATEFUL = (
    f"{_SNNTORCH}.neurons.SpikingNeuron",
    f"{_SPIKINGJELLY}.base_node.SimpleBaseNode",
    "spikingjelly.activation_based.base.MemoryModule",
)


def conventions_of(module: nn.Module) -> Conventions | None:
    """Return the conventions of a third-party spiking layer: those of its nearest base class that is registered.

    Returns:
        None if no base class is registered. This holds for the layers of this library, which keep no state on the
        module.
    """
    for base in type(module).__mro__:
        found = REGISTERED.get(base) or _THIRD_PARTY.get(f"{base.__module__}.{base.__qualname__}")
        if found is not None:
            return found
    return None


def mixes_steps(module: nn.Module) -> bool:
    """Return whether a module is a layer of snntorch or SpikingJelly with a state over time, spiking or not."""
    return derives_from(module, *_STATEFUL)


def derives_from(module: nn.Module, *names: str) -> bool:
    """Return whether the class of a module derives from one of these classes, whose library need not be installed.

    Args:
        module: the module.
        *names: qualified names of classes, such as "torch.nn.modules.linear.Linear".

    Example:
        >>> derives_from(nn.Linear(2, 2), "torch.nn.modules.linear.Linear")
        True
    """
    return any(f"{base.__module__}.{base.__qualname__}" in names for base in type(module).__mro__)


def converter_of(module: nn.Module) -> str | None:
    """Return the function that converts networks with such a layer of snntorch or SpikingJelly; None for any other."""
    for base in type(module).__mro__:
        for package, function in _CONVERTERS.items():
            if base.__module__.startswith(f"{package}."):
                return f"lightning_snn.convert.{function}"
    return None


def conversion_of(network: nn.Module) -> str | None:
    """Return how to convert the first layer within a module that keeps a state for another library; None without one.

    Example:
        >>> import snntorch
        >>> conversion_of(nn.Sequential(nn.Linear(4, 8), snntorch.Leaky(0.9)))
        'convert the network with `lightning_snn.convert.from_snntorch(network)`'
    """
    converters = (converter_of(part) for part in network.modules() if mixes_steps(part))
    found = next((converter for converter in converters if converter is not None), None)
    return None if found is None else f"convert the network with `{found}(network)`"


def takes_sequences(module: nn.Module) -> bool:
    """Return whether a call of a third-party layer takes all time steps, `[T, B, ...]`."""
    known = conventions_of(module)
    return (known is not None and known.all_steps) or getattr(module, "step_mode", "s") == "m"


def kept_states(module: nn.Module) -> list[Tensor]:
    """Return the tensors that a layer of snntorch or SpikingJelly keeps from one call to the next."""
    if _SPIKINGJELLY_STATES in vars(module):
        states = list(vars(module)[_SPIKINGJELLY_STATES].values())
    elif callable(getattr(module, "reset_mem", None)):
        states = [module._buffers[name] for name in module._non_persistent_buffers_set]
    else:
        known = conventions_of(module)
        states = [] if known is None or known.membrane is None else [getattr(module, known.membrane, None)]
    return [state for state in states if isinstance(state, Tensor) and state.dim() > 0]


def reset_states(module: nn.Module) -> None:
    """Reset every module within a module that can be: by snntorch's `reset_mem()` or SpikingJelly's `reset()`."""
    for part in module.modules():
        reset = _reset_method(part)
        if reset is not None:
            reset()


def _reset_method(module: nn.Module) -> Callable[[], Any] | None:
    for name in ("reset_mem", "reset"):
        known = conventions_of(module) is not None or (name == "reset" and _SPIKINGJELLY_STATES in vars(module))
        method: Callable[[], Any] | None = getattr(module, name, None)
        # snntorch's neurons have a tensor named `reset`
        if known and callable(method) and not isinstance(method, (Tensor, nn.Module)):
            return method
    return None
