"""The graph of a network: its layers with the shapes of their inputs and outputs, and which of them are added."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from lightning_snn.nn.folding import folded
from lightning_snn.nn.layer_rules import Refusal
from lightning_snn.nn.registry import is_spiking_layer
from lightning_snn.nn.residual import MembraneResidual
from lightning_snn.nn.tracer import ThreadTracer

Shape = tuple[int, ...]


class Call(NamedTuple):
    """Call of a layer.

    Attributes:
        name: qualified name of the layer in the network, unique among the calls.
        layer: the layer.
        sources: names of the calls whose outputs are added to its input; "input" is that of the network.
        input_shape: shape of a sample of its input.
        output_shape: shape of a sample of its output.
    """

    name: str
    layer: nn.Module
    sources: list[str]
    input_shape: Shape
    output_shape: Shape


class Traced(NamedTuple):
    """Layers of a network in the order of their calls.

    Attributes:
        calls: the calls.
        sources: names of the calls whose outputs are added to the output of the network.
        output_shape: shape of a sample of the output.
    """

    calls: list[Call]
    sources: list[str]
    output_shape: Shape


_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_", "__add__"}
_FLATTENINGS = {torch.flatten, "flatten"}


class _Tracer(ThreadTracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith(("lightning_snn.nn.", "lightning_snn.methods."))
        leaf = (ours and not isinstance(m, (MembraneResidual, fx.GraphModule))) or is_spiking_layer(m)
        return leaf or next(m.children(), None) is None or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.shapes: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape[1:])
        return result


def trace(
    network: nn.Module, input_shape: Sequence[int], refused: Callable[[str, nn.Module], str | None]
) -> tuple[Traced, list[Refusal]]:
    """Trace a network whose layers are connected by additions and flattening alone.

    Args:
        network: maps `[T*B, *input_shape]` to `[T*B, ...]`.
        input_shape: shape of a sample.
        refused: returns why a layer cannot be part of the result, None if it can.

    Returns:
        The graph, empty if layers or operations are refused, and the refusals.

    Raises:
        ValueError: if the network cannot be traced or does not take inputs of this shape.
    """
    holder = nn.Sequential(network)
    names = {module: name for name, module in network.named_modules(remove_duplicate=True)}
    try:
        graph = _Tracer().trace(holder)
    except Exception as error:
        raise ValueError(
            f"Expected argument `network` to have a forward pass that does not depend on the values of its input, but "
            f"tracing it failed ({error}). Make each computation a module, and add their outputs"
        ) from error
    refusals = []
    for node in graph.nodes:
        if node.op == "call_module":
            layer = holder.get_submodule(str(node.target))
            reason = refused(names[layer], layer)
            if reason is not None:
                refusals.append(Refusal(names[layer], layer, reason))
        elif node.op not in ("placeholder", "output") and node.target not in _ADDITIONS | _FLATTENINGS:
            kind = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            refusals.append(
                Refusal(node.name, kind, "between layers, NIR has additions and flattening alone: make it a layer")
            )
    if refusals:
        return Traced([], [], ()), list(dict.fromkeys(refusals))
    return _follow(holder, graph, _shapes(holder, graph, input_shape), names), []


def _shapes(holder: nn.Module, graph: fx.Graph, input_shape: Sequence[int]) -> dict[fx.Node, Shape]:
    like = next((each for each in holder.parameters() if each.is_floating_point()), torch.zeros(()))
    runner = _Shapes(fx.GraphModule(holder, graph))
    try:
        with torch.no_grad(), folded(1):
            runner.run(torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device))
    except Exception as error:
        raise ValueError(
            f"Expected argument `input_shape` to be the shape of a sample that the network takes, but got "
            f"{tuple(input_shape)} ({error})"
        ) from error
    return runner.shapes


def _follow(holder: nn.Module, graph: fx.Graph, shapes: dict[fx.Node, Shape], names: dict[nn.Module, str]) -> Traced:
    known: dict[fx.Node, list[str]] = {}
    calls: list[Call] = []
    taken = {"input", "output"}
    result: Traced | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = ["input"]
        elif node.op == "output":
            (value,) = node.args
            if not isinstance(value, fx.Node):
                raise ValueError("Expected argument `network` to return one tensor, but it returns several")
            result = Traced(calls, known[value], shapes[value])
        elif node.op != "call_module" and node.target in _ADDITIONS:
            known[node] = _added(node, known, shapes)
        else:
            if len(node.all_input_nodes) != 1:
                raise ValueError(
                    f"Expected layers with one input, but got {node.format_node()}. Add the inputs before the layer"
                )
            (given,) = node.all_input_nodes
            if node.op == "call_module":
                layer = holder.get_submodule(str(node.target))
                name = names[layer] or type(layer).__name__.lower()
            else:
                layer, name = _flattening(*node.args[1:], **node.kwargs), node.name
            name = _unused(name, taken)
            calls.append(Call(name, layer, known[given], shapes[given], shapes[node]))
            known[node] = [name]
    assert result is not None
    return result


def _added(node: fx.Node, known: dict[fx.Node, list[str]], shapes: dict[fx.Node, Shape]) -> list[str]:
    terms = [each for each in node.args if isinstance(each, fx.Node)]
    if len(terms) != 2 or len(node.args) != 2 or node.kwargs or shapes[terms[0]] != shapes[terms[1]]:
        raise ValueError(
            f"Expected additions of the outputs of two layers, of the same shape, but got {node.format_node()}"
        )
    return [source for term in terms for source in known[term]]


def _unused(name: str, taken: set[str]) -> str:
    number, found = 1, name
    while found in taken:
        found, number = f"{name}#{number}", number + 1
    taken.add(found)
    return found


def _flattening(start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    return nn.Flatten(start_dim, end_dim)
