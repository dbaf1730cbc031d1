"""Windows in which neurons need no gate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_snn.methods.ttfs.alpha import AlphaConv2d, AlphaLinear
from lightning_snn.methods.ttfs.encoder import SpikeEncoder
from lightning_snn.methods.ttfs.neurons import FirstSpike, first_spike_layers


@torch.no_grad()
def safe_window(network: nn.Module, x: Tensor) -> dict[str, float]:
    r"""Compute windows in which neurons need no gate, whatever the order of their input spikes.

    .. math:: \Delta = \max_{i, data} (D_i^+ + \sum_j W_{ij}^+ \hat x_j), \quad W^+ = \max(W, 0)

    Before t_min no potential exceeds :math:`\sum_j W_{ij}^+ \hat x_j`, so none reaches its threshold
    :math:`\Delta - D_i`. This is an upper bound, which is looser for consecutive linear layers: many networks need no
    gate in shorter windows either, see `EventRecord.early_crossings`.

    Args:
        network: a network of `FirstSpike` neurons. It is left unchanged.
        x: inputs `[B, ...]`, for which the bound holds.

    Returns:
        The window of each layer of neurons, by name, in units of the input window.

    Raises:
        ValueError: if the network has `AlphaLinear` or `AlphaConv2d`, whose potentials have another bound.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 2.0)
        >>> network = nn.Sequential(SpikeEncoder(), layer, FirstSpike(), nn.Linear(1, 1))
        >>> safe_window(network, torch.tensor([[0.5, 1.0]]))
        {'2': 3.0}
    """
    network = copy.deepcopy(network).eval()
    neurons: dict[str, FirstSpike] = dict(getattr(network, "spiking", first_spike_layers(network)))
    for name, layer in network.named_modules():
        if isinstance(layer, (AlphaConv2d, AlphaLinear)):
            raise ValueError(f"Expected neurons of unit slope for safe windows, but got {name}: {type(layer).__name__}")
        if isinstance(layer, (FirstSpike, SpikeEncoder)):
            layer.constraints = None
    for layer in neurons.values():
        layer.overflow = "pass"
    emitted: dict[nn.Module, Tensor] = {}
    potential = _potentials(network, x, lambda layer, output: emitted.setdefault(layer, output))
    # without spikes the potential is D; through absolute weights spikes cause excitation plus inhibition
    offset = _potentials(network, x, lambda layer, output: torch.zeros_like(output))
    synapses = {f"{name}.weight" for name, _ in network.named_modules()}
    absolute = {
        name: value.abs() if name in synapses else torch.zeros_like(value) for name, value in network.named_parameters()
    }
    either = _potentials(network, x, lambda layer, output: emitted[layer], absolute)
    found = {}
    for name, layer in neurons.items():
        excitation = (potential[layer] - offset[layer] + either[layer]) / 2
        found[name] = (excitation + offset[layer].clamp(min=0)).max().item()
    return found


def _potentials(
    network: nn.Module,
    x: Tensor,
    emit: Callable[[nn.Module, Tensor], Tensor],
    parameters: Mapping[str, Tensor] | None = None,
) -> dict[nn.Module, Tensor]:
    """Return the potentials of each layer if `emit` replaces the outputs of layers."""
    potentials: dict[nn.Module, Tensor] = {}

    def replace(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        potentials[layer] = args[0]
        return emit(layer, output)

    emitting = [layer for layer in network.modules() if isinstance(layer, (FirstSpike, SpikeEncoder))]
    handles = [layer.register_forward_hook(replace) for layer in emitting]
    functional_call(network, dict(parameters or {}), (x,))
    for handle in handles:
        handle.remove()
    return potentials
