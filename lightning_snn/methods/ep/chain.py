"""Blocks of a network for message passing: fixed layers, weights, and the neurons after them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_snn.methods.ep.layers import MessageLayer
from lightning_snn.methods.ep.neurons import MessageNeuron, SpikeOutput, ValueOutput
from lightning_snn.methods.ep.transforms import Transform, transform_of


@dataclass(frozen=True)
class Block:
    """Fixed layers, weights, and neurons.

    Attributes:
        before: fixed layers in front of the weights.
        layer: the weights.
        neuron: neurons after the weights; None in the last block, whose potentials are the output.
    """

    before: tuple[Transform, ...]
    layer: MessageLayer
    neuron: MessageNeuron | None


@dataclass(frozen=True)
class Chain:
    """Blocks of a network in order, and its output.

    Attributes:
        blocks: at least one.
        output: likelihood of the targets given the potentials of the last block.

    Example:
        >>> from lightning_snn.methods.ep import ExpectationPropagation
        >>> network = ExpectationPropagation().prepare(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)))
        >>> len(network.chain.blocks), network.chain.blocks[0].neuron
        (1, None)
    """

    blocks: tuple[Block, ...]
    output: SpikeOutput | ValueOutput


class MessageNetwork(nn.Sequential):
    """Network prepared for message passing: layers in order, the output last.

    A call runs the network with the means of its weights. Parameters stay in float32 or wider if the network is
    converted to a narrower dtype, because natural parameters are sums over all batches.

    Example:
        >>> from lightning_snn.methods.ep import ExpectationPropagation
        >>> network = ExpectationPropagation().prepare(nn.Sequential(nn.Linear(8, 3)))
        >>> [type(layer).__name__ for layer in network]
        ['MessageLayer', 'SpikeOutput']
    """

    @property
    def chain(self) -> Chain:
        """Blocks and output of the network."""
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
                transform = transform_of(layer)
                assert transform is not None
                before.append(transform)
        assert weights is not None
        return Chain((*blocks, Block(tuple(before), weights, None)), output)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MessageNetwork:
        def wide(values: Tensor) -> Tensor:
            converted = fn(values)
            dtype = torch.promote_types(converted.dtype, torch.float32)
            narrows = converted.is_floating_point() and converted.dtype != dtype
            return values.to(converted.device, dtype) if narrows else converted

        super()._apply(wide, recurse)  # type: ignore[no-untyped-call]
        return self
