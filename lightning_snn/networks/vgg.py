"""VGG: convolutions one after the other, with pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from lightning_snn.checks import check_integer
from lightning_snn.networks.inputs import check_frames
from lightning_snn.networks.neurons import NeuronFactory, make_neuron
from lightning_snn.networks.normalized import mean_readout, normalized_convolution
from lightning_snn.nn.neurons import DetachedLIF


class VGG(nn.Sequential):
    """Batch-normalized 3x3 convolutions with neurons, halved by pooling; by default VGG-11.

    An average commutes with the mean over time, and a maximum of spikes does not: "M" is for ReLU, and for spikes whose
    time is the code. All positions of the last layer are averaged and read out by a Linear. Weights start as torch
    draws them; normalization removes the scale of a convolution.

    Args:
        input_shape: channels, height and width of a frame.
        num_classes: number of outputs.
        channels: the layers in order: an integer is a convolution with so many output channels, "A" averages 2x2
            positions and "M" takes their maximum (an odd last row or column is left out).
        neuron: makes the neurons of a layer, see `MLP`; by default the LIF of Yu et al. 2024.
        relu: ReLU in place of neurons: the ANN that `TimeToFirstSpike` maps; `neuron` is not used.

    Raises:
        ValueError: if an argument is outside its range, or the plane is too small for its pooling.

    Shape:
        `[T*B, C, H, W]` to `[T*B, num_classes]`.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 10,
        channels: Sequence[int | Literal["A", "M"]] = (64, 128, "A", 256, 256, "A", 512, 512, "A", 512, 512),
        neuron: NeuronFactory = DetachedLIF,
        relu: bool = False,
    ) -> None:
        check_frames(input_shape, num_classes)
        size, height, width = input_shape
        layers: list[nn.Module] = []
        for entry in channels:
            if entry in ("A", "M"):
                layers.append(nn.AvgPool2d(2) if entry == "A" else nn.MaxPool2d(2))
                height, width = height // 2, width // 2
                continue
            if isinstance(entry, str):
                raise ValueError(f'Expected argument `channels` to hold integers, "A" and "M", but got {entry!r}')
            check_integer("channels", entry)
            layers += [*normalized_convolution(size, entry), nn.ReLU() if relu else make_neuron(neuron)]
            size = entry
        if not any(isinstance(layer, nn.Conv2d) for layer in layers):
            raise ValueError(f"Expected argument `channels` to hold at least one integer, but got {list(channels)}")
        if min(height, width) < 1:
            smallest = 2 ** sum(isinstance(entry, str) for entry in channels)
            raise ValueError(
                f"Expected argument `input_shape` to have height and width of at least {smallest} for the pooling of "
                f"{list(channels)}, but got {tuple(input_shape)}"
            )
        super().__init__(*layers, *mean_readout(size, num_classes))
        # a step of training is a fifth faster on a CPU
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
