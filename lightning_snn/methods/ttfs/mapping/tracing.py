"""The network as a graph, with shapes, and the names of what has no image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lightning_snn.methods.ttfs.mapping.builder import OUTPUT, GraphBuilder, Place, unpooled
from lightning_snn.methods.ttfs.mapping.refusals import hopeless, refusals, rule_of, tells_shape
from lightning_snn.methods.ttfs.mapping.rules import OPERATIONS
from lightning_snn.methods.ttfs.mapping.signals import Signal, Unmappable
from lightning_snn.nn.neurons import LIF
from lightning_snn.nn.registry import is_spiking_layer
from lightning_snn.nn.residual import MembraneResidual


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("lightning_snn.nn") and not isinstance(m, MembraneResidual)
        return ours or is_spiking_layer(m) or super().is_leaf_module(m, module_qualified_name)


class _Values(fx.Interpreter):
    """Runs the network as a ReLU network and keeps what every node gave: of tensors the shape, else the value."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["value"] = result.shape if isinstance(result, Tensor) else result
        n.meta["tensor"] = isinstance(result, Tensor)
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if type(self.fetch_attr(target)) is LIF:
            return F.relu(args[0])
        return super().call_module(target, args, kwargs)


def traced(network: nn.Module) -> fx.Graph:
    """The graph of a network in evaluation mode, all of whose layers and operations have a rule.

    Raises:
        ValueError: naming the layers without an exact image, or if the network cannot be traced.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception as error:
        refused = [f"{name}: {reason}" for name, module in network.named_modules() if (reason := hopeless(module))]
        raise ValueError(
            "Expected a network that torch.fx can trace, but got "
            f"{'; '.join(refused) or type(network).__name__} ({type(error).__name__}: {error})"
        ) from error
    refused = refusals(network, graph)
    if refused:
        raise ValueError(f"Expected a network with an exact image in first spike times, but got {'; '.join(refused)}")
    return graph


def mapped(
    network: nn.Module,
    graph: fx.Graph,
    example: Tensor,
    builder: GraphBuilder,
    x: Callable[[torch.Size], Signal],
) -> Signal:
    """Build the image of a traced network node by node.

    Args:
        network: in evaluation mode.
        graph: of the network.
        example: inputs `[B, ...]`; their values do not matter.
        builder: where the image grows.
        x: from the shape of a sample to the signal that the network is given.

    Returns:
        what it gives.

    Raises:
        ValueError: naming the layer whose image is not exact where it stands.
    """
    with torch.no_grad():
        # an operation that moves elements between samples shows by their number
        samples = torch.cat([example[:1]] * 3)
        try:
            _Values(fx.GraphModule(network, graph)).run(samples)
        except Exception as error:
            raise ValueError(
                f"Expected argument `example` to be a batch that the network takes, but got {tuple(example.shape)} "
                f"({str(error).splitlines()[0]})"
            ) from error
        known: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            try:
                known[node] = _image(network, node, known, builder, len(samples), x)
            except Unmappable as reason:
                where = node.name
                if node.op == "call_module":
                    where = f"{node.target}: {type(network.get_submodule(str(node.target))).__name__}"
                raise ValueError(
                    f"Expected a network with an exact image in first spike times, but got {where} ({reason})"
                ) from None
    return known[next(node for node in graph.nodes if node.op == "output")]


def _image(
    network: nn.Module,
    node: fx.Node,
    known: dict[fx.Node, Any],
    builder: GraphBuilder,
    batch: int,
    x: Callable[[torch.Size], Signal],
) -> Any:
    value = node.meta["value"]
    if node.op == "placeholder":
        if any(isinstance(each, Signal) for each in known.values()):
            return node.args[0] if node.args else _raise("it is a second input")
        return x(value[1:])
    heard: list[Signal] = []

    def look_up(each: fx.Node) -> Any:
        if isinstance(known[each], Signal):
            heard.append(known[each])
        return known[each]

    args, kwargs = fx.map_arg(node.args, look_up), fx.map_arg(node.kwargs, look_up)
    if node.op == "output":
        if not isinstance(args[0], Signal):
            raise Unmappable("the network returns something else than one tensor")
        return Place(builder, OUTPUT, args[0].shape, batch, batch).settle(unpooled(args[0]))
    if not heard or tells_shape(node):
        return _raise("a tensor made in `forward`") if node.meta["tensor"] else value
    place = Place(builder, str(node.target) if node.op == "call_module" else node.name, value[1:], batch, value[0])
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        rule = rule_of(module)
        assert rule is not None
        signal = rule(place, module, *args, **kwargs)
    else:
        signal = OPERATIONS[node.target](place, *args, **kwargs)
    readers = sum(_occurrences(node, user) for user in node.users if not tells_shape(user))
    return place.shared(signal) if readers > 1 else signal


def _occurrences(node: fx.Node, user: fx.Node) -> int:
    found: list[fx.Node] = []
    fx.map_arg((user.args, user.kwargs), found.append)
    return found.count(node)


def _raise(reason: str) -> Any:
    raise Unmappable(reason)
