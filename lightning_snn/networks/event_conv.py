"""A small convolutional spiking network for event cameras."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lightning_snn.checks import check_integer, check_positive
from lightning_snn.networks.neurons import NeuronFactory, make_neuron
from lightning_snn.nn.delays import SynapticDelays
from lightning_snn.nn.divisive import DivisiveNormalization
from lightning_snn.nn.neurons import LIF, LeakyIntegrator, recurrent


class EventConvNet(nn.Sequential):
    """Strided convolutions, and delayed synapses onto a recurrent layer that compares moments in time.

    The events of each recording are divided by their root mean square so far (`DivisiveNormalization`), so every layer
    of a new network is active at any density of events.

    Decays are learned, one per channel. In each layer they start spread over `beta_range`, so that fast neurons respond
    to the present and slow ones to the past.

    Args:
        input_shape: channels, height and width of a frame.
        num_classes: number of outputs.
        channels: output channels of the convolutions; the first has a 5x5 kernel, the others 3x3, all of stride 2.
        hidden: neurons of the recurrent layer.
        delays: steps by which the synapses onto the recurrent layer are delayed, each connection once per delay. With
            ``hidden=64, delays=(0,)`` the network has a fifth of the weights, which suits a thousand recordings whose
            classes do not differ in the direction of motion alone.
        beta_range: smallest and largest initial decay of a neuron per step.
        gain: weights start as N(0, gain^2 / fan-in). With 2, from 2 to 25 % of the neurons of each layer fire per step
            at densities from 0.003 to 30 events per cell and step.
        input_rms: root mean square to which `DivisiveNormalization` brings the events, larger than 0; None leaves it
            out, so the activity of the network follows the density of events.
        neuron: makes the neurons of a layer, see `MLP`; it receives ``beta`` and ``learn_beta`` if it takes them.

    Shape:
        `[T*B, C, H, W]` to `[T*B, num_classes]`.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (2, 32, 32),
        num_classes: int = 11,
        channels: Sequence[int] = (16, 32, 64),
        hidden: int = 128,
        delays: Sequence[int] = (0, 1, 2),
        beta_range: tuple[float, float] = (0.3, 0.95),
        gain: float = 2.0,
        input_rms: float | None = 0.35,
        neuron: NeuronFactory = LIF,
    ) -> None:
        check_integer("num_classes", num_classes)
        check_integer("hidden", hidden)
        check_positive("gain", gain)
        size, height, width = input_shape
        layers: list[nn.Module] = [] if input_rms is None else [DivisiveNormalization(input_rms)]
        for index, out in enumerate(channels):
            check_integer("channels", out)
            kernel = 5 if index == 0 else 3
            layers += [
                nn.Conv2d(size, out, kernel, stride=2, padding=kernel // 2),
                make_neuron(neuron, beta=torch.linspace(*beta_range, out), learn_beta=True),
            ]
            size, height, width = out, -(-height // 2), -(-width // 2)
        super().__init__(
            *layers,
            nn.Flatten(),
            SynapticDelays(delays),
            nn.Linear(len(delays) * size * height * width, hidden),
            recurrent(make_neuron(neuron, beta=torch.linspace(*beta_range, hidden), learn_beta=True), hidden),
            nn.Linear(hidden, num_classes),
            LeakyIntegrator(0.9, learn_beta=True),
        )
        for layer in self:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=gain / layer.weight[0].numel() ** 0.5)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        # strided convolutions run 1.5 to 5 times faster on a CPU
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
