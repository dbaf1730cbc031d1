"""A network as message passing sees it: weights, then neurons, then what lies between them and the next weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_snn.methods.ep.layers import MessageLayer
from lightning_snn.methods.ep.neurons import MessageNeuron, SpikeOutput, ValueOutput
from lightning_snn.methods.ep.transforms import Transform, transform_of


@dataclass(frozen=True)
class Block:
    """Fixed stages, weights and the neurons after them; the last block has none, its potentials are read out."""

    before: tuple[Transform, ...]
    layer: MessageLayer
    neuron: MessageNeuron | None


@dataclass(frozen=True)
class Chain:
    """The blocks of a network, and its output."""

    blocks: tuple[Block, ...]
    output: SpikeOutput | ValueOutput


class MessageNetwork(nn.Sequential):
    """A network prepared for message passing: layers in a row, the output last. Called, it runs on its mean weights."""

    @property
    def chain(self) -> Chain:
        """The network as message passing sees it."""
        *layers, output = self
        assert isinstance(output, (SpikeOutput, ValueOutput))
        blocks: list[Block] = []
        before: list[Transform] = []
        weights: MessageLayer | None = None
        for layer in layers:
            if isinstance(layer, MessageLayer):
                weights = layer
            elif isinstance(layer, MessageNeuron):
                assert weights is not None
                blocks.append(Block(tuple(before), weights, layer))
                before, weights = [], None
            else:
                stage = transform_of(layer)
                assert stage is not None
                before.append(stage)
        assert weights is not None
        return Chain((*blocks, Block(tuple(before), weights, None)), output)
