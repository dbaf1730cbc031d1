"""What the batch-normalized networks of the spiking literature share: their neuron and their layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_snn.functional.surrogate import Sigmoid
from lightning_snn.nn.neurons import LIF

# The neuron of Yu et al. 2024 (arXiv 2410.11488). Their surrogate is the derivative of sigmoid(4 x), of height 1.
NEURON: dict[str, Any] = {
    "beta": 0.2,
    "threshold": 1.0,
    "reset": "subtract",
    "detach_reset": True,
    "surrogate": Sigmoid(0.25),
}


def neurons(lif: dict[str, Any] | None) -> LIF:
    """A layer of `NEURON`, except for the options in `lif`."""
    return LIF(**{**NEURON, **(lif or {})})


def normalized_convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps the plane at stride 1, and the normalization that makes its bias needless."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


def mean_readout(features: int, num_classes: int) -> list[nn.Module]:
    """The average over all positions, read out by a Linear."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, num_classes)]
