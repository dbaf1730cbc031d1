"""Conversion of a ReLU network to first spike times and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn

from lightning_snn.checks import check_choice
from lightning_snn.methods.ttfs.encoder import SpikeEncoder
from lightning_snn.methods.ttfs.mapping.builder import INPUT, OUTPUT, GraphBuilder
from lightning_snn.methods.ttfs.mapping.causality import insert_relays, layer_name, presynaptic
from lightning_snn.methods.ttfs.mapping.signals import Signal
from lightning_snn.methods.ttfs.mapping.tracing import convert_graph, trace
from lightning_snn.methods.ttfs.neurons import FirstSpike
from lightning_snn.methods.ttfs.windows import cascade
from lightning_snn.nn.layer_rules import copy_network

Skips = Literal["delay", "relay"]


class TTFSNetwork(nn.Module):
    r"""Network of neurons that spike at most once, made by `from_relu`.

    .. math:: \hat x^n = \max(0, \sum_m W^{nm} \hat x^m + D^n), \quad \text{logits} = \sum_m W^m \hat x^m + D

    Args:
        encoder: encoder of the inputs.
        body: graph of everything after it: synapses, `FirstSpike` neurons, pools, additions, the readout.
        input_shape: shape of a sample.

    Attributes:
        encoder, body: as above. Names of layers below are those within `body`.

    Shape:
        Inputs `[B, *input_shape]`, outputs `[B, ...]`.

    Example:
        >>> network = from_relu(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 0.0, 1.0, torch.rand(2, 4))
        >>> network.sources
        {'1': ['encoder'], 'readout': ['1']}
    """

    def __init__(self, encoder: SpikeEncoder, body: fx.GraphModule, input_shape: torch.Size) -> None:
        super().__init__()
        self.encoder, self.body, self.input_shape = encoder, body, input_shape
        # by name, so that a copy returns its own neurons
        self._sources = {
            layer_name(node): [layer_name(each) for each in sources] for node, sources in presynaptic(body).items()
        }

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.body(self.encoder(x))
        return outputs

    @property
    def spiking(self) -> list[tuple[str, FirstSpike]]:
        """Names and modules of the neurons, in causal order."""
        body = self.body
        # `get_submodule` takes as long as a layer
        top = body._modules
        return [
            (name, cast(FirstSpike, top[name] if name in top else body.get_submodule(name)))
            for name in self._sources
            if name != OUTPUT
        ]

    @property
    def sources(self) -> dict[str, list[str]]:
        """Presynaptic layers of each layer of neurons and of "readout"; "encoder" are the inputs."""
        return {name: list(sources) for name, sources in self._sources.items()}

    @property
    def delays(self) -> dict[tuple[str, str], Tensor]:
        r"""Length of the delay line from layer m to layer n, :math:`t_\min^n - t_\max^m`: 0 if n follows m.

        Keys are ``(m, n)``, values scalars in float64 in units of the input window, for the current windows.
        """
        layers = dict(self.spiking)
        ends = {INPUT: self.encoder.t_max} | {name: layer.t_max for name, layer in layers.items()}
        lengths: dict[tuple[str, str], Tensor] = {}
        for name, sources in self._sources.items():
            if sources:
                # the readout is read at the end of the last window
                start = layers[name].t_min if name in layers else torch.stack([ends[each] for each in sources]).amax()
                lengths |= {(source, name): start - ends[source] for source in sources}
        return lengths

    def potential(self, name: str, trains: Mapping[str, Tensor]) -> Tensor:
        r"""Return the potential :math:`V(t_\min) + D` of a layer of neurons, or of the readout.

        Args:
            name: of the layer, or "readout".
            trains: for each presynaptic layer, the contribution of each spike to a potential through a synapse of
                efficacy 1, `[B, ...]`: remaining times, if delays are correct.

        Returns:
            Potentials `[B, ...]`.

        Raises:
            ValueError: if there is no such layer, or a train is missing.
        """
        layers = {layer_name(node): (node, sources) for node, sources in presynaptic(self.body).items()}
        check_choice("name", name, tuple(layers))
        target, sources = layers[name]
        if missing := [layer_name(node) for node in sources if layer_name(node) not in trains]:
            raise ValueError(
                f"Expected argument `trains` to have the keys {', '.join(missing)}, but got {list(trains)}"
            )
        known: dict[fx.Node, Any] = {node: trains[layer_name(node)] for node in sources}
        runner = fx.Interpreter(self.body)

        def value(node: fx.Node) -> Any:
            if node not in known:
                args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
                known[node] = getattr(runner, node.op)(node.target, args, kwargs)
            return known[node]

        potential: Tensor = value(target.all_input_nodes[0])
        return potential

    def to_relu(self) -> nn.Module:
        """Return the equivalent ReLU network, for the inputs of the encoder, without relays and delays.

        Layers have the names, and without batch normalization the parameters, of the network before conversion.
        """
        low, width = self.encoder.low, self.encoder.high - self.encoder.low
        body = copy.deepcopy(self.body).eval()
        example = _like(body, self.encoder.window.float()).detach().new_zeros(1, *self.input_shape)
        return _rebuild(body, body.graph, example, 1 / width, -low / width, True, False).train(self.training)


def from_relu(
    network: nn.Module,
    low: float,
    high: float,
    example: Tensor,
    skips: Skips = "delay",
) -> TTFSNetwork:
    r"""Convert a ReLU network exactly to neurons that spike at most once and code values as spike times.

    ReLU and `LIF` layers become `FirstSpike` neurons. Batch normalization before or after them and the input range are
    folded into weights, offsets and, for zero padding, border maps. Max-pools select the earliest spike. Average pools,
    additions, concatenations and consecutive weight layers become synapses of the next neurons. Spikes that skip layers
    are delayed. Dropout masks spikes while training.

    Args:
        network: any module that `torch.fx` can trace; it is left unchanged.
        low: input that causes no spike.
        high: input that spikes at time 0, larger than `low`.
        example: an input `[B, ...]`, for its shape.
        skips: "delay" lines for spikes that skip layers, or identity neurons that "relay" them with one more spike for
            each skipped layer.

    Returns:
        The converted network in dtype, device and mode of `network`, with windows of length 1 until they are
        calibrated. Its parameters are the fused weights and offsets.

    Raises:
        ValueError: if an argument is outside its range, or the network has no TTFS equivalent; the message names each
            refused layer or operation with its reason.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.rand(2, 4)
        >>> spiking = from_relu(network, 0.0, 1.0, x)
        >>> torch.allclose(spiking(x), network(x), atol=1e-6)
        True
    """
    check_choice("skips", skips, ("delay", "relay"))
    if example.dim() < 2 or example.shape[0] == 0:
        raise ValueError(f"Expected argument `example` to be of shape [B, ...], but got {tuple(example.shape)}")
    encoder = SpikeEncoder(low, high)
    original = copy_network("TimeToFirstSpike", network).eval()
    graph = trace(original)
    example = example.detach().to(_like(original, example))
    body = _rebuild(original, graph, example, high - low, low, low >= 0, True)
    if skips == "relay":
        insert_relays(body)
    result = TTFSNetwork(encoder.to(example.device), body, example.shape[1:]).train(network.training)
    cascade(result)
    return result


def _rebuild(
    network: nn.Module,
    graph: fx.Graph,
    example: Tensor,
    scale: float,
    shift: float,
    nonnegative: bool,
    spiking: bool,
) -> fx.GraphModule:
    """Convert a graph whose input is ``scale * v + shift``, where v is the input of the converted graph."""
    names = [name for name, _ in network.named_modules() if name]
    builder = GraphBuilder(names, _like(network, example), spiking)

    def input_signal(shape: torch.Size) -> Signal:
        wide = [torch.full(shape, float(value), dtype=torch.float64, device=example.device) for value in (scale, shift)]
        node = builder.graph.placeholder("x")
        return Signal(
            node, shape, "spikes", nonnegative, None if scale == 1 else wide[0], None if shift == 0 else wide[1]
        )

    builder.graph.output(convert_graph(network, graph, example, builder, input_signal).node)
    return fx.GraphModule(builder.modules, builder.graph, "SpikingGraph" if spiking else "ReLUGraph")


def _like(network: nn.Module, example: Tensor) -> Tensor:
    return next((p for p in network.parameters() if p.is_floating_point()), example)
