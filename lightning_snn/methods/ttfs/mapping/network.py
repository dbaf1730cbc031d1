"""From a ReLU network to first spike times and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn

from lightning_snn.checks import check_choice
from lightning_snn.methods.ttfs.layers import FirstSpike, SpikeEncoder
from lightning_snn.methods.ttfs.mapping.builder import INPUT, OUTPUT, GraphBuilder
from lightning_snn.methods.ttfs.mapping.causality import insert_relays, layer_name, presynaptic
from lightning_snn.methods.ttfs.mapping.signals import Signal
from lightning_snn.methods.ttfs.mapping.tracing import mapped, traced
from lightning_snn.methods.ttfs.windows import cascade

Skips = Literal["delay", "relay"]


class TTFSNetwork(nn.Module):
    r"""A network of neurons that spike at most once, as `from_relu` makes it.

    .. math:: \hat x^n = \max(0, \sum_m W^{nm} \hat x^m + D^n), \quad \text{logits} = \sum_m W^m \hat x^m + D

    Args:
        encoder: inputs to spikes.
        body: graph of everything after it: synapses, `FirstSpike` neurons, pools, additions, the readout.
        input_shape: shape of a sample.

    Attributes:
        encoder, body: as given. Names of layers below are those within `body`.

    Shape:
        `[B, *input_shape]` to `[B, ...]`.
    """

    def __init__(self, encoder: SpikeEncoder, body: fx.GraphModule, input_shape: torch.Size) -> None:
        super().__init__()
        self.encoder, self.body, self.input_shape = encoder, body, input_shape
        heard = presynaptic(body)
        # by name, so that a copy tells of its own neurons
        self._sources = {layer_name(node): [layer_name(each) for each in sources] for node, sources in heard.items()}

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.encoder(x))

    @property
    def spiking(self) -> list[tuple[str, FirstSpike]]:
        """Names and modules of the neurons, in causal order."""
        body = self.body
        # `get_submodule` would take a step of training as long as a layer does
        top = body._modules
        return [
            (name, cast(FirstSpike, top[name] if name in top else body.get_submodule(name)))
            for name in self._sources
            if name != OUTPUT
        ]

    @property
    def sources(self) -> dict[str, list[str]]:
        """For each layer of neurons and for "readout" the layers that it hears; "encoder" are the inputs."""
        return {name: list(heard) for name, heard in self._sources.items()}

    @property
    def delays(self) -> dict[tuple[str, str], Tensor]:
        r"""Length of the delay line from layer m to layer n, :math:`t_\min^n - t_\max^m`: 0 if n follows on m.

        Keys are ``(m, n)``, values scalars in float64 and in units of the input window, by the windows of now.
        """
        layers = dict(self.spiking)
        ends = {INPUT: self.encoder.t_max} | {name: layer.t_max for name, layer in layers.items()}
        lengths: dict[tuple[str, str], Tensor] = {}
        for name, heard in self._sources.items():
            if heard:
                # the readout is read when the last spike may have come
                begin = layers[name].t_min if name in layers else torch.stack([ends[each] for each in heard]).amax()
                lengths |= {(source, name): begin - ends[source] for source in heard}
        return lengths

    def drive(self, name: str, trains: Mapping[str, Tensor]) -> Tensor:
        r"""The drive :math:`V(t_\min) + D` of one layer of neurons, or of the readout.

        Args:
            name: of the layer, or "readout".
            trains: by name of each layer that it hears, what every spike adds to a potential by a synapse of efficacy
                1, `[B, ...]`: remaining times, where delays are right.

        Returns:
            potentials `[B, ...]`.

        Raises:
            ValueError: if there is no such layer, or a train is missing.
        """
        heard = {layer_name(node): (node, sources) for node, sources in presynaptic(self.body).items()}
        check_choice("name", name, tuple(heard))
        target, sources = heard[name]
        if missing := [layer_name(node) for node in sources if layer_name(node) not in trains]:
            raise ValueError(f"Expected argument `trains` to hold {', '.join(missing)} too, but got {list(trains)}")
        known: dict[fx.Node, Any] = {node: trains[layer_name(node)] for node in sources}
        runner = fx.Interpreter(self.body)

        def value(node: fx.Node) -> Any:
            if node not in known:
                args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
                known[node] = getattr(runner, node.op)(node.target, args, kwargs)
            return known[node]

        return value(target.all_input_nodes[0])

    def to_relu(self) -> nn.Module:
        """The ReLU network that this one computes, on inputs as the encoder takes them; without relays and delays.

        Layers have the names, and without batch normalization the parameters, that they had before the mapping.
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
    r"""Map a ReLU network exactly onto neurons that spike at most once, with their time as the code.

    ReLU or `LIF` layers, taken as rectifiers, become `FirstSpike` neurons. Batch normalization before or after them
    and the input range go into weights, offsets and, under zero padding, border maps; max-pools become races of
    spikes, and average pools, additions, concatenations and weight layers in a row the synapses of the next neurons.
    Spikes that skip layers are delayed. Dropout masks spikes in training.

    Args:
        network: any module that `torch.fx` can trace; it is left as it is.
        low, high: range of the inputs, whose ends become silence and a spike at time 0.
        example: an input `[B, ...]`, for its shape.
        skips: "delay" lines for spikes that skip layers, or identity neurons that "relay" them: one more spike for
            each layer skipped.

    Returns:
        the mapped network in dtype, device and mode of `network`, its windows of length 1 until they are calibrated.
        Its parameters are the fused weights and offsets.

    Raises:
        ValueError: naming what has no exact image, and why, or what `torch.fx` cannot trace.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> spiking = from_relu(network, 0.0, 1.0, torch.rand(2, 4))
        >>> spiking.delays
    """
    check_choice("skips", skips, ("delay", "relay"))
    if example.dim() < 2 or example.shape[0] == 0:
        raise ValueError(f"Expected argument `example` to be of shape [B, ...], but got {tuple(example.shape)}")
    encoder = SpikeEncoder(low, high)
    original = copy.deepcopy(network).eval()
    graph = traced(original)
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
    """The image of a graph whose input is ``scale * v + shift`` of the image's input v."""
    names = [name for name, _ in network.named_modules() if name]
    builder = GraphBuilder(names, _like(network, example), spiking)

    def given(shape: torch.Size) -> Signal:
        wide = [torch.full(shape, float(value), dtype=torch.float64, device=example.device) for value in (scale, shift)]
        node = builder.graph.placeholder("x")
        return Signal(
            node, shape, "spikes", nonnegative, None if scale == 1 else wide[0], None if shift == 0 else wide[1]
        )

    builder.graph.output(mapped(network, graph, example, builder, given).node)
    return fx.GraphModule(builder.modules, builder.graph, "SpikingGraph" if spiking else "ReLUGraph")


def _like(network: nn.Module, example: Tensor) -> Tensor:
    return next((p for p in network.parameters() if p.is_floating_point()), example)
