"""Connections between layers of neurons, and the identity neurons that may relay spikes past skipped layers."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from lightning_snn.methods.ttfs.mapping.builder import INPUT, OUTPUT
from lightning_snn.methods.ttfs.neurons import FirstSpike
from lightning_snn.methods.ttfs.pooling import SpikePool2d

_SPIKE_LAYERS = (SpikePool2d, nn.MaxPool1d, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_VIEWS = (torch.flatten, torch.reshape)


def presynaptic(body: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """Return the presynaptic nodes (neurons or inputs) of each layer of neurons, in causal order, and of the output."""
    emitters: dict[fx.Node, list[fx.Node]] = {}
    found = {}
    for node in body.graph.nodes:
        sources = dict.fromkeys(source for each in node.all_input_nodes for source in emitters[each])
        emitters[node] = list(sources)
        if node.op == "output" or emits(body, node):
            found[node] = emitters[node]
        if node.op == "placeholder" or emits(body, node):
            emitters[node] = [node]
    return found


def emits(body: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node is a layer of neurons."""
    return node.op == "call_module" and isinstance(body.get_submodule(str(node.target)), FirstSpike)


def layer_name(node: fx.Node) -> str:
    """Return the name of neurons, inputs or readout in a `TTFSNetwork`."""
    return {"placeholder": INPUT, "output": OUTPUT}.get(node.op, str(node.target))


def insert_relays(body: fx.GraphModule) -> None:
    """Insert identity neurons that relay spikes, one layer for each skipped layer, in place.

    They are inserted as late as possible, after pools and slices.
    """
    reached = _reached(body)
    depth: dict[fx.Node, int] = {}
    for node, sources in presynaptic(body).items():
        depth[node] = 1 + max((depth.get(source, 0) for source in sources), default=0)
    trains: dict[fx.Node, int] = {}
    for node in list(body.graph.nodes):
        if node.op == "placeholder" or emits(body, node):
            trains[node] = depth.get(node, 0)
        elif _passes_spikes(body, node) and node.all_input_nodes[0] in trains:
            trains[node] = trains[node.all_input_nodes[0]]
        else:
            continue
        chain = [node]
        for reader in list(node.users):
            if _passes_spikes(body, reader):
                continue
            skipped = min(depth[target] for target in reached[reader]) - 1 - trains[node]
            while len(chain) <= skipped:
                chain.append(_relay(body, chain[-1], f"{layer_name(node)}_relay_{len(chain)}"))
            reader.replace_input_with(node, chain[max(skipped, 0)])
    body.graph.lint()
    body.recompile()


def _relay(body: fx.GraphModule, node: fx.Node, name: str) -> fx.Node:
    name = name.replace(".", "_") if node.op == "call_function" else name
    device = next((buffer.device for buffer in body.buffers()), None)
    while hasattr(body, name):
        name += "_"
    body.add_submodule(name, FirstSpike().to(device))
    with body.graph.inserting_after(node):
        return body.graph.call_module(name, (node,))


def _reached(body: fx.GraphModule) -> dict[fx.Node, set[fx.Node]]:
    """Return the next layers of neurons, or the output, that depend on each node; for these nodes only themselves."""
    reached: dict[fx.Node, set[fx.Node]] = {}
    for node in reversed(body.graph.nodes):
        ends = node.op == "output" or emits(body, node)
        reached[node] = {node} if ends else {target for user in node.users for target in reached[user]}
    return reached


def _passes_spikes(body: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether the outputs of a node for spikes are spikes."""
    if node.op == "call_module":
        return isinstance(body.get_submodule(str(node.target)), _SPIKE_LAYERS)
    return node.op == "call_function" and (node.target in _VIEWS or node.target is operator.getitem)
