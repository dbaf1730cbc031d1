"""Traversal and editing of the module tree of a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def unnested(network: nn.Module) -> list[nn.Module]:
    """Return the modules of nested `nn.Sequential`s as one list, or `[network]` if it is another module."""
    if isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward:
        return [part for layer in network for part in unnested(layer)]
    return [network]


def replace_layers(
    network: nn.Module, selected: Callable[[nn.Module], bool], replacement: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Replace every selected module of a network, in place.

    Modules, weights and biases that were shared stay shared.

    Args:
        network: the network.
        selected: returns True for the modules to replace.
        replacement: from a module to the one in its place.

    Returns:
        The network, or its replacement if it is selected itself.
    """
    if selected(network):
        return replacement(network)
    made: dict[nn.Module, nn.Module] = {}
    owners: dict[tuple[str, Tensor], nn.Module] = {}
    for parent in list(network.modules()):
        # not named_children, which yields a layer once even if its parent holds it under two names
        for name, child in parent._modules.items():
            if child is None or not selected(child):
                continue
            if child not in made:
                made[child] = replacement(child)
                _share(child, made[child], owners)
            setattr(parent, name, made[child])
    return network


def _share(layer: nn.Module, replaced: nn.Module, owners: dict[tuple[str, Tensor], nn.Module]) -> None:
    """Share parameters between the replacements of layers that share weights or biases.

    Args:
        layer: the original layer.
        replaced: its replacement.
        owners: the first replacement of each shared parameter, updated in place.
    """
    for name in ("weight", "bias"):
        parameter = getattr(layer, name, None)
        if parameter is None:
            continue
        first = owners.setdefault((name, parameter), replaced)
        for shared in (name, f"{name}_log_std"):
            if hasattr(first, shared):
                setattr(replaced, shared, getattr(first, shared))
