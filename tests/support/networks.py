"""Layers, parameters and spikes of a network."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn import run
from lightning_snn.nn import spiking_layers


def layers(network: nn.Module, kind: Any) -> list[Any]:
    """Return the modules of a type, or of one of several types."""
    return [module for module in network.modules() if isinstance(module, kind)]


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def spikes_of(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the spikes `[T, B, ...]` of each spiking layer on inputs `[T, B, ...]`, in the order of the calls."""
    found: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, spikes: found.append(spikes.unflatten(0, (len(x), -1))))
        for _, layer in spiking_layers(network)
    ]
    run(network, x)
    for hook in hooks:
        hook.remove()
    return found


def firing_rates(network: nn.Module, x: Tensor) -> list[float]:
    """Return the spikes per neuron and time step of each spiking layer on inputs `[T, B, ...]`."""
    return [spikes.mean().item() for spikes in spikes_of(network, x)]


def firing_rates_on_an_image(network: nn.Module, input_shape: tuple[int, int, int]) -> list[float]:
    """Return `firing_rates` on four time steps of two random images."""
    return firing_rates(network, torch.randn(1, 2, *input_shape).expand(4, -1, -1, -1, -1))


def size_of_convolutions(*widths: int) -> int:
    """Return the number of weights of 3x3 convolutions from each width to the next, and of their normalization."""
    return sum(9 * before * after + 2 * after for before, after in pairwise(widths))
