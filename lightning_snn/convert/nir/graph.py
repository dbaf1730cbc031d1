"""The graph of a NIR file in the order in which a network runs it: subgraphs in place, loops as recurrent layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lightning_snn.convert.nir.package import import_nir

_SEPARATOR = "."


class Step(NamedTuple):
    """A node in its place of the order.

    Attributes:
        name: of the node.
        node: the node.
        sources: names of the nodes whose outputs are added to its input; "" is the input of the graph.
        recurrent: the Linear or Affine node through which it receives its own output, if there is one.
    """

    name: str
    node: Any
    sources: list[str]
    recurrent: Any = None


class Ordered(NamedTuple):
    """Nodes in an order in which each follows its sources.

    Attributes:
        steps: the nodes without Input and Output.
        sources: names of the nodes whose outputs are added to the output of the graph.
        input_shape: shape of a sample, None if the graph does not say it.
        output_shape: shape of a sample of the output, None if the graph does not say it.
    """

    steps: list[Step]
    sources: list[str]
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None


def ordered(graph: Any) -> Ordered:
    """Return the nodes of a graph in the order in which they run.

    Args:
        graph: a `nir.NIRGraph` with one Input and one Output.

    Raises:
        ValueError: if it has several of them, edges to nodes that do not exist, nodes that are not connected, or loops
            other than an edge back through one Linear or Affine node.
    """
    nir = import_nir()
    nodes, edges = _flat(graph, "")
    for source, target in edges:
        for end in (source, target):
            if end not in nodes:
                raise ValueError(
                    f"Expected edges between nodes of the graph, but got {source} -> {target}, and there is no {end}"
                )
    (first,), (last,) = (
        _one([name for name, node in nodes.items() if isinstance(node, kind)], kind.__name__)
        for kind in (nir.Input, nir.Output)
    )
    nodes, edges, recurrent = _without_recurrence(nodes, edges)
    order = _sorted(nodes, edges, first)
    unread = set(nodes) - {source for source, _ in edges} - {last}
    if unread:
        raise ValueError(f"Expected every node to lead to the output, but {', '.join(sorted(unread))} lead nowhere")
    behind = {name: ["" if source == first else source for source, target in edges if target == name] for name in nodes}
    if last == order[0] or not behind[last]:
        raise ValueError("Expected the output of the graph to receive the output of a node, but it receives none")
    steps = [Step(name, nodes[name], behind[name], recurrent.get(name)) for name in order if name not in (first, last)]
    return Ordered(steps, behind[last], _shape(nodes[first].input_type), _shape(nodes[last].output_type))


def _one(names: list[str], kind: str) -> list[str]:
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise ValueError(f"Expected a graph with one {kind} node, but got {found}: split the graph, or connect them")
    return names


def _flat(graph: Any, prefix: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return nodes and edges with the nodes of subgraphs in their place; ``outer.inner`` are their names."""
    nir = import_nir()
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    entries: dict[str, tuple[str, str]] = {}
    for name, node in graph.nodes.items():
        if not isinstance(node, nir.NIRGraph):
            nodes[prefix + name] = node
            continue
        inside, between = _flat(node, f"{prefix}{name}{_SEPARATOR}")
        own = {each: part for each, part in inside.items() if isinstance(part, (nir.Input, nir.Output))}
        enter, leave = (
            _one([each for each, part in own.items() if isinstance(part, kind)], f"{kind.__name__} (in {name})")[0]
            for kind in (nir.Input, nir.Output)
        )
        entries[prefix + name] = (enter, leave)
        nodes |= inside
        edges += between
    for source, target in graph.edges:
        source, target = prefix + str(source), prefix + str(target)
        edges.append((entries.get(source, ("", source))[1], entries.get(target, (target, ""))[0]))
    for ends in entries.values():
        for end in ends:
            edges = _passed(end, edges)
            del nodes[end]
    return nodes, edges


def _passed(name: str, edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return edges without a node that passes its input on."""
    before = [source for source, target in edges if target == name]
    after = [target for source, target in edges if source == name]
    return [edge for edge in edges if name not in edge] + [(source, target) for source in before for target in after]


def _without_recurrence(
    nodes: Mapping[str, Any], edges: list[tuple[str, str]]
) -> tuple[dict[str, Any], list[tuple[str, str]], dict[str, Any]]:
    """Return the graph without edges back through Linear or Affine nodes, and these nodes by their neurons.

    Neurons and weights with a common prefix, such as ``lif1.lif`` and ``lif1.w_rec``, get the prefix as their name.
    """
    nir = import_nir()
    known, recurrent, renamed = dict(nodes), {}, {}
    for name, node in nodes.items():
        before = [source for source, target in edges if target == name]
        after = [target for source, target in edges if source == name]
        if not isinstance(node, (nir.Linear, nir.Affine)) or before != after or len(before) != 1:
            continue
        (neurons,) = before
        if neurons in recurrent:
            raise ValueError(f"Expected one edge back to {neurons}, but got several: add up their weights in one node")
        recurrent[neurons] = known.pop(name)
        prefix = neurons.rpartition(_SEPARATOR)[0]
        if prefix and prefix == name.rpartition(_SEPARATOR)[0] and prefix not in nodes:
            renamed[neurons] = prefix
        edges = [edge for edge in edges if name not in edge]
    return (
        {renamed.get(name, name): node for name, node in known.items()},
        [(renamed.get(source, source), renamed.get(target, target)) for source, target in edges],
        {renamed.get(name, name): node for name, node in recurrent.items()},
    )


def _sorted(nodes: Mapping[str, Any], edges: list[tuple[str, str]], first: str) -> list[str]:
    """Return the names of all nodes, each after its sources, as close to the order of the graph as possible."""
    waiting = Counter(target for _, target in edges)
    ready = [name for name in nodes if not waiting[name]]
    if unconnected := [name for name in ready if name != first]:
        raise ValueError(f"Expected every node to receive an input, but {', '.join(sorted(unconnected))} receive none")
    order: list[str] = []
    while ready:
        name = ready.pop(0)
        order.append(name)
        for source, target in edges:
            if source == name:
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
    if loop := [name for name in nodes if name not in order]:
        raise ValueError(
            "Expected loops to be an edge back from neurons through one Linear or Affine node to themselves, but got "
            f"one over {', '.join(sorted(loop))}: layers of neurons receive the spikes of their own layer alone"
        )
    return order


def _shape(types: Any) -> tuple[int, ...] | None:
    (shape,) = types.values()
    return None if shape is None else tuple(int(size) for size in np.asarray(shape).reshape(-1))
