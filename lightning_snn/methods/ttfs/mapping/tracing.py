"""Tracing of a network, and conversion of its graph node by node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lightning_snn.methods.ttfs.mapping.builder import OUTPUT, Context, GraphBuilder, without_pools
from lightning_snn.methods.ttfs.mapping.refusals import (
    refuse_node,
    refused_nodes,
    refused_parts,
    returns_shape,
)
from lightning_snn.methods.ttfs.mapping.rules import OPERATIONS, TTFS_RULES
from lightning_snn.methods.ttfs.mapping.signals import WEIGHTED, Signal, Unmappable
from lightning_snn.nn.layer_rules import Refusal, refusal_error
from lightning_snn.nn.neurons import Neuron
from lightning_snn.nn.registry import is_spiking_layer
from lightning_snn.nn.residual import MembraneResidual
from lightning_snn.nn.tracer import ThreadTracer


class _Tracer(ThreadTracer):
    """Tracer that does not enter our layers, spiking layers, and the modules in `untraceable`.

    Attributes:
        failed: name of the innermost module that raised; "" for the network.
    """

    def __init__(self, untraceable: set[str]) -> None:
        super().__init__()
        self.untraceable, self.failed = untraceable, ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        packages = ("lightning_snn.nn.", "lightning_snn.methods.")
        ours = type(m).__module__.startswith(packages) and not isinstance(m, MembraneResidual)
        spiking = is_spiking_layer(m) or module_qualified_name in self.untraceable
        known = TTFS_RULES.find(m) is not None or isinstance(m, WEIGHTED)
        return ours or spiking or known or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


class _Values(fx.Interpreter):
    """Interpreter that runs a network with ReLU neurons and keeps each output: the shape of tensors, or the value."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["value"] = result.shape if isinstance(result, Tensor) else result
        n.meta["tensor"] = isinstance(result, Tensor)
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.fetch_attr(target), Neuron):
            return F.relu(args[0])
        return super().call_module(target, args, kwargs)


def trace(network: nn.Module) -> fx.Graph:
    """Return the graph of a network in evaluation mode, all of whose layers and operations have a rule.

    Raises:
        ValueError: if there is none; the message names each refused layer or operation with its reason.
    """
    untraceable: set[str] = set()
    refused: list[Refusal] = []
    cause: Exception | None = None
    while True:
        tracer = _Tracer(untraceable)
        try:
            graph = tracer.trace(network)
            break
        except Exception as error:
            cause = cause or error
            leaves = {name for name, module in network.named_modules() if name and tracer.is_leaf_module(module, name)}
            name = "" if tracer.failed in untraceable else tracer.failed
            known = {refusal.name for refusal in refused}
            parts = refused_parts(name, network.get_submodule(name), leaves)
            refused += [refusal for refusal in parts if refusal.name not in known]
            if not name:
                raise refusal_error("TimeToFirstSpike", refused) from cause
            untraceable.add(name)
    refused += [refusal for refusal in refused_nodes(network, graph) if refusal.name not in untraceable]
    if refused:
        raise refusal_error("TimeToFirstSpike", refused) from cause
    return graph


def convert_graph(
    network: nn.Module,
    graph: fx.Graph,
    example: Tensor,
    builder: GraphBuilder,
    x: Callable[[torch.Size], Signal],
) -> Signal:
    """Convert a traced network node by node.

    Args:
        network: in evaluation mode.
        graph: of the network.
        example: inputs `[B, ...]`; their values do not matter.
        builder: of the converted graph.
        x: returns the signal of the inputs for the shape of a sample.

    Returns:
        The signal of the outputs.

    Raises:
        ValueError: if the network cannot run on the example, or a layer or operation has no TTFS equivalent at its
            position; the message names it with the reason.
    """
    with torch.no_grad():
        # three samples reveal an operation that moves elements between samples
        samples = torch.cat([example[:1]] * 3)
        try:
            _Values(fx.GraphModule(network, graph)).run(samples)
        except Exception as error:
            raise ValueError(
                "Expected argument `example` (made from `input_shape` by TimeToFirstSpike) to be a batch of inputs of "
                f"the network, but got shape {tuple(example.shape)}"
            ) from error
        known: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            try:
                known[node] = _convert_node(network, node, known, builder, len(samples), x)
            except Unmappable as reason:
                raise refusal_error("TimeToFirstSpike", [refuse_node(network, node, str(reason))]) from None
    result = known[next(node for node in graph.nodes if node.op == "output")]
    assert isinstance(result, Signal)
    return result


def _convert_node(
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
            return node.args[0] if node.args else _raise("the network has to have one input")
        return x(value[1:])
    inputs: list[Signal] = []

    def look_up(each: fx.Node) -> Any:
        if isinstance(known[each], Signal):
            inputs.append(known[each])
        return known[each]

    args, kwargs = fx.map_arg(node.args, look_up), fx.map_arg(node.kwargs, look_up)
    if node.op == "output":
        if not isinstance(args[0], Signal):
            raise Unmappable("the network has to return one tensor")
        return Context(builder, OUTPUT, args[0].shape, batch, batch).apply_pending(without_pools(args[0]))
    if not inputs or returns_shape(node):
        return _raise("it creates a tensor in `forward`") if node.meta["tensor"] else value
    context = Context(builder, str(node.target) if node.op == "call_module" else node.name, value[1:], batch, value[0])
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        rule = TTFS_RULES.find(module)
        assert rule is not None
        signal = rule(context, module, *args, **kwargs)
    else:
        signal = OPERATIONS[node.target](context, *args, **kwargs)
    readers = sum(_occurrences(node, user) for user in node.users if not returns_shape(user))
    return context.shared(signal) if readers > 1 else signal


def _occurrences(node: fx.Node, user: fx.Node) -> int:
    found: list[fx.Node] = []
    fx.map_arg((user.args, user.kwargs), found.append)
    return found.count(node)


def _raise(reason: str) -> Any:
    raise Unmappable(reason)
