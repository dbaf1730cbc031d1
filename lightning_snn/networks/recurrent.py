"""Fully connected recurrent spiking networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lightning_snn.checks import check_fraction, check_integer, check_positive
from lightning_snn.networks.inputs import input_features
from lightning_snn.nn.neurons import LeakyIntegrator, RecurrentLIF


class RecurrentNet(nn.Sequential):
    """Layers of recurrent LIF neurons before a leaky integrator, for what unfolds in time, such as speech.

    Decays are learned, one a neuron. In every layer they start spread over `beta_range`, so that fast neurons hear
    the sound of the moment and slow ones remember the beginning of the word.

    Args:
        input_shape: number of inputs, or the shape of an input, which is flattened.
        num_classes: number of outputs.
        hidden: neurons of each recurrent layer, from the input on.
        beta_range: smallest and largest initial decay of a neuron per step.
        gain: weights, those within a layer too, start as N(0, gain^2 / fan-in).

    Raises:
        ValueError: if an argument is outside its range.

    Shape:
        `[T*B, *input_shape]` to `[T*B, num_classes]`.
    """

    def __init__(
        self,
        input_shape: int | tuple[int, ...] = 140,
        num_classes: int = 20,
        hidden: Sequence[int] = (256, 256),
        beta_range: tuple[float, float] = (0.5, 0.98),
        gain: float = 1.0,
    ) -> None:
        check_integer("num_classes", num_classes)
        if not hidden:
            raise ValueError(f"Expected argument `hidden` to hold at least one layer, but got {hidden}")
        for beta in beta_range:
            check_fraction("beta_range", beta)
        check_positive("gain", gain)
        features = input_features(input_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for size in hidden:
            check_integer("hidden", size)
            layers += [
                nn.Linear(features, size),
                RecurrentLIF(size, torch.linspace(*beta_range, size), learn_beta=True),
            ]
            features = size
        super().__init__(*layers, nn.Linear(features, num_classes), LeakyIntegrator(0.9, learn_beta=True))
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, RecurrentLIF):
                nn.init.normal_(layer.weight, std=gain / layer.features**0.5)
