"""Walking and editing the tree of modules of a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def unnested(network: nn.Module) -> list[nn.Module]:
    """The modules of nested `nn.Sequential`s in a row; of another module only itself."""
    if isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward:
        return [part for layer in network for part in unnested(layer)]
    return [network]


def replace_layers(
    network: nn.Module, wanted: Callable[[nn.Module], bool], twin: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """The network with every wanted module replaced, in place; what was shared stays shared."""
    if wanted(network):
        return twin(network)
    made: dict[nn.Module, nn.Module] = {}
    owners: dict[tuple[str, Tensor], nn.Module] = {}
    for parent in list(network.modules()):
        # not named_children, which passes over the second place of a layer that stands twice in one parent
        for name, child in parent._modules.items():
            if child is None or not wanted(child):
                continue
            if child not in made:
                made[child] = twin(child)
                _share(child, made[child], owners)
            setattr(parent, name, made[child])
    return network


def _share(layer: nn.Module, twin: nn.Module, owners: dict[tuple[str, Tensor], nn.Module]) -> None:
    """Let the twins of layers that share weights or biases share them too; `owners` holds the first twin of each."""
    for name in ("weight", "bias"):
        parameter = getattr(layer, name, None)
        if parameter is None:
            continue
        first = owners.setdefault((name, parameter), twin)
        for shared in (name, f"{name}_log_std"):
            if hasattr(first, shared):
                setattr(twin, shared, getattr(first, shared))
