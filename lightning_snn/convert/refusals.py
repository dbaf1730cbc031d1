"""Refusals of the converters: every layer that has no exact counterpart, by name, with what could be done."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_snn.nn.layer_rules import Refusal


class Unconvertible(ValueError):
    """A layer without an exact counterpart; the message is the reason and the nearest thing that could be done.

    Example:
        >>> raise Unconvertible("its spikes are graded: multiply the weights of the next layer")
        Traceback (most recent call last):
        lightning_snn.convert.refusals.Unconvertible: its spikes are graded: multiply the weights of the next layer
    """


def refuse_conversion(function: str, refusals: Iterable[Refusal]) -> None:
    """Raise one error that lists all refusals, if there are any.

    Args:
        function: name of the converter.
        refusals: layers and reasons.

    Raises:
        ValueError: with every refused layer.

    Example:
        >>> refuse_conversion("to_snntorch", [Refusal("1", nn.GRU(2, 2), "it has no counterpart")])
        Traceback (most recent call last):
        ValueError: Expected a network that to_snntorch can convert exactly, but got 1: GRU (it has no counterpart)
    """
    listed = list(dict.fromkeys(map(str, refusals)))
    if listed:
        raise ValueError(f"Expected a network that {function} can convert exactly, but got {'; '.join(listed)}")


def check_network(function: str, network: object) -> None:
    """Raise a TypeError unless the argument of a converter is a module."""
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"Expected argument `network` of {function} to be an nn.Module, but got {type(network).__name__}"
        )
