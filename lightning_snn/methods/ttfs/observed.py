"""Activations of all layers of a time-to-first-spike network on data, and its outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_snn.functional.ttfs import Overflow, TimeConstraints
from lightning_snn.methods.ttfs.activations import PotentialHistogram, evaluating, recorded
from lightning_snn.methods.ttfs.clipping import LayerPotentials
from lightning_snn.methods.ttfs.encoder import SpikeEncoder
from lightning_snn.methods.ttfs.neurons import first_spike_layers
from lightning_snn.methods.ttfs.windows import wiring

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LayerActivity:
    """Activations of a layer without clipping.

    Attributes:
        name: name of the layer, as in `first_spike_layers`.
        active: fraction of neurons and samples that spike, from 0 to 1.
        largest: largest activation, in units of the input window.
        quantiles: quantiles of the activations of emitted spikes, by their level.
    """

    name: str
    active: float
    largest: float
    quantiles: Mapping[float, float]


@dataclass(frozen=True)
class ObservedActivations:
    """Activations of the inputs, if the network has an encoder, and then of each layer of neurons in causal order.

    Attributes:
        names: names of the layers of neurons.
        layers: activations of all layers; those of the inputs are first.
        largest: length of the shortest window that clips nothing, float64 `[layers]`; that of inputs is 1.
        activity: activations of the layers of neurons, to report.
    """

    names: tuple[str, ...]
    layers: tuple[LayerPotentials, ...]
    largest: Tensor
    activity: tuple[LayerActivity, ...]

    @property
    def free(self) -> Tensor:
        """Windows that may be chosen, those of neurons, bool `[layers]`."""
        return torch.arange(len(self.layers)) >= len(self.layers) - len(self.names)

    def by_name(self, values: Tensor) -> dict[str, float]:
        """Return values `[layers]` by the name of the layer of neurons."""
        return dict(zip(self.names, values[self.free].tolist(), strict=True))


def observed_activations(network: nn.Module, data: Batches, quantiles: Sequence[float]) -> ObservedActivations:
    """Run a network on data, without clipping and constraints, and return its activations.

    Args:
        network: network with `FirstSpike` layers.
        data: batches ``(x, y)``.
        quantiles: levels of the quantiles to return, in (0, 1).

    Raises:
        ValueError: if there are no `FirstSpike` layers or no batches, or a layer never spikes or has potentials that
            are NaN or infinite; the message names it.
    """
    neurons: dict[nn.Module, str] = {layer: name for name, layer in first_spike_layers(network).items()}
    if not neurons:
        raise ValueError(
            f"Expected argument `network` to have FirstSpike layers, but got {type(network).__name__} without any. "
            "Convert it with `from_relu`"
        )
    order = [(layer, sources) for layer, sources in wiring(network) if layer in neurons]
    histograms = {neurons[layer]: PotentialHistogram(layer.window.device) for layer, _ in order}
    inputs = PotentialHistogram(order[0][0].window.device)

    def add_inputs(encoder: nn.Module, x: Any, remaining: Tensor) -> None:
        inputs.add(remaining.detach())

    encoders = [layer for layer in network.modules() if isinstance(layer, SpikeEncoder)]
    with ExitStack() as stack:
        for encoder in encoders:
            stack.enter_context(encoder.register_forward_hook(add_inputs))
        stack.enter_context(recorded(network, histograms))
        outputs(network, data)
    first = {"the inputs": inputs} if encoders else {}
    for name, histogram in {**first, **histograms}.items():
        _check(name, histogram.quantile(1.0))
    places = {layer: place + len(first) for place, (layer, _) in enumerate(order)}
    layers = [LayerPotentials(*histogram.bins()) for histogram in first.values()]
    for layer, presynaptic in order:
        known = tuple(places[each] for each in presynaptic if each in places)
        layers.append(LayerPotentials(*histograms[neurons[layer]].bins(), known or tuple(range(len(first)))))
    activity = tuple(
        LayerActivity(
            name, histogram.active(), histogram.quantile(1.0), {level: histogram.quantile(level) for level in quantiles}
        )
        for name, histogram in histograms.items()
    )
    largest = torch.tensor([1.0] * len(first) + [layer.largest for layer in activity], dtype=torch.float64)
    return ObservedActivations(tuple(histograms), tuple(layers), largest, activity)


def outputs(
    network: nn.Module, batches: Batches, overflow: Overflow = "pass", constraints: TimeConstraints | None = None
) -> tuple[Tensor, Tensor]:
    """Return the outputs `[N, C]`, in float64, and classes `[N]` of a network in evaluation mode.

    Args:
        network: network with `FirstSpike` layers.
        batches: batches ``(x, y)``.
        overflow: of all layers, see `FirstSpike`.
        constraints: effects on spike times; None for none.

    Raises:
        ValueError: if there are no batches.
    """
    with evaluating(network, overflow, constraints), torch.no_grad():
        found = [(network(x), y) for x, y in batches]
    if not found:
        raise ValueError("Expected at least one batch of inputs and classes, but got none")
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logits.double(), labels.to(logits.device)


def _check(name: str, largest: float) -> None:
    if not math.isfinite(largest):
        raise ValueError(
            f"Expected argument `data` to give finite potentials, but got {largest:g} in {name}. Look for NaN and "
            "infinities in the inputs and weights"
        )
    if largest == 0:
        raise ValueError(
            f"Expected argument `data` to cause spikes in every layer, but got none in {name}. Remove the layer, or "
            "pass more data"
        )
