"""Layers of another library, as the conversion of a traced step asks for them."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import fx, nn

Use = Literal["spikes", "membrane"]
Axis = Literal["features", "maps"]
"""values per neuron of a tensor `[B, N]`, or of one `[B, C, ...]`"""


class Library(Protocol):
    """Layers of another library and how they become those of this one.

    Attributes:
        function: name of the converter.
        sequences: whether the network takes whole sequences `[T, B, ...]`, not one step `[B, ...]`.
    """

    function: str
    sequences: bool

    def is_neuron(self, module: nn.Module) -> bool:
        """Return whether a module is a neuron."""

    def is_whole(self, module: nn.Module) -> bool:
        """Return whether a module is converted as a whole, not layer by layer."""

    def returns_states(self, neuron: nn.Module) -> bool:
        """Return whether a call of a neuron returns a tuple of its spikes and states, the membrane potential last."""

    def takes_spikes(self, neuron: nn.Module) -> bool:
        """Return whether the states that a call of a neuron takes and returns begin with its spikes."""

    def neuron(self, neuron: nn.Module, use: Use, axis: Axis | None) -> nn.Module:
        """Return the neuron of this library; raises an Unconvertible."""

    def layer(self, layer: nn.Module) -> nn.Module:
        """Return a stateless layer on rows, its parameters shared; raises an Unconvertible."""


def axis_before(node: fx.Node, network: nn.Module) -> Axis | None:
    """Return what the neurons of a call are, from the nearest layer before it that tells; None if none does."""
    seen = node
    while seen.all_input_nodes:
        seen = seen.all_input_nodes[0]
        if seen.op == "call_module":
            kind = type(network.get_submodule(str(seen.target))).__name__
        else:
            kind = str(getattr(seen.target, "__name__", seen.target))
        if kind in ("Linear", "Flatten", "flatten", "view", "reshape"):
            return "features"
        if kind.lower().removesuffix("d").rstrip("123_") in ("conv", "max_pool", "avg_pool", "maxpool", "avgpool"):
            return "maps"
    return None
