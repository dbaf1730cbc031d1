"""The plain network of a module that a method trains."""

from __future__ import annotations

from torch import nn


def plain_network(network: nn.Module) -> nn.Module:
    """Return a network of plain layers: that of a `SpikingModule`, with the posterior means of a Bayesian one.

    Args:
        network: a module with a method and a network, or a network, which is returned itself.

    Example:
        >>> module = SpikingModule(nn.Sequential(nn.Linear(4, 3)), lightning_snn.methods.SpikingBayes(), num_classes=3)
        >>> plain_network(module)[0]
        Linear(in_features=4, out_features=3, bias=True)
    """
    method, inner = getattr(network, "method", None), getattr(network, "network", None)
    if not isinstance(method, nn.Module) or not isinstance(inner, nn.Module):
        return network
    mean = getattr(method, "posterior_mean", None)
    plain: nn.Module = inner if mean is None else mean(inner)
    return plain
