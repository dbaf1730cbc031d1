"""Networks as graphs of the Neuromorphic Intermediate Representation (NIR, Pedersen et al. 2024)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

import lightning_snn
from lightning_snn.checks import check_integer, check_positive
from lightning_snn.convert.nir.layers import WeightQuantization, node_rule, quantize_node, refusal_reason
from lightning_snn.convert.nir.neurons import Target, subtracts
from lightning_snn.convert.nir.package import KEY, import_nir
from lightning_snn.convert.nir.trace import Call, Traced, trace
from lightning_snn.convert.plain import plain_network
from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.nn.layer_rules import Refusal


def to_nir(
    network: nn.Module,
    input_shape: Sequence[int],
    dt: float = 1e-4,
    strict: bool = True,
    quantization: WeightQuantization | None = None,
) -> Any:
    r"""Convert a network to a NIR graph, exactly: an Euler simulation at `dt` gives its outputs in a deterministic run.

    A decay beta becomes ``tau = dt / (1 - beta)``, and ``r = tau / dt`` gives the input the weight 1. Every field is an
    array of the shape of a sample. Recurrent neurons become a subgraph with an edge back through a Linear node. NIR has
    no field for a reset by subtraction, the order of leak and reset, surrogates and learned decays: `from_nir` reads
    them from the metadata.

    Args:
        network: a plain network, or a `SpikingModule`, whose network is exported; of a Bayesian one the posterior mean.
        input_shape: shape of a sample of one time step, without batch.
        dt: length of a time step in seconds. The importers of snntorch and SpikingJelly expect 1e-4; sinabs reads IF
            nodes of ``dt=1``.
        strict: whether simulators spike at ``v > v_threshold``, as NIR defines. False is for those that spike at ``v >=
            v_threshold``, such as SpikingJelly and sinabs: thresholds are the next larger numbers.
        quantization: constraints with `weight_bits`, as in `HardwareFineTuning`. Weights of linear and convolutional
            layers are the quantized ones; their integers, scale and offset are in the metadata.

    Returns:
        The `nir.NIRGraph`, which `write_nir` writes to a file.

    Raises:
        ImportError: if the package nir is not installed.
        ValueError: if an argument is outside its range, or layers or operations have no node; names each with the
            reason and the nearest thing that can be done.

    Warns:
        UserWarning: if a reset subtracts the threshold, because other simulators reset to zero.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(beta=0.9, reset="zero"), nn.Linear(8, 3))
        >>> graph = to_nir(network, input_shape=(4,))
        >>> sorted(graph.nodes)
        ['0', '1', '2', 'input', 'output']
        >>> graph.nodes["1"].tau.round(6)[0]
        np.float32(0.001)
    """
    nir = import_nir()
    check_positive("dt", dt)
    for size in input_shape:
        check_integer("input_shape", size)
    plain = plain_network(network)
    traced, refusals = trace(plain, input_shape, lambda name, layer: refusal_reason(layer))
    target = Target(dt, _dtype(plain), strict)
    made, refused = _nodes(traced, target, quantization)
    if refusals + refused:
        raise ValueError(
            "Expected a network that NIR can represent, but got " + "; ".join(map(str, refusals + refused))
        )
    nodes = {
        "input": nir.Input(input_type=np.array(input_shape)),
        **made,
        "output": nir.Output(output_type=np.array(traced.output_shape)),
    }
    _warn_of_subtraction([call for call in traced.calls if subtracts(call.layer)])
    notes = {"version": lightning_snn.__version__, "dt": dt}
    return nir.NIRGraph(nodes, _edges(traced, nodes), metadata={KEY: notes}, type_check=False)


def _dtype(network: nn.Module) -> np.dtype:
    wide = any(each.dtype == torch.float64 for each in (*network.parameters(), *network.buffers()))
    return np.dtype(np.float64 if wide else np.float32)


def _nodes(
    traced: Traced, target: Target, quantization: WeightQuantization | None
) -> tuple[dict[str, Any], list[Refusal]]:
    nodes: dict[str, Any] = {}
    refused = []
    for call in traced.calls:
        try:
            node = node_rule(call.layer)(call.layer, call.input_shape, target)
        except Unconvertible as reason:
            refused.append(Refusal(call.name, call.layer, str(reason)))
            continue
        if node is None:
            continue
        if quantization is not None:
            quantize_node(node, call.layer, quantization, target)
        node.input_type = {"input": np.array(call.input_shape)}
        node.output_type = {"output": np.array(call.output_shape)}
        nodes[call.name] = node
    return nodes, refused


def _edges(traced: Traced, nodes: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the edges between nodes; a layer without one passes its sources on.

    Raises:
        ValueError: if an output is added to itself.
    """
    behind: dict[str, list[str]] = {"input": ["input"]}
    edges = []

    def sources(names: list[str]) -> list[str]:
        return [source for name in names for source in behind[name]]

    for name, given in (*((call.name, call.sources) for call in traced.calls), ("output", traced.sources)):
        behind[name] = [name] if name in nodes else sources(given)
        edges += [(source, name) for source in sources(given)] if name in nodes else []
    if twice := sorted({edge for edge in edges if edges.count(edge) > 1}):
        raise ValueError(
            f"Expected sums of the outputs of different layers, but {twice[0][0]} is added to itself, and NIR has one "
            "edge between two nodes. Multiply it by a `lightning_snn.nn.Scale(2.0)`"
        )
    return edges


def _warn_of_subtraction(calls: list[Call]) -> None:
    if calls:
        warnings.warn(
            f'NIR has no field for the reset="subtract" of {", ".join(call.name for call in calls)}: other simulators '
            "reset to zero, so they give other spikes. `from_nir` reads it from the metadata; neurons with "
            'reset="zero" are the same everywhere',
            stacklevel=3,
        )
