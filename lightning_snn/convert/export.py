"""Networks of this library step by step: which layers have a state, and their replacement by those of another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import fx, nn

from lightning_snn.convert.library import Axis, axis_before
from lightning_snn.convert.refusals import Unconvertible, check_network, refuse_conversion
from lightning_snn.convert.values import device_of
from lightning_snn.nn.layer_rules import Refusal, copy_network
from lightning_snn.nn.neurons import EQUATIONS, LIF, Neuron, RecurrentLIF, runs_by_its_equations
from lightning_snn.nn.row_checks import SEQUENCE_LAYERS
from lightning_snn.nn.stateful import StatefulLayer
from lightning_snn.nn.tracer import ThreadTracer

_CONTAINERS = "lightning_snn.networks."  # plain modules of layers


class Place(NamedTuple):
    """A layer with a state in a network.

    Attributes:
        name: of the layer within the network.
        layer: the layer.
        axis: what its values per channel are, "features" or "maps"; None if no layer before it tells.
    """

    name: str
    layer: StatefulLayer
    axis: Axis | None


class _Tracer(ThreadTracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = type(m).__module__.startswith("lightning_snn.") and not type(m).__module__.startswith(_CONTAINERS)
        return own or super().is_leaf_module(m, module_qualified_name)


def exported(
    function: str,
    network: nn.Module,
    neuron: Callable[[Place], nn.Module],
    layer: Callable[[nn.Module], nn.Module] = lambda layer: layer,
) -> nn.Module:
    """Return a copy of a network with every layer that has a state replaced by one of another library.

    Args:
        function: name of the converter.
        network: a plain network of this library.
        neuron: returns the replacement of a layer with a state, or raises an Unconvertible.
        layer: returns the replacement of a stateless layer, or raises an Unconvertible.

    Raises:
        ValueError: if some layers have no exact counterpart; lists them.
    """
    check_network(function, network)
    if isinstance(network, StatefulLayer):
        return next(exported(function, nn.Sequential(network), neuron, layer).children())
    network = copy_network(function, network)
    refusals: list[Refusal] = []
    replaced: dict[str, nn.Module] = {}
    for name, node in _calls(function, network, refusals).items():
        part = network.get_submodule(name)
        try:
            if isinstance(part, StatefulLayer):
                _check_layer(part)
                replaced[name] = neuron(Place(name, part, axis_before(node, network))).to(device_of(network))
            elif isinstance(part, SEQUENCE_LAYERS) or type(part).__module__.startswith("lightning_snn."):
                remedy = ": pass `method.posterior_mean(network)`" if "methods" in type(part).__module__ else ""
                raise Unconvertible(f"it has no counterpart{remedy}")
            else:
                replaced[name] = layer(part)
        except Unconvertible as error:
            refusals.append(Refusal(name, part, str(error)))
    refuse_conversion(function, refusals)
    names = {module: name for name, module in network.named_modules()}
    for parent in list(network.modules()):
        for child, module in list(parent._modules.items()):
            if module is not None and names.get(module) in replaced:
                setattr(parent, child, replaced[names[module]])
    return network


def computes_lif(layer: LIF) -> bool:
    """Return whether neurons run by the equations of `LIF` or `RecurrentLIF`, not by others of a subclass."""
    kind = RecurrentLIF if isinstance(layer, RecurrentLIF) else LIF
    return all(getattr(type(layer), name) is getattr(kind, name) for name in (*EQUATIONS, "forward"))


def _check_layer(layer: StatefulLayer) -> None:
    if isinstance(layer, Neuron) and not runs_by_its_equations(layer):
        raise Unconvertible("it has a forward of its own")
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise Unconvertible("it has forward hooks, which would be lost: remove them")


def _calls(function: str, network: nn.Module, refusals: list[Refusal]) -> dict[str, fx.Node]:
    """Return the calls of layers in one pass by name; layers with a state that are called repeatedly are refused."""
    try:
        graph = _Tracer().trace(network)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Expected argument `network` of {function} to be a module that torch.fx can trace, but "
            f"{type(network).__name__}.forward is not: {error}. Convert its parts one by one"
        ) from error
    found: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        name = str(node.target)
        part: Any = network.get_submodule(name)
        if name in found and isinstance(part, StatefulLayer):
            refusals.append(Refusal(name, part, "it is called more than once: give each call a layer of its own"))
        found.setdefault(name, node)
    return found
