"""Traces of the inputs of linear maps: which layers have them, and the decay of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.functional.traced import InputTrace, Kernel, input_traces, traced_map
from lightning_snn.nn.layer_rules import LayerRules, Refusal
from lightning_snn.nn.module_tree import unnested
from lightning_snn.nn.neurons import LIF, AdaptiveLIF, LeakyIntegrator, Neuron, Recurrent, RecurrentLIF
from lightning_snn.nn.registry import parts_of_neurons


def trace_refusals(network: nn.Module) -> list[Refusal]:
    """Return the layers for which traces are not defined, with the reasons.

    Example:
        >>> lightning_snn.methods.online_through_time.trace_refusals(nn.Sequential(nn.Linear(4, 8), LIF()))
        []
    """
    names = {module: name for name, module in network.named_modules()}
    inside, membranes = parts_of_neurons(network), membranes_of(network)
    refused = []
    for layer in membranes:
        if _DECAYS.find(layer) is None:
            refused.append(Refusal(names[layer], layer, _DECAYS.unknown))
        elif isinstance(decay := decay_of(layer), Tensor) and decay.dim() > 0:
            reason = "one decay per channel, so each weight would need a trace of its own: use trace=False"
            refused.append(Refusal(names[layer], layer, reason))
    known = {part for layer in network.modules() if _KERNELS.find(layer) is not None for part in layer.modules()}
    for layer in network.modules():
        if layer in known or layer in inside or isinstance(layer, Neuron):
            continue
        if any(each.dim() > 1 and each.requires_grad for each in layer.parameters(recurse=False)):
            refused.append(Refusal(names[layer], layer, _KERNELS.unknown))
    parts = unnested(network)
    if not refused and len(set(map(decay_key, membranes))) > 1 and not all(layer in parts for layer in membranes):
        reason = "layers of several decays, which are known to be in the order of their calls in an nn.Sequential only"
        refused.append(Refusal("", network, f"{reason}: use trace=False"))
    return refused


_DECAYS: LayerRules[Callable[[Any], float | Tensor]] = LayerRules(
    unknown="no decay of the membrane potential alone, by which traces of its inputs decay: use trace=False"
)
for _kind in (LIF, RecurrentLIF, AdaptiveLIF, LeakyIntegrator):
    _DECAYS.register(_kind, lambda layer: layer.value("beta"))
_DECAYS.register(Recurrent, lambda layer: decay_of(layer.neuron))


def _convolution(layer: Any) -> Kernel:
    padded = _padded_before(layer)
    none = (0,) * len(layer.kernel_size)
    padding = none if padded else layer.padding
    return Kernel(layer.stride, padding, layer.dilation, layer.groups, layer.transposed, layer.output_padding)


_KERNELS: LayerRules[Callable[[Any], Kernel | None]] = LayerRules(
    unknown="no trace of the inputs of its weights: use trace=False"
)
_KERNELS.register(nn.Linear, lambda layer: None)
for _layer in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    _KERNELS.register(_layer, _convolution)


def _padded_before(layer: Any) -> bool:
    """Return whether the inputs of a convolution are padded before it, other than by zeros on both sides alike."""
    return isinstance(layer.padding, str) or layer.padding_mode != "zeros"


def membranes_of(network: nn.Module) -> list[nn.Module]:
    """Return the layers with a membrane potential, in order of registration."""
    inside = parts_of_neurons(network)
    return [
        layer for layer in network.modules() if isinstance(layer, (Neuron, LeakyIntegrator)) and layer not in inside
    ]


def decay_owners(network: nn.Module) -> dict[nn.Module, nn.Module | None]:
    """Return the linear maps, with the next membrane, whose decay their traces have; None after the last one."""
    inside, membranes = parts_of_neurons(network), set(membranes_of(network))
    owners: dict[nn.Module, nn.Module | None] = {}
    following = None
    for layer in reversed(list(network.modules())):
        if layer in membranes:
            following = layer
        elif layer not in inside and _KERNELS.find(layer) is not None:
            owners[layer] = following
    return owners


def decay_of(membrane: nn.Module) -> float | Tensor:
    """Return the decay per step of the membrane potential of a layer, without a gradient."""
    rule = _DECAYS.find(membrane)
    assert rule is not None
    decay = rule(membrane)
    return decay.detach() if isinstance(decay, Tensor) else decay


def decay_key(membrane: nn.Module) -> float | nn.Module:
    """Return what is equal for two membranes if their decays are and remain equal."""
    decay = decay_of(membrane)
    return membrane if isinstance(decay, Tensor) else decay


def traced(layer: Any, x: Tensor, decay: float | Tensor, state: InputTrace | None) -> tuple[Tensor, InputTrace]:
    """Return the outputs of a linear map for inputs `[t, B, ...]`, whose weights learn from traces, and the traces."""
    rule = _KERNELS.find(layer)
    assert rule is not None
    kernel = rule(layer)
    if kernel is not None and _padded_before(layer):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x.flatten(0, 1), layer._reversed_padding_repeated_twice, mode).unflatten(0, x.shape[:2])
    traces, ones, state = input_traces(x.detach(), decay, state)
    mapped = traced_map(x.flatten(0, 1), traces.flatten(0, 1), ones, layer.weight, layer.bias, kernel)
    return mapped.unflatten(0, x.shape[:2]), state
