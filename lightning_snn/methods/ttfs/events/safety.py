"""Windows that need no gate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_snn.methods.ttfs.layers import (
    AlphaConv2d,
    AlphaLinear,
    FirstSpike,
    SpikeEncoder,
    first_spike_layers,
)


@torch.no_grad()
def safe_window(network: nn.Module, x: Tensor) -> dict[str, float]:
    r"""Windows in which neurons need no gate, whatever the order of their input spikes.

    .. math:: \Delta = \max_{i, data} (D_i^+ + \sum_j W_{ij}^+ \hat x_j), \quad W^+ = \max(W, 0)

    Before t_min no potential exceeds :math:`\sum_j W_{ij}^+ \hat x_j`, so that none reaches its threshold
    :math:`\Delta - D_i`. It is a bound, and a wider one where linear layers follow on each other: many networks need no
    gate in shorter windows either, see `EventRecord.early_crossings`.

    Args:
        network: a network of `FirstSpike` neurons. It is left as it is.
        x: inputs `[B, ...]`; the bound holds for these.

    Returns:
        the window of each layer of neurons, by name, in units of the input window.

    Raises:
        ValueError: if the network holds `AlphaLinear` or `AlphaConv2d`, whose potentials have another bound.
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
    drive = _drives(network, x, lambda layer, output: emitted.setdefault(layer, output))
    # no spike at all leaves D; the same spikes through absolute weights are excitation plus inhibition
    offset = _drives(network, x, lambda layer, output: torch.zeros_like(output))
    synapses = {f"{name}.weight" for name, _ in network.named_modules()}
    absolute = {
        name: value.abs() if name in synapses else torch.zeros_like(value) for name, value in network.named_parameters()
    }
    either = _drives(network, x, lambda layer, output: emitted[layer], absolute)
    found = {}
    for name, layer in neurons.items():
        excitation = (drive[layer] - offset[layer] + either[layer]) / 2
        found[name] = (excitation + offset[layer].clamp(min=0)).max().item()
    return found


def _drives(
    network: nn.Module,
    x: Tensor,
    emit: Callable[[nn.Module, Tensor], Tensor],
    parameters: Mapping[str, Tensor] | None = None,
) -> dict[nn.Module, Tensor]:
    """What neurons hear if they emit what `emit` makes of their output."""
    heard: dict[nn.Module, Tensor] = {}

    def replace(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        heard[layer] = args[0]
        return emit(layer, output)

    emitting = [layer for layer in network.modules() if isinstance(layer, (FirstSpike, SpikeEncoder))]
    handles = [layer.register_forward_hook(replace) for layer in emitting]
    functional_call(network, dict(parameters or {}), (x,))
    for handle in handles:
        handle.remove()
    return heard
