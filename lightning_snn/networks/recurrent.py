"""Fully connected recurrent spiking networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lightning_snn.checks import check_fraction, check_integer
from lightning_snn.networks.initial_weights import draw_weights
from lightning_snn.networks.inputs import input_features
from lightning_snn.networks.neurons import NeuronFactory, make_neuron
from lightning_snn.nn.neurons import LIF, LeakyIntegrator, recurrent


class RecurrentNet(nn.Sequential):
    """Layers of recurrent neurons before a leaky integrator, for inputs that unfold in time, such as speech.

    Decays are learned, one per neuron. In each layer they start spread over `beta_range`, so that fast neurons respond
    to the present sound and slow ones to the start of the word.

    Args:
        input_shape: number of inputs, or the shape of an input, which is flattened.
        num_classes: number of outputs.
        hidden: neurons of each recurrent layer, from the input on.
        beta_range: smallest and largest initial decay of a neuron per step.
        gain: weights, recurrent ones included, start as N(0, gain^2 / fan-in).
        neuron: makes the neurons of a layer, see `MLP`; it receives ``beta`` and ``learn_beta`` if it takes them.

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
        neuron: NeuronFactory = LIF,
    ) -> None:
        check_integer("num_classes", num_classes)
        if not hidden:
            raise ValueError(f"Expected argument `hidden` to hold at least one layer, but got {hidden}")
        for beta in beta_range:
            check_fraction("beta_range", beta)
        features = input_features(input_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for size in hidden:
            check_integer("hidden", size)
            layers += [
                nn.Linear(features, size),
                recurrent(make_neuron(neuron, beta=torch.linspace(*beta_range, size), learn_beta=True), size),
            ]
            features = size
        super().__init__(*layers, nn.Linear(features, num_classes), LeakyIntegrator(0.9, learn_beta=True))
        draw_weights(self, gain)
