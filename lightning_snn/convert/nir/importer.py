"""Graphs of the Neuromorphic Intermediate Representation (NIR, Pedersen et al. 2024) as networks."""

from __future__ import annotations

import keyword
import math
import os
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_snn.checks import check_choice, check_positive
from lightning_snn.convert.nir.files import read_nir
from lightning_snn.convert.nir.graph import Ordered, Step, ordered
from lightning_snn.convert.nir.nodes import Source, node_layers
from lightning_snn.convert.nir.package import KEY, import_nir
from lightning_snn.convert.refusals import Unconvertible
from lightning_snn.functional.dynamics import RESETS, Reset
from lightning_snn.nn.folding import folded
from lightning_snn.nn.layer_rules import Refusal
from lightning_snn.nn.neurons import Neuron, Recurrent, recurrent

DEFAULT_DT = 1e-4
_LARGEST_INPUT = 2**26


def from_nir(
    graph: Any,
    dt: float | None = None,
    reset: Reset | None = None,
    strict: bool | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    r"""Convert a NIR graph to a network whose run is an Euler simulation of the graph.

    A time constant tau becomes the decay ``1 - dt / tau``. Where the input of neurons has another weight than 1, ``r dt
    / tau`` of a LIF, their threshold is divided by it, so their membrane potential is in units of the input, as in
    snntorch; a `v_leak` is subtracted from the threshold. Both are exact up to rounding. An IF node with ``r = 1``
    gives its input the weight 1, as in sinabs and snntorch, and otherwise ``r dt``. An edge back through a Linear or
    Affine node makes recurrent neurons. Subgraphs are put in their place.

    Args:
        graph: a `nir.NIRGraph`, or the path of its file.
        dt: length of a time step in seconds. None is that of the metadata of `to_nir`, else 1e-4, which snntorch and
            SpikingJelly write.
        reset: reset of all neurons. None is that of the metadata of `to_nir`, else "zero", as `v_reset` says; pass
            "subtract" for networks of simulators that subtract, such as sinabs, because NIR has no field for it.
        strict: False if the simulator of the graph spikes at ``v >= v_threshold``, as SpikingJelly and sinabs:
            thresholds become the next smaller numbers, and so does what a reset by subtraction subtracts. None is as
            the metadata say, else True, as NIR defines.
        dtype: torch.float32 or torch.float64; None is that of the weights.

    Returns:
        an `nn.Sequential` of layers with the names of the nodes, or a `GraphNetwork` where nodes have several sources.

    Raises:
        ImportError: if the package nir is not installed.
        OSError: if a file is missing or cannot be read; the message names it.
        ValueError: if an argument is outside its range, a file is damaged, the graph has no one input and output, or
            nodes have no layer that does the same; names each with the reason and the nearest thing that can be done.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), LIF(beta=0.9, reset="zero"), nn.Linear(8, 3))
        >>> from_nir(lightning_snn.convert.to_nir(network, (4,)))
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): LIF(beta=0.9, threshold=1, reset=zero, surrogate=ArcTangent(width=0.3183098861837907))
          (2): Linear(in_features=8, out_features=3, bias=True)
        )
    """
    nir = import_nir()
    if dt is not None:
        check_positive("dt", dt)
    check_choice("reset", reset, (None, *RESETS))
    check_choice("strict", strict, (None, True, False))
    check_choice("dtype", dtype, (None, torch.float32, torch.float64))
    if isinstance(graph, (str, os.PathLike)):
        found = read_nir(graph)
        try:
            return _converted(found, dt, reset, strict, dtype)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Expected {graph} to hold a graph that can be converted, but: {error}") from error
    if not isinstance(graph, nir.NIRGraph):
        raise ValueError(f"Expected argument `graph` to be a NIRGraph or the path of its file, but got {graph!r}")
    return _converted(graph, dt, reset, strict, dtype)


def _converted(
    graph: Any, dt: float | None, reset: Reset | None, strict: bool | None, dtype: torch.dtype | None
) -> nn.Module:
    steps = ordered(graph)
    known = _known_dt(graph) if dt is None else dt
    source = Source(
        DEFAULT_DT if known is None else known, dtype or _dtype(steps.steps), strict, reset, assumed=known is None
    )
    layers = _layers(steps, source)
    _check_shapes(steps, layers, source)
    return _network(steps, layers)


class GraphNetwork(nn.Module):
    """Layers whose inputs are sums of the outputs of earlier ones.

    Args:
        layers: the layers by name, each after its sources.
        sources: for each layer the names of the layers whose outputs are added to its input; "" is the input of the
            network.
        output: names of the layers whose outputs are added to the output of the network.

    Shape:
        `[T*B, ...]` to `[T*B, ...]`.

    Example:
        >>> network = GraphNetwork({"a": nn.Identity(), "b": nn.Identity()}, {"a": [""], "b": ["", "a"]}, ["b"])
        >>> network(torch.ones(1, 2))
        tensor([[2., 2.]])
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], sources: Mapping[str, Sequence[str]], output: Sequence[str]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.sources = {name: tuple(given) for name, given in sources.items()}
        self.output = tuple(output)

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {"": x}
        for name, layer in self.layers.items():
            values[name] = layer(_sum(values, self.sources[name]))
        return _sum(values, self.output)


def _sum(values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    total = values[names[0]]
    for name in names[1:]:
        total = total + values[name]
    return total


def _known_dt(graph: Any) -> float | None:
    notes = graph.metadata.get(KEY)
    found = notes.get("dt") if isinstance(notes, Mapping) else None
    if found is None:
        return None
    dt = float(found)
    check_positive("dt of the metadata", dt)
    return dt


def _dtype(steps: Sequence[Step]) -> torch.dtype:
    """Return the dtype of the weights, or of the other fields in a graph without weights."""
    for names in (("weight",), ("tau", "tau_mem", "v_threshold", "r", "scale")):
        found = [np.asarray(getattr(step.node, name)) for step in steps for name in names if hasattr(step.node, name)]
        if found:
            return torch.float64 if all(each.dtype == np.float64 for each in found) else torch.float32
    return torch.float32


def _layers(steps: Ordered, source: Source) -> dict[str, nn.Module]:
    """Return the layer of each node by the name of the node.

    Raises:
        ValueError: if nodes have no layer; names all of them.
    """
    makers = node_layers()
    layers: dict[str, nn.Module] = {}
    refused: list[Refusal] = []
    for step in steps.steps:
        try:
            make = makers.get(type(step.node))
            if make is None:
                raise Unconvertible("no layer does the same: replace the node, or leave it out")
            layer = make(step.node, source)
            layers[step.name] = layer if step.recurrent is None else _recurrent(step, layer, layers, steps, source)
        except Unconvertible as reason:
            refused.append(Refusal(step.name, type(step.node).__name__, str(reason)))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            refused.append(Refusal(step.name, type(step.node).__name__, f"its fields are damaged: {error}"))
    if refused:
        raise ValueError(f"Expected nodes that have a layer, but got {'; '.join(map(str, refused))}")
    return layers


def _recurrent(
    step: Step, layer: nn.Module, layers: Mapping[str, nn.Module], steps: Ordered, source: Source
) -> nn.Module:
    """Return neurons that receive their own spikes through the weights of a node; its bias joins the layer before."""
    if not isinstance(layer, Neuron):
        raise Unconvertible("only neurons receive their own output: use a LIF, IF or CubaLIF node")
    weight = torch.from_numpy(np.array(step.recurrent.weight)).to(source.dtype)
    if weight.dim() != 2 or weight.shape[0] != weight.shape[1]:
        raise Unconvertible(f"its recurrent weight is of shape {list(weight.shape)}, and not a square matrix")
    wrapped = step.recurrent.metadata.get(KEY, {}).get("wrapped", False)
    made: Any = (Recurrent if wrapped else recurrent)(layer, weight.shape[0])
    made.to(source.dtype)
    made.weight = nn.Parameter(weight)
    bias = getattr(step.recurrent, "bias", None)
    if bias is not None and np.any(bias):
        before = layers.get(step.sources[0]) if len(step.sources) == 1 else None
        others = [each.name for each in steps.steps if step.sources[0] in each.sources and each.name != step.name]
        if not isinstance(before, nn.Linear) or others or step.sources[0] in steps.sources:
            raise Unconvertible(
                "its recurrent weights have a bias, which is a constant input: add it to the bias of the layer before"
            )
        with torch.no_grad():
            constant = torch.from_numpy(np.array(bias)).to(source.dtype)
            before.bias = nn.Parameter(constant if before.bias is None else before.bias + constant)
    return made  # type: ignore[no-any-return]


def _check_shapes(steps: Ordered, layers: Mapping[str, nn.Module], source: Source) -> None:
    """Raise a ValueError if a node does not take the outputs of its sources, or has values of another shape."""
    if steps.input_shape is None:
        return
    if math.prod(steps.input_shape) > _LARGEST_INPUT or min(steps.input_shape, default=1) < 0:
        raise ValueError(f"Expected an Input node of a shape that fits in memory, but got {list(steps.input_shape)}")
    values = {"": torch.zeros(1, *steps.input_shape, dtype=source.dtype)}
    with torch.no_grad(), folded(1):
        for step in steps.steps:
            try:
                given = _sum(values, step.sources)
                field = getattr(step.node, "v_threshold", getattr(step.node, "scale", None))
                if field is not None and np.size(field) > 1 and np.shape(field) != given.shape[1:]:
                    raise ValueError(f"its fields are of shape {list(np.shape(field))}")
                values[step.name] = layers[step.name](given)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                shapes = " and ".join(str(list(values[name].shape[1:])) for name in step.sources)
                refusal = Refusal(step.name, type(step.node).__name__, f"{error}")
                raise ValueError(f"Expected nodes that take inputs of shape {shapes}, but got {refusal}") from error
        output = _sum(values, steps.sources)
    if steps.output_shape is not None and tuple(output.shape[1:]) != steps.output_shape:
        raise ValueError(
            f"Expected an Output node of shape {list(output.shape[1:])}, which its source returns, but got "
            f"{list(steps.output_shape)}"
        )


def _network(steps: Ordered, layers: Mapping[str, nn.Module]) -> nn.Module:
    chain = [*(step.sources for step in steps.steps), steps.sources]
    before = ["", *(step.name for step in steps.steps)]
    if all(sources == [name] for sources, name in zip(chain, before, strict=True)):
        names = _attributes(layers, nn.Sequential())
        return nn.Sequential(OrderedDict((names[name], layer) for name, layer in layers.items()))
    names = {"": "", **_attributes(layers, nn.ModuleDict())}
    return GraphNetwork(
        {names[name]: layer for name, layer in layers.items()},
        {names[step.name]: [names[each] for each in step.sources] for step in steps.steps},
        [names[each] for each in steps.sources],
    )


def _attributes(names: Collection[str], parent: nn.Module) -> dict[str, str]:
    """Return names of submodules for the names of nodes, which may be any text."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\W", "_", name) or "node"
        while plain in found.values() or hasattr(parent, plain) or keyword.iskeyword(plain):
            plain += "_"
        found[name] = plain
    return found
